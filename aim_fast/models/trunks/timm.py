"""Any Transformer of timm's with pre-norm blocks in a row, over clips: timm's own modules, below ``trunk``.

Shapes: B clips, T frames, N tokens a frame (prefix tokens first), D = embed_dim.

    stem    timm's patch embedding, prefix tokens and positions -> + temporal_embedding [1, T, D] on every token
            -> norm_pre, where there is one                                                          [B, T, N, D]
    blocks  depth × TimmBlock, below ``trunk.blocks``
    tail    timm's last norm and pooling (class token, mean, attention pooling) of each frame         [B, T, D]

A trunk without a last norm is given one, ``ln_post``, so that AIM has one to train.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aim_fast.models.frame_model import FrameModel
from aim_fast.models.trunk import TimmTrunk
from aim_fast.models.trunks.timm_block import Place, RotationTable, TimmBlock, activation_of, why_not
from aim_fast.models.weights import timm as timm_weights
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit

_SIZES = ("img_size", "embed_dim", "depth", "num_heads", "patch_size")


class TimmViT(FrameModel):
    """A trunk of timm's under any method and head."""

    trunk_record = TimmTrunk
    method_defaults = {"drop_path_mode": "frame"}  # noqa: RUF012 - as published for the ViTs of ImageNet
    pooling = ("trunk.attn_pool.",)
    architecture: str

    def make_trunk(self) -> None:
        self.trunk = module = _in_sizes(self.records[0])
        self.rotation = RotationTable(module)
        blocks = [
            TimmBlock(block, Place(module, self.rotation, number), self.embed_dim, **self.block_arguments(number))
            for number, block in enumerate(module.blocks)
        ]
        module.blocks = nn.ModuleList(self.adapt(block, number) for number, block in enumerate(blocks))
        last = next((name for name in ("fc_norm", "norm") if _affine(getattr(module, name, None))), None)
        self.ln_post = nn.LayerNorm(self.frame_dim) if last is None else None  # type: ignore[assignment]
        self.last_norm = "ln_post." if last is None else f"trunk.{last}."
        usual_decay: set[str] = getattr(module, "no_weight_decay", set)()
        self.undecayed = frozenset(f"trunk.{name}" for name in usual_decay)  # type: ignore[misc]

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        model = super()._apply(*arguments, **options)
        self.rotation.refresh()
        return model

    def train(self, mode: bool = True) -> Self:
        """Batch norms, which some stems have, keep the statistics of their weights: no run saves others."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def trained_statistics(self) -> dict[str, Tensor]:
        return {name: one for name, one in super().trained_statistics().items() if not name.startswith("trunk.")}

    def reset_trunk(self) -> None:
        """timm has initialised its modules."""
        for block in self.row:
            self.reset_added(block)

    @property
    def row(self) -> Sequence[Any]:
        return self.trunk.blocks

    @property
    def projection(self) -> nn.Conv2d:
        stem = self.trunk.patch_embed  # some hybrid stems end in a convolution of their own
        return [module for module in stem.modules() if isinstance(module, nn.Conv2d)][-1]

    @property
    def eps(self) -> float:
        """Of the blocks' norms."""
        return self.row[0].norm1.eps

    @property
    def rope_theta(self) -> float | None:
        """The longest period of the rotation, where that is what makes it."""
        return getattr(getattr(self.trunk, "rope", None), "temperature", None)

    @property
    def hidden_activation(self) -> str:
        """Of the MLPs, gated ones' too."""
        mlp = self.row[0].mlp
        known = activation_of(mlp)
        return "silu" if known == "swiglu" else known or type(mlp.act).__name__.lower()

    @property
    def num_tokens(self) -> int:
        return self.trunk.patch_embed.num_patches + self.trunk.num_prefix_tokens

    @property
    def frame_dim(self) -> int:
        return self.trunk.num_features

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() & {name for name, _ in self.named_parameters()}

    def fit_trunk(self, file: WeightsFile, source: str) -> Fit:
        with torch.device("meta"):
            twin = _in_sizes(self.records[0])
        return timm_weights.fit_weights(self, twin, self.architecture, file, source)

    def embed(self, x: Tensor) -> Tensor:
        trunk, t = self.trunk, self.trunk_frames
        b = self.check_clips(x, t)
        stem = trunk.patch_embed
        if type(stem) is PatchEmbed:
            tokens = stem.norm(self.patch_tokens(x)).flatten(0, 1)  # [B·T, P, D]
            if getattr(trunk, "dynamic_img_size", False):
                tokens = tokens.unflatten(1, stem.grid_size)
        else:
            clips = self.normalize(x) if x.dtype == torch.uint8 else x
            tokens = stem(clips.to(self.projection.weight.dtype).transpose(1, 2).flatten(0, 1))
        tokens = self._placed(tokens).unflatten(0, (b, t)) + self.stem_embedding[:, :, None]
        return tokens if getattr(trunk, "norm_pre", None) is None else trunk.norm_pre(tokens)

    def _placed(self, tokens: Tensor) -> Tensor:
        """Patches of frames with prefix tokens before them and absolute positions: ``[B·T, N, D]``."""
        trunk = self.trunk
        if hasattr(trunk, "_pos_embed"):
            found = trunk._pos_embed(tokens)
            return found[0] if isinstance(found, tuple) else found
        if trunk.cls_token is not None:  # BEiT and the trunks of relative positions
            tokens = torch.cat([trunk.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens if getattr(trunk, "pos_embed", None) is None else tokens + trunk.pos_embed

    @property
    def pools_cls(self) -> bool:
        return self.trunk.global_pool == "token" and type(self.trunk).__name__ != "VisionTransformerDistilled"

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``, as timm pools it."""
        pooled = self.trunk.forward_head(self.trunk.norm(tokens.flatten(0, 1)), pre_logits=True)
        return pooled.unflatten(0, tokens.shape[:2])

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled if self.ln_post is None else self.ln_post(pooled)

    def finish_tokens(self, tokens: Tensor) -> Tensor:
        tokens = self.trunk.norm(tokens)
        return self.finish(self.trunk.fc_norm(tokens) if self.last_norm == "trunk.fc_norm." else tokens)


def build(architecture: str, pool: str = "", **sizes: Any) -> nn.Module:
    """timm's module without a classifier."""
    import timm

    named: dict[str, Any] = {"global_pool": pool} if pool else {}
    try:
        return timm.create_model(architecture, num_classes=0, **named, **sizes)
    except AssertionError as error:  # sizes that its authors did not mean
        raise ValueError(f"timm's {architecture} cannot have these sizes ({error})") from error


@functools.cache
def structure(architecture: str, pool: str = "") -> nn.Module:
    """timm's module without memory for its weights: to be read, never changed."""
    with torch.device("meta"):
        return build(architecture, pool)


@functools.cache
def sizes_of(architecture: str) -> dict[str, Any]:
    """The sizes of timm's own module: ``img_size, patch_size, embed_dim, depth, num_heads``.

    Raises ValueError that names what the module has and a trunk of pre-norm blocks has not.
    """
    module: Any = structure(architecture)
    if odd := odd_structure(module):
        raise ValueError(odd)
    stem = module.patch_embed
    if not stem.img_size:
        raise ValueError("pictures of any size")
    return {
        "img_size": min(stem.img_size),  # clips are square
        "patch_size": stem.img_size[0] // stem.grid_size[0],
        "embed_dim": int(module.embed_dim),
        "depth": len(module.blocks),
        "num_heads": module.blocks[0].attn.num_heads,
    }


def odd_structure(module: Any) -> str | None:
    """What a module of timm's has that a row of frozen pre-norm blocks has not; None for one that is taken."""
    blocks = getattr(module, "blocks", None)
    kind = type(module).__name__
    if kind in _OTHERS:
        return _OTHERS[kind]
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not hasattr(module, "patch_embed"):
        return f"a structure of its own (timm's {kind})"
    if odd := next(filter(None, map(why_not, blocks)), None):
        return odd
    if kind not in _CLASSES:
        return f"a structure of its own (timm's {kind})"
    if module.global_pool not in ("token", "avg", "map", "prr"):
        return f"{module.global_pool or 'no'} pooling"
    return None


# Of timm's other classes of vision Transformers, what they have.
_OTHERS = {
    "SwinTransformer": "windows (for a Swin take aim_swin_b, for another see `aim-fast models`)",
    "SwinTransformerV2": "windows and cosine attention (Swin V2)",
    "Cait": "class attention and talking heads (CaiT)",
    "Xcit": "cross-covariance attention (XCiT)",
    "NaFlexVit": "pictures of any shape (NaFlex)",
}
_CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "VisionTransformerRelPos")


def _in_sizes(record: Any) -> Any:
    """timm's module of a :class:`TimmTrunk`: sizes are named where they are not as usual, and where not square."""
    usual, stem = sizes_of(record.architecture), structure(record.architecture).patch_embed
    other = {name: getattr(record, name) for name in _SIZES if getattr(record, name) != usual[name]}
    if len({*stem.img_size}) > 1:  # type: ignore[misc, union-attr]
        other["img_size"] = record.img_size
    return build(record.architecture, record.timm_pool, **other)


def _affine(norm: Any) -> bool:
    return norm is not None and getattr(norm, "weight", None) is not None
