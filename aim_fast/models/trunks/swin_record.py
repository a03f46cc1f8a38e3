"""Arguments of AIM on a Swin Transformer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.adapting import Adapting
from aim_fast.models.argument_checks import check_normalisation, check_sizes
from aim_fast.models.choices import Tune
from aim_fast.models.head import Classifier
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.record import Clips, Record, argument, like
from aim_fast.models.trunk import Trunk
from aim_kernels.choices import AdapterPlace, AttentionBackend, BlockBackend, DropPathMode, Memory


@dataclass(frozen=True)
class Swin(Record):
    """Arguments of AIM on a Swin Transformer.

    Args:
        img_size, embed_dim, depths, num_heads, window_size: the image Transformer; width, depth and heads by stage.
        patch_size: frames, rows and columns of a patch.
        num_frames: frames of a clip, a multiple of the patch's.
        adapter_scale: factor of the joint adapter, 0.5 as published.
        adapter_ratio, adapters, head_dropout, num_classes: as on other trunks.
        drop_path: droppath rate of the last block; rates grow linearly from 0 at the first block of the first stage.
        drop_path_mode: what droppath drops of the temporal and the joint branch: "clip" (paper), "frame" (a step of
            time) or "position".
        published_freeze: whether the temporal bias tables stay frozen. tune: "adapters", or "all" for full fine-tuning.
        mean, std: of the R, G and B channel, on the scale of 0 to 255.
        backend: of the blocks, "fused" or "reference" (plain torch); memory: what they keep for backward, "fast",
            "balanced" or "lean"; attention_backend: see ``aim_kernels.group_attention``. No value changes with them.
    """

    heading: ClassVar[str] = "Swin"

    img_size: int = like(Trunk, "img_size")
    patch_size: Sequence[int] = (2, 4, 4)
    embed_dim: int = 128
    depths: Sequence[int] = (2, 2, 18, 2)
    num_heads: Sequence[int] = (4, 8, 16, 32)
    window_size: int = 7
    num_frames: int = 8
    adapter_scale: float = like(Adapting, "adapter_scale")
    adapter_ratio: float = like(Adapting, "adapter_ratio")
    drop_path: float = like(Adapting, "drop_path")
    num_classes: int = 400
    drop_path_mode: DropPathMode = like(Adapting, "drop_path_mode", default="clip")
    adapters: Collection[AdapterPlace] = like(Adapting, "adapters")
    head_dropout: float = like(Classifier, "head_dropout")
    published_freeze: bool = argument(False, "Swin: leave the temporal bias at its random start, as published")
    tune: Tune = like(Adapting, "tune")
    mean: Sequence[float] = like(Trunk, "mean", default=IMAGENET_MEAN)
    std: Sequence[float] = like(Trunk, "std", default=IMAGENET_STD)
    backend: BlockBackend = like(Clips, "backend")
    memory: Memory = like(Clips, "memory")
    attention_backend: AttentionBackend = argument("auto", running=True)

    def __post_init__(self) -> None:
        check_sizes(img_size=self.img_size, embed_dim=self.embed_dim, window_size=self.window_size)
        check_sizes(num_frames=self.num_frames, num_classes=self.num_classes)
        if len(self.patch_size) != 3 or len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(
                "patch_size takes frames, rows and columns, depths and num_heads one number a stage, not "
                f"{self.patch_size}, {self.depths} and {self.num_heads}"
            )
        for number in (*self.patch_size, *self.depths, *self.num_heads):
            check_sizes(**{"each of patch_size, depths and num_heads": number})
        if self.patch_size[1] != self.patch_size[2]:
            raise ValueError(f"patch_size {tuple(self.patch_size)} is not square in space")
        if self.num_frames % self.patch_size[0]:
            raise ValueError(
                f"num_frames {self.num_frames} is no multiple of the {self.patch_size[0]} frames of a patch"
            )
        _check_grid(self.img_size, self.patch_size[1], len(self.depths), self.window_size)
        mean, std = check_normalisation(self.mean, self.std)
        lists = {name: tuple(getattr(self, name)) for name in ("patch_size", "depths", "num_heads", "adapters")}
        for name, value in (lists | {"mean": mean, "std": std}).items():
            object.__setattr__(self, name, value)


def _check_grid(img_size: int, patch: int, stages: int, window: int) -> None:
    """Raises ValueError where a stage's tokens do not fall into whole windows."""
    if img_size % (patch * 2 ** (stages - 1)):
        raise ValueError(f"img_size {img_size} is no multiple of {patch * 2 ** (stages - 1)}, as {stages} stages need")
    for stage in range(stages):
        side = img_size // patch // 2**stage
        if side > window and side % window:
            raise ValueError(
                f"stage {stage + 1} of img_size {img_size} has {side} × {side} tokens, no whole number of windows of "
                f"{window} × {window}: take img_size {patch * window * 2 ** (stages - 1)} or another window_size"
            )
