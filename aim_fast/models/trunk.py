"""What is asked of a trunk's record, and the records of the trunks of frames. Imports no torch.

A trunk with arguments of its own has a record here, or in a file that imports no torch, and its class names it as
``trunk_record``; a record that has options is one of :data:`TRUNKS` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aim_fast.models.choices import Pool
from aim_fast.models.pixels import CLIP_MEAN, CLIP_STD
from aim_fast.models.record import Record, argument, like
from aim_kernels.choices import Activation


@dataclass(frozen=True)
class Trunk(Record):
    """The sizes of an image Transformer, and the pixels that it was trained on: the arguments of every trunk.

    ``mean``, ``std``: of the R, G and B channel, on the scale of 0 to 255.
    """

    img_size: int = argument(
        224,
        "side of the square input, pixels; the model's own when not given",
        shared=True,
        unset=True,
        alike=True,
        ge=1,
    )
    patch_size: int = argument(16, alike=True)
    embed_dim: int = argument(768, alike=True)
    depth: int = argument(12, alike=True)
    num_heads: int = argument(12, alike=True)
    mean: Sequence[float] = argument(CLIP_MEAN, structure=False)
    std: Sequence[float] = argument(CLIP_STD, structure=False)


@dataclass(frozen=True)
class PlainTrunk(Trunk):
    """And those of a trunk of plain blocks: ``mlp_ratio`` hidden units per channel, and the MLPs' activation."""

    mlp_ratio: float = 4.0
    activation: Activation = argument(
        "quick_gelu",
        "quick_gelu, gelu or gelu_tanh, for weights that do not say theirs",
        shared=True,
        unset=True,
        told=False,
        structure=False,
        alike=True,
    )


@dataclass(frozen=True)
class PlainViT(PlainTrunk):
    """Arguments of a plain ViT, named as in timm.

    Args:
        class_token, reg_tokens: whether there is a class token, and how many registers follow it.
        no_embed_class: whether ``pos_embed`` is for patches alone.
        pre_norm: whether a norm ends the stem, whose patch embedding then has no bias.
        global_pool: a frame's feature: "token", the class token, or "avg", the mean over its patches.
        fc_norm: whether the last norm stands after the mean over patches; None for where timm puts it: after a mean.
        init_values: what LayerScale starts at, None for no LayerScale.
        qk_norm, qkv_bias, proj_bias: see :class:`aim_kernels.AIMViTBlock`.
        eps: of all norms.
    """

    activation: Activation = like(PlainTrunk, "activation", default="gelu")
    class_token: bool = True
    reg_tokens: int = argument(0, ge=0)
    no_embed_class: bool = False
    pre_norm: bool = False
    global_pool: Pool = "token"
    fc_norm: bool | None = None
    init_values: float | None = None
    qk_norm: bool = False
    qkv_bias: bool = True
    proj_bias: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool 'token' needs the class token: take global_pool 'avg'")
        if self.fc_norm is None:
            object.__setattr__(self, "fc_norm", self.global_pool == "avg")


@dataclass(frozen=True)
class TimmTrunk(Trunk):
    """Arguments about a trunk of timm's: ``architecture`` is timm's name, ``timm_pool`` its ``global_pool`` where it is
    not as usual.

    Sizes that are not timm's own make a trunk of that structure in other sizes.
    """

    architecture: str = "vit_base_patch16_224"
    timm_pool: str = ""
