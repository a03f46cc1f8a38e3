"""Holding the frozen trunk in half precision, once: its float32 copy is not needed by anything.

Adapters keep float32 master weights and are cast where they are used; norm parameters stay float32 (they are small, and
the norms compute in float32). On a GPU the norms of a "fast" block are folded, beside it
(:mod:`aim_kernels.folded_norms`). Gradients of everything trainable are those of mixed precision, see
tests/kernels/test_precision.py. In eight bits (:mod:`aim_kernels.scaled_product`) the trunk is held in bf16 too: what
is folded into an adapter or read in float32 is taken from there.
"""

from __future__ import annotations

import torch
from torch import nn

from aim_kernels.folded_norms import fold_norms
from aim_kernels.modules import AIMBlock
from aim_kernels.scaled_product import scaled_weight
from aim_kernels.scaled_rows import EIGHT_BITS
from aim_kernels.swin_block import AIMSwinBlock
from aim_kernels.weights import UNSCALED, ScaledTrunk


def hold_trunk(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts, in place, the frozen projections of every :class:`AIMBlock` and :class:`AIMSwinBlock` to ``dtype``.

    Weights that require a gradient are left alone, and so are Swin's small tables of biases. With float8_e4m3fn the
    products' weights are there in eight bits beside bf16, where the block already lies; they go where it goes, and are
    made again of weights that ``load_state_dict`` brings. Returns ``model``.
    """
    held = torch.bfloat16 if dtype == EIGHT_BITS else dtype
    for block in model.modules():
        parts: tuple[nn.Module, ...] = ()
        if isinstance(block, AIMBlock):
            parts = (block.attn, block.mlp)
        elif isinstance(block, AIMSwinBlock):
            parts = (block.attn.qkv, block.attn.proj, block.mlp)
        if parts and dtype == EIGHT_BITS:
            if block.scaled == UNSCALED:
                block.register_load_state_dict_pre_hook(_loading)
                block.register_load_state_dict_post_hook(_loaded)
            _quantise(block)  # type: ignore[arg-type]
        if isinstance(block, AIMBlock):
            block.held_norms = None
            if _reads_folded(block) and held.itemsize == 2:
                weights = block.attention_weights()[1], block.mlp_weights()[1]
                block.held_norms = fold_norms(block.norm_weights(), *weights, held, block.scaled)
        for part in parts:
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(held)
    return model


def _reads_folded(block: AIMBlock) -> bool:
    fused = {"T_Adapter", "MLP_Adapter"} <= {*block.fused_adapters} and block.backend == "fused"
    return fused and block.memory == "fast" and next(block.parameters()).is_cuda


def _loading(block: nn.Module, *_: object) -> None:
    block.__dict__["before_loading"] = _versions(block)


def _loaded(block: nn.Module, _: object) -> None:
    if block.__dict__.pop("before_loading") != _versions(block):
        _quantise(block)  # type: ignore[arg-type]


def _versions(block: nn.Module) -> list[tuple[int, int]]:
    return [(id(x), x._version) for x in block.parameters() if not x.requires_grad]


@torch.no_grad()
def _quantise(block: AIMBlock | AIMSwinBlock) -> None:
    attention = block.attn.weights if isinstance(block, AIMSwinBlock) else block.attention_weights()[1]
    _, mlp = block.mlp_weights()
    first = mlp[:2]
    if mlp.gate_weight is not None and mlp.gate_bias is not None:
        first = torch.cat([mlp.gate_weight, mlp.fc_weight]), torch.cat([mlp.gate_bias, mlp.fc_bias])
    block.scaled = ScaledTrunk(*(scaled_weight(*pair) for pair in (attention[:2], attention[2:], first, mlp[2:4])))
