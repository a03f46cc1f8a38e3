"""The modules of X-CLIP's head, under its names ``mit``, ``prompts_visual_ln``, ``prompts_visual_proj`` and
``prompts_generator``. The mathematics is in :mod:`aim_fast.models.heads.x_clip`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_kernels.adaptation import activate
from aim_kernels.modules import AIMBlock

_HEAD_WIDTH = 64


def make_prompts(model: Any, width: int, mit_layers: int, prompt_layers: int) -> None:
    """Gives the model the head's modules."""
    model.mit = FrameTransformer(width, model.num_frames, mit_layers)
    model.prompts_visual_ln = nn.LayerNorm(model.feature_dim)
    model.prompts_visual_proj = nn.Parameter(torch.empty(model.feature_dim, width))
    model.prompts_generator = PromptGenerator(width, prompt_layers)


def reset_prompts(model: Any) -> None:
    """Initialises them as published."""
    model.mit.reset_parameters()
    model.prompts_visual_ln.reset_parameters()
    nn.init.normal_(model.prompts_visual_proj)
    model.prompts_generator.reset_parameters()


class FrameTransformer(nn.Module):
    """Frame features ``[B, T, De]`` to those of the clip ``[B, De]``: mean over T of f + blocks(f + positions)."""

    resblocks: Sequence[Any]

    def __init__(self, width: int, frames: int, layers: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(1, frames, width))
        heads = width // _HEAD_WIDTH
        self.resblocks = nn.ModuleList(  # type: ignore[assignment]
            AIMBlock(width, heads, adapters=(), activation="quick_gelu", backend="reference") for _ in range(layers)
        )

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)
        for block in self.resblocks:
            block.reset_parameters()
            nn.init.xavier_uniform_(block.attn.in_proj_weight)
            reset_linear(block)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames + self.positional_embedding)[:, None]  # as one frame of T tokens
        for block in self.resblocks:
            x = block(x)
        return (frames + x[:, 0]).mean(1)


class PromptGenerator(nn.Module):
    """Texts ``[C, De]`` and patches ``[B, P, De]`` to what is added to the texts for each clip, ``[B, C, De]``."""

    decoder: Sequence[Any]

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(_Layer(width) for _ in range(layers))  # type: ignore[assignment]
        self.alpha = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        for norm in (module for module in self.modules() if isinstance(module, nn.LayerNorm)):
            norm.reset_parameters()
        reset_linear(self)
        nn.init.constant_(self.alpha, 0.1)

    def forward(self, texts: Tensor, patches: Tensor) -> Tensor:
        texts, patches = texts[None], self.norm(patches)
        for layer in self.decoder:
            texts = layer(texts, patches)
        return self.alpha * texts


class _Layer(nn.Module):
    """Class names of one clip, or the same of all, ``[B or 1, C, De]``, reading its patches ``[B, P, De]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD_WIDTH
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.ModuleDict({f"{one}_proj": nn.Linear(width, width, bias=False) for one in "qkv"})
        self.cross_attn["proj"] = nn.Linear(width, width)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"0": nn.Linear(width, 4 * width), "3": nn.Linear(4 * width, width)})

    def forward(self, texts: Tensor, patches: Tensor) -> Tensor:
        read, clips = self.cross_attn, patches.shape[0]  # len() would be a constant of a graph
        q, k, v = (
            read[f"{one}_proj"](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one, x in zip("qkv", (self.norm1(texts), patches, patches))
        )
        found = F.scaled_dot_product_attention(q.expand(clips, -1, -1, -1), k, v)  # q of the first layer is all clips'
        texts = texts + read["proj"](found.transpose(1, 2).flatten(2))
        return texts + self.mlp["3"](activate(self.mlp["0"](self.norm3(texts)), "quick_gelu"))


def reset_linear(module: nn.Module, draw: Callable[..., Tensor] = nn.init.trunc_normal_) -> None:
    """Initialises the linear layers within a module: weights by ``draw`` with a deviation of 0.02, biases zero."""
    for linear in (one for one in module.modules() if isinstance(one, nn.Linear)):
        draw(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
