"""What the operator tests share: a run of every instruction-set tier of the C++ part, and attention in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor

from aim_kernels import error_rule, extension

TIERS = ("generic", "avx2", "avx512", "avx512_bf16", "amx", "reference")


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
def hold_attention() -> Callable[..., None]:
    """Holds ``found``, the out, lse and dqkv of an attention over ``qkv``, to the error rule.

    ``split(qkv)`` gives q, k and v as [3, ..., L, d], ``join(out)`` lays [..., L, d] out like ``dout``; ``bias`` is
    added to the scores.
    """

    def hold(
        found: Iterable[Tensor],
        qkv: Tensor,
        dout: Tensor,
        split: Callable[[Tensor], Tensor],
        join: Callable[[Tensor], Tensor],
        bias: Tensor | None = None,
    ) -> None:
        def plainly(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
            leaf = qkv.detach().to(dtype, copy=True).requires_grad_()
            q, k, v = split(leaf)
            scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            scores = scores if bias is None else scores + bias.to(dtype)
            out = join(scores.softmax(-1) @ v)
            (gradient,) = torch.autograd.grad(out, leaf, dout.to(dtype))
            return out, scores.to(torch.promote_types(dtype, torch.float32)).logsumexp(-1), gradient

        for got, plain, truth in zip(found, plainly(qkv.dtype), plainly(torch.float64), strict=True):
            error_rule.hold(got, plain, truth)

    return hold
