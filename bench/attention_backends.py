"""Which of torch's attention backends serves the published structure: the one that torch chooses, and the fastest.

Over time there are many short sequences, over a frame's tokens few long ones, so each has its own choice. On a GPU each
candidate runs forward and backward on tensors laid out as the published block lays them out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from aim_fast.timing import take_turns
from bench.published import PublishedBlock, heads_first

CANDIDATES = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
Choice = dict[str, SDPBackend]  # of ``time`` and ``space``


def torchs_and_fastest(model: nn.Module, clips: Tensor, dtype: torch.dtype) -> tuple[Choice, Choice]:
    """What torch chooses for the attention of ``model`` over clips, and what is the fastest here.

    Both are empty for a model without a block as published.
    """
    shapes: dict[str, tuple[int, int, int, int]] = {}  # L, M, heads, width of a head
    block = next((module for module in model.modules() if isinstance(module, PublishedBlock)), None)
    if block is None:
        return {}, {}

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        b, t, n, d = inputs[0].shape
        heads = block.block.num_heads
        shapes.update(time=(t, b * n, heads, d // heads), space=(n, b * t, heads, d // heads))

    with torch.no_grad():
        hook = block.register_forward_pre_hook(note)
        model(clips)
        hook.remove()
    chosen, fastest = {}, {}
    for over, (length, many, heads, width) in shapes.items():
        qkv = torch.randn(length, many, 3 * heads * width, dtype=dtype, device=clips.device, requires_grad=True)
        chosen[over] = SDPBackend(torch._fused_sdp_choice(*heads_first(qkv, heads)))
        seconds = {backend: _seconds(qkv, heads, backend) for backend in {*CANDIDATES, chosen[over]}}
        fastest[over] = min(seconds, key=lambda backend: seconds[backend])
    return chosen, fastest


def _seconds(qkv: Tensor, heads: int, backend: SDPBackend) -> float:
    """Of a forward and backward; infinity where the backend does not run."""

    def run() -> None:
        with torch.nn.attention.sdpa_kernel(backend):
            out = nn.functional.scaled_dot_product_attention(*heads_first(qkv, heads))
        out.backward(out.detach())
        qkv.grad = None

    return _or_infinity(lambda: take_turns({"": run}, 5, qkv.device.type, warm=2, ahead=True)[""].median)


def _or_infinity(measure: Callable[[], float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says at length why a backend does not serve
        try:
            return measure()
        except RuntimeError:
            return float("inf")


def pin(model: nn.Module, choice: Choice) -> nn.Module:
    """Makes every published block of ``model`` use these backends."""
    for block in model.modules():
        if isinstance(block, PublishedBlock):
            block.over_time, block.over_space = choice["time"], choice["space"]
    return model


def named(choice: Choice) -> dict[str, str]:
    return {over: backend.name.lower() for over, backend in choice.items()}
