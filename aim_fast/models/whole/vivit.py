"""ViViT with a factorised encoder: a ViT over the tubelets of each step of time, then a Transformer over the steps.

Shapes: B clips, T frames, t frames a tubelet, P = (H / p)² tubelets a step, D width.

    embedding   tubelets of t × p × p pixels                                     [B, T / t, P, D]
    spatial     class token in front, positions, depth blocks, norm, class token [B, T / t, D]
    temporal    the same over the steps, temporal_layers blocks                  [B, D] -> fc_cls [B, num_classes]

From an image ViT of ImageNet-21k the spatial encoder starts as that ViT, the tubelet's kernel as its patch embedding at
the central frame and zero elsewhere; class tokens and the classifier start at zero (the image's class token is not
taken, as in the public code). Source: Arnab et al., ViViT: A Video Vision Transformer, ICCV 2021, model 2, and its
public code in scenic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.record import argument, like
from aim_fast.models.trunk import Trunk
from aim_fast.models.weights.vit import is_vit, vit_tower
from aim_fast.models.whole.encoder import Encoder
from aim_fast.models.whole.tubelet_embedding import TubeletEmbedding, Tubelets, central_kernel
from aim_fast.models.whole.whole_model import HEAD, Start, WholeModel, count_blocks, resized_positions


@dataclass(frozen=True)
class Vivit(Tubelets):
    """Arguments of ViViT: ``depth`` spatial blocks and ``temporal_layers`` over time."""

    tubelet: int = argument(2, alike=True)
    embed_dim: int = like(Trunk, "embed_dim")
    depth: int = like(Trunk, "depth")
    num_heads: int = like(Trunk, "num_heads")
    temporal_layers: int = like(Prompting, "temporal_layers", default=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_tubelets(self.tubelet)
        check_sizes(depth=self.depth, temporal_layers=self.temporal_layers)
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is no multiple of patch_size {self.patch_size}")


class ViViT(WholeModel):
    """Clips in, class logits out, everything trained."""

    record = Vivit
    activation = "gelu_tanh"
    patch_size: int
    tubelet: int
    embed_dim: int
    temporal_layers: int

    def __init__(self, of: Vivit) -> None:
        super().__init__(of)
        self.embedding = TubeletEmbedding(of.tubelet, of.patch_size, of.embed_dim)
        sizes = {"dim": of.embed_dim, "heads": of.num_heads, "hidden": 4 * of.embed_dim, "class_token": True}
        running: Any = sizes | {"backend": of.backend, "memory": of.memory}
        self.spatial = Encoder((of.img_size // of.patch_size) ** 2, rates=of.rates(of.depth), **running)
        self.temporal = Encoder(of.num_frames // of.tubelet, rates=of.rates(of.temporal_layers), **running)
        self.fc_cls = nn.Linear(of.embed_dim, of.num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        if self.fc_cls.weight.is_meta:
            return
        self.embedding.reset_parameters()
        self.spatial.reset_parameters()
        self.temporal.reset_parameters()
        self.zero_classifier()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        if "spatial.pos_embed" not in tensors or "temporal.pos_embed" not in tensors:
            return None
        width, _, tubelet, patch, _ = tensors["embedding.weight"].shape
        grid = round((tensors["spatial.pos_embed"].shape[1] - 1) ** 0.5)
        return {
            "method": "full",
            "embed_dim": width,
            "depth": count_blocks(tensors, "spatial.blocks."),
            "num_heads": max(width // 64, 1),
            "temporal_layers": count_blocks(tensors, "temporal.blocks."),
            "patch_size": patch,
            "tubelet": tubelet,
            "img_size": grid * patch,
            "num_frames": (tensors["temporal.pos_embed"].shape[1] - 1) * tubelet,
        }

    def from_image(self, tensors: Mapping[str, Tensor], source: str) -> Start | None:
        if not is_vit(tensors):
            return None
        tower = vit_tower(tensors, source)
        found = {
            "embedding.weight": central_kernel(tower.pop("patch_embed.proj.weight"), self.tubelet),
            "embedding.bias": tower.pop("patch_embed.proj.bias"),
        }
        tower.pop("cls_token", None)
        norms = {name: f"norm.{name.removeprefix('ln_post.')}" for name in tower if name.startswith("ln_post.")}
        found |= {f"spatial.{norms.get(name, name)}": tensor for name, tensor in tower.items()}
        left = {name for name in self.state_dict() if name.startswith((HEAD, "temporal.", "spatial.cls_token"))}
        line = f"{source} is an image ViT: its patches are the central frame of a tubelet, its blocks the spatial ones"
        return Start(found, left, [f"{line}; class tokens, temporal blocks and classifier start anew"])

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return resized_positions(self, tensors, ("spatial.pos_embed",), ("temporal.pos_embed",))

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to their features ``[B, D]``."""
        self.check_clips(x)
        steps = self.spatial(self.embedding(x, self.mean, self.std))
        return self.temporal(steps[:, None])[:, 0]
