"""TimeSformer, ViViT with joint attention, VideoMAE and V-JEPA 2 as transformers has them.

Sources: Bertasius et al., TimeSformer, ICML 2021; Arnab et al., ViViT, ICCV 2021; Tong et al., VideoMAE, NeurIPS 2022;
Assran et al., V-JEPA 2, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aim_fast.errors import WeightsError
from aim_fast.models.libraries.network import Classifying, Network
from aim_fast.models.record import like
from aim_fast.models.trunk import Trunk

if TYPE_CHECKING:
    from torch import Tensor, nn


def _patches(of: Any) -> int:
    """Patches of a frame, or of a time slot."""
    return (of.img_size // of.patch_size) ** 2


@dataclass(frozen=True)
class _Configured:
    """A network of transformers, by the names of its configuration and its class."""

    library: ClassVar[str] = "transformers"
    channels_first: ClassVar[bool] = False
    made_by: ClassVar[tuple[str, str]]

    def settings(self) -> dict[str, Any]:
        """What its configuration is made with."""
        raise NotImplementedError

    def configuration(self) -> Any:
        import transformers

        return getattr(transformers, self.made_by[0])(**self.settings())

    def build(self) -> nn.Module:
        import transformers

        return getattr(transformers, self.made_by[1])(self.configuration()).train()

    def run(self, network: Any, clips: Tensor) -> Tensor:
        return network(clips).logits

    def check_configuration(self, told: Mapping[str, Any], source: str) -> None:
        """Of what leaves no trace in shapes too, such as heads and activations; classes, frames and size may differ."""
        ours = self.configuration()
        kind = told.get("model_type", ours.model_type)
        if kind != ours.model_type:
            raise WeightsError(f"{source} is of another network: its configuration says {kind}, not {ours.model_type}")
        theirs = type(ours)(**told)
        for key in _TOLD:
            one, other = (getattr(config, key, None) for config in (theirs, ours))
            if _plain(one) != _plain(other):
                raise WeightsError(f"{source} is of another architecture: its {key} {one}, the model's {other}")


_TOLD = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "mlp_ratio", "patch_size"),
    *("tubelet_size", "hidden_act", "layer_norm_eps", "qkv_bias", "qv_bias", "attention_type", "use_mean_pooling"),
)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class _PlainViT(_Configured, Classifying):
    """``depth`` blocks of ``embed_dim`` channels, ``mlp_ratio`` hidden units a channel."""

    classifier: ClassVar[str] = "classifier"

    alike: ClassVar[bool] = True

    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0

    def settings(self) -> dict[str, Any]:
        return {
            "image_size": self.img_size,
            "patch_size": self.patch_size,
            "num_frames": self.num_frames,
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "intermediate_size": int(self.embed_dim * self.mlp_ratio),
            "num_labels": self.num_classes,
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is no multiple of patch_size {self.patch_size}")


@dataclass(frozen=True)
class TimeSformerNetwork(_PlainViT):
    """Attention over time, then over space; one class token a clip."""

    made_by: ClassVar[tuple[str, str]] = ("TimesformerConfig", "TimesformerForVideoClassification")
    multiple: ClassVar[int] = 1

    num_frames: int = 8
    attention_type: Literal["divided_space_time", "space_only", "joint_space_time"] = "divided_space_time"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"attention_type": self.attention_type}

    def resized(self, name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions

        if name.endswith("embeddings.position_embeddings"):
            return interpolate_positions(table[0], shape[1])[None]
        return interpolate_frames(table, shape[1]) if name.endswith("embeddings.time_embeddings") else None

    def undecayed(self, name: str, dimensions: int) -> bool:
        return False


@dataclass(frozen=True)
class ViViTNetwork(_PlainViT):
    """Joint attention over all tubelets of a clip (model 1), a class token before them."""

    made_by: ClassVar[tuple[str, str]] = ("VivitConfig", "VivitForVideoClassification")

    num_frames: int = 32
    tubelet: int = 2

    def settings(self) -> dict[str, Any]:
        found = super().settings()
        side = found.pop("patch_size")
        return found | {"tubelet_size": (self.tubelet, side, side)}

    def resized(self, name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The class token's row as it is, the others over slots of time and over patches."""
        import math

        import torch

        from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions

        if not name.endswith("embeddings.position_embeddings"):
            return None
        slots, patches, rest = self.num_frames // self.tubelet, _patches(self), table.shape[1] - 1
        first, grid = table[:, :1].float(), table[0, 1:].float()
        before = slots if rest % slots == 0 and math.isqrt(rest // slots) ** 2 == rest // slots else rest // patches
        if rest % before:
            return None
        resized = [interpolate_positions(slot, patches, 0) for slot in grid.reshape(before, -1, grid.shape[1])]
        grid = interpolate_frames(torch.stack(resized).reshape(1, before, -1), slots).reshape(1, slots * patches, -1)
        return torch.cat([first, grid], 1)


@dataclass(frozen=True)
class VideoMAENetwork(_PlainViT):
    """Joint attention over all tubelets, the mean of their tokens read; positions are fixed waves, in no file."""

    made_by: ClassVar[tuple[str, str]] = ("VideoMAEConfig", "VideoMAEForVideoClassification")
    beside: ClassVar[tuple[str, ...]] = ("decoder.", "encoder_to_decoder.", "mask_token")
    lacked: ClassVar[tuple[str, ...]] = ("fc_norm.",)

    num_frames: int = 16
    tubelet: int = 2

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"tubelet_size": self.tubelet}


@dataclass(frozen=True)
class VJEPA2Network(_Configured, Network):
    """The encoder of V-JEPA 2, frozen: all of its tokens [B, T/2, N, D] are read by a head; positions are rotations."""

    made_by: ClassVar[tuple[str, str]] = ("VJEPA2Config", "VJEPA2Model")
    under_head: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("predictor.", "pooler.", "classifier.")

    num_frames: int = 16
    img_size: int = like(Trunk, "img_size", default=256)
    patch_size: int = 16
    tubelet: int = 2
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0

    def settings(self) -> dict[str, Any]:
        return {
            "crop_size": self.img_size,
            "patch_size": self.patch_size,
            "frames_per_clip": self.num_frames,
            "tubelet_size": self.tubelet,
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "pred_num_hidden_layers": 0,
        }

    def build(self) -> nn.Module:
        network: Any = super().build()
        del network.predictor
        return network

    def run(self, network: Any, clips: Tensor) -> Tensor:
        tokens = network.encoder(pixel_values_videos=clips).last_hidden_state
        return tokens.unflatten(1, (self.num_frames // self.tubelet, _patches(self)))
