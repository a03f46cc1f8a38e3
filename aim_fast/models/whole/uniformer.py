"""UniFormer: convolutions in the first two stages, attention over all of space and time in the last two.

Shapes: B clips, T frames, D the stage's width, T' = (T − 1) // 2 + 1.

    stages  embedding: convolution (stage 1: kernel 3×4×4, stride 2×4×4, padding 1 in time; later 1×2×2), norm over
            channels -> blocks                                                      [B, D, T', H / 4 … 32, W / 4 … 32]
    block   x = x + dwconv3×3×3(x)
      1, 2  x = x + conv2(dwconv5×5×5(conv1(BN x)));  x = x + fc2(gelu(fc1(BN x)))            1×1×1 but for dwconv
      3, 4  a ViT's block on the T'·H·W tokens of a clip as one sequence
    tail    BN -> mean -> fc_cls [B, num_classes]

``memory`` speaks of the blocks of attention; those of convolutions keep what autograd does, as a batch norm that ran
twice would count its clips twice. Names are the published ones but for the classifier, ``head`` there. Source: Li et
al., UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.whole.trained_block import TrainedBlock
from aim_fast.models.whole.whole_model import HEAD, Start, Whole, WholeModel
from aim_kernels.drop_path import DropPath

_STAGES = range(1, 5)


@dataclass(frozen=True)
class Uniform(Whole):
    """Arguments of UniFormer: ``depths`` and ``embed_dims`` of its four stages, channels of a head, hidden units of an
    MLP per channel."""

    depths: Sequence[int] = (5, 8, 20, 7)
    embed_dims: Sequence[int] = (64, 128, 320, 512)
    head_dim: int = 64
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depths", "embed_dims"):
            values = tuple(getattr(self, name))
            if len(values) != len(_STAGES):
                raise ValueError(f"{name} takes one number for each of the four stages, not {values}")
            for value in values:
                check_sizes(**{f"each of {name}": value})
            object.__setattr__(self, name, values)
        if self.img_size % 32:
            raise ValueError(f"img_size {self.img_size} is no multiple of 32")
        if odd := [width for width in self.embed_dims[2:] if width % self.head_dim]:
            raise ValueError(f"head_dim {self.head_dim} does not divide the width {odd[0]}")


class UniFormer(WholeModel):
    """Clips in, class logits out, everything trained."""

    record = Uniform
    activation = "gelu"
    depths: Sequence[int]
    embed_dims: Sequence[int]

    def __init__(self, of: Uniform) -> None:
        super().__init__(of)
        rates = iter(of.rates(sum(of.depths)))
        widths = (3, *of.embed_dims)
        for stage, depth in zip(_STAGES, of.depths):
            width = widths[stage]
            setattr(self, f"patch_embed{stage}", _Embedding(widths[stage - 1], width, first=stage == 1))
            blocks = [
                _ConvolutionBlock(width, of.mlp_ratio, next(rates))
                if stage <= 2
                else _AttentionBlock(
                    width,
                    width // of.head_dim,
                    of.mlp_ratio,
                    next(rates),
                    backend=of.backend,
                    memory=of.memory,
                )
                for _ in range(depth)
            ]
            setattr(self, f"blocks{stage}", nn.ModuleList(blocks))
        self.norm = nn.BatchNorm3d(widths[-1])
        self.fc_cls = nn.Linear(widths[-1], of.num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        """Linear layers truncated normal with std 0.02 and zero biases, the rest as torch does."""
        if self.fc_cls.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.BatchNorm3d, nn.LayerNorm)):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def published_name(self, name: str) -> str:
        return f"head.{name.removeprefix(HEAD)}" if name.startswith(HEAD) else name

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        if "patch_embed4.proj.weight" not in tensors or "blocks4.0.attn.qkv.weight" not in tensors:
            return None
        depths = [len({name.split(".")[1] for name in tensors if name.startswith(f"blocks{i}.")}) for i in _STAGES]
        widths = [len(tensors[f"patch_embed{i}.proj.weight"]) for i in _STAGES]
        return {"method": "full", "depths": tuple(depths), "embed_dims": tuple(widths)}

    def from_image(self, tensors: Mapping[str, Tensor], source: str) -> Start | None:
        """Spatial kernels repeated over time and divided by the length."""
        if tensors.get("patch_embed1.proj.weight", torch.empty(0)).ndim != 4:
            return None
        own = self.state_dict()
        found = {
            name: tensor[:, :, None].expand(-1, -1, own[name].shape[2], -1, -1) / own[name].shape[2]
            if tensor.ndim == 4 and name in own and own[name].ndim == 5
            else tensor
            for name, tensor in tensors.items()
            if not name.startswith(HEAD)
        }
        line = f"{source} is an image UniFormer: its kernels are repeated over time, the classifier starts anew"
        return Start(found, {name for name in own if name.startswith(HEAD)}, [line])

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to their features ``[B, D]``."""
        self.check_clips(x)
        x = self.pixels(x)
        for stage in _STAGES:
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"blocks{stage}"):
                x = block(x)
        return self.norm(x).mean((2, 3, 4))

    def pixels(self, x: Tensor) -> Tensor:
        """Clips, normalised, in the dtype of the weights: ``[B, 3, T, H, W]``."""
        dtype = self.fc_cls.weight.dtype
        if x.dtype != torch.uint8:
            return x.to(dtype)
        wide = x.to(torch.promote_types(dtype, torch.float32))
        channels = [(wide[..., c] - self.mean[c]) / self.std[c] for c in range(3)]
        return torch.stack(channels, 1).to(dtype)


class _Embedding(nn.Module):
    """``[B, C, T, H, W]`` to a stage's width at a quarter, later at half the side, normalised over channels."""

    def __init__(self, before: int, width: int, first: bool) -> None:
        super().__init__()
        kernel, stride, padding = ((3, 4, 4), (2, 4, 4), (1, 0, 0)) if first else ((1, 2, 2), (1, 2, 2), (0, 0, 0))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Conv3d(before, width, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).movedim(1, -1)).movedim(-1, 1)


def _depthwise(width: int, side: int) -> nn.Conv3d:
    return nn.Conv3d(width, width, side, padding=side // 2, groups=width)


class _ConvolutionBlock(nn.Module):
    """A block of stage 1 or 2, ``[B, D, T, H, W]`` to itself."""

    def __init__(self, width: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = _depthwise(width, 3)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = nn.Conv3d(width, width, 1)
        self.conv2 = nn.Conv3d(width, width, 1)
        self.attn = _depthwise(width, 5)
        self.norm2 = nn.BatchNorm3d(width)
        self.mlp = _ConvolutionMLP(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path, "clip")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self._dropped(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        drop = self.drop_path(branch.flatten(3))
        return branch if drop is None else branch * drop[..., None]


class _ConvolutionMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(width, hidden, 1)
        self.fc2 = nn.Conv3d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _AttentionBlock(TrainedBlock):
    """A block of stage 3 or 4, ``[B, D, T, H, W]`` to itself."""

    def __init__(self, width: int, *arguments: Any, **others: Any) -> None:
        super().__init__(width, *arguments, **others)
        self.pos_embed = _depthwise(width, 3)

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # [B, 1, T·H·W, D]
        return super().forward(tokens)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
