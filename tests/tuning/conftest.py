"""A place of its own for each test's records, and operators as they were when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch

from aim_fast.tuning.calls import Call, Layout
from aim_kernels import block_shapes, group_attention, spatial_attention
from aim_kernels.block_shapes import BlockShape, Launch, block_shape, candidates
from aim_kernels.layer_norm import layer_norm_reference
from aim_kernels.registration import OPERATORS

LAUNCH = Launch("layer_norm_forward", 40, 0, 2, 0, "layer_norm")  # that of norm_call
SHAPES = candidates(LAUNCH)


@pytest.fixture(autouse=True)
def _own_records(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    block_shapes.CHOSEN.clear()
    for attention in (spatial_attention, group_attention):
        attention.FAILED.clear()
    for operator in OPERATORS.values():
        operator.chosen.clear()


def norm_call(rows: int = 600, width: int = 40) -> Call:
    """A call of the layer norm in bfloat16."""
    vector = Layout((width,), (1,), torch.float32)
    return Call("layer_norm", (Layout((rows, width), (width, 1), torch.bfloat16), vector, vector, 1e-5, torch.bfloat16))


@pytest.fixture
def planted(monkeypatch) -> Callable[[Mapping[BlockShape, str]], list[BlockShape]]:
    """A layer norm in the place of the Triton kernel, which goes wrong at some shapes; the shapes that it ran at."""

    def plant(ways: Mapping[BlockShape, str]) -> list[BlockShape]:
        ran: list[BlockShape] = []

        def norm(x, weight, bias, eps, dtype):
            shape = block_shape("layer_norm_forward", x.shape[-1], 0, x.element_size(), entry="layer_norm")
            ran.append(shape)
            y, mean, rstd = layer_norm_reference(x, weight, bias, eps, dtype)
            way = ways.get(shape)
            if way == "refuses":
                raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 101376")
            if way == "wrong":
                y = y * 1.01
            if way == "writes nothing":
                y = torch.empty_like(y)
            return y, mean, rstd

        monkeypatch.setattr(OPERATORS["layer_norm"], "triton", norm)
        return ran

    return plant
