"""What the operator tests share: the error rule, and a run of every instruction-set tier of the C++ part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from aim_kernels import extension

TIERS = ("generic", "avx2", "avx512", "avx512_bf16", "amx", "reference")


@pytest.fixture
def holds_error_rule() -> Callable[[Tensor, Tensor, Tensor], None]:
    """``check(got, plain, truth)``: err(got) ≤ 2·err(plain) + 1e-6, relative norms against the float64 ``truth``."""

    def check(got: Tensor, plain: Tensor, truth: Tensor) -> None:
        assert got.shape == truth.shape
        got, plain, truth = got.detach(), plain.detach(), truth.detach()
        scale = truth.norm().clamp_min(1e-30)
        error, allowed = (((x.double() - truth).norm() / scale).item() for x in (got, plain))
        assert error <= 2 * allowed + 1e-6, f"error {error:.3g}, plain torch loses {allowed:.3g}"

    return check


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every tier that this processor has, and once without the C++ part."""
    chosen = extension.tier()
    try:
        extension.use(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    extension.use(chosen)


@pytest.fixture
def plain_attention() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """``attend(qkv [3, ..., L, d]) -> out, lse``: what plain torch computes in the dtype of its input."""

    def attend(qkv: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = qkv
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return scores.softmax(-1) @ v, scores.to(torch.promote_types(qkv.dtype, torch.float32)).logsumexp(-1)

    return attend
