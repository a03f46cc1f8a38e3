"""AIM on a Swin Transformer: a frozen hierarchical image trunk with temporal, spatial and joint adapters.

Shapes: B clips, T steps of time = num_frames / 2, a frame of side × side tokens, D the stage's width.

    stem    patches of 2 frames × 4 × 4 pixels -> norm                       [B, T, N, D], N = (img_size / 4)²
    stages  depths[i] × aim_kernels.AIMSwinBlock, every other one shifted, the temporal adaptation in the others;
            between stages, 2 × 2 tokens become one of width 2D               [B, T, N / 4, 2D]
    tail    norm -> mean over time and space -> dropout -> fc_cls             [B, num_classes]

Parameter names are those of the published checkpoints without ``backbone.`` and ``cls_head.``. Sources: Liu et al.,
Swin Transformer, ICCV 2021; Yang et al., AIM, ICLR 2023, and its public implementation (the configuration on Swin).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from aim_fast.models.trunks.swin_record import Swin
from aim_fast.models.tubelets import embed_tubelets
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights import swin as swin_weights
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.modules import Adapter
from aim_kernels.swin_block import AIMSwinBlock


class AIMSwin(VideoModel):
    """A Swin Transformer adapted to video by AIM: clips in, class logits out.

    What trains is set at construction: every adapter, the temporal bias tables and ``fc_cls``; with ``adapters=()``
    only ``fc_cls``. ``published_freeze`` is the published rule, which leaves the temporal bias tables, new tensors that
    no checkpoint fills, at their random initialisation. With ``tune="all"`` everything trains.

    Raises ValueError in ``forward`` for a clip of another layout or size.
    """

    record = Swin
    activation = "gelu"
    layers: Sequence[Stage]

    def __init__(self, swin: Swin) -> None:
        super().__init__(swin)
        self.patch_size = tuple(swin.patch_size)
        self.embed_dim, self.published_freeze, self.tune = swin.embed_dim, swin.published_freeze, swin.tune
        last, stages, before = max(sum(swin.depths) - 1, 1), [], 0
        self.patch_embed = PatchEmbed(self.patch_size, swin.embed_dim)
        for stage, (depth, heads) in enumerate(zip(swin.depths, swin.num_heads)):
            width, side = swin.embed_dim * 2**stage, swin.img_size // swin.patch_size[1] // 2**stage
            blocks = [
                AIMSwinBlock(
                    width,
                    heads,
                    side,
                    swin.num_frames // swin.patch_size[0],
                    swin.window_size,
                    shifted=layer % 2 == 1,
                    adapts_time=layer % 2 == 0,
                    adapter_scale=swin.adapter_scale,
                    adapter_ratio=swin.adapter_ratio,
                    drop_path=swin.drop_path * (before + layer) / last,
                    drop_path_mode=swin.drop_path_mode,
                    adapters=swin.adapters,
                    backend=swin.backend,
                    memory=swin.memory,
                    attention_backend=swin.attention_backend,
                )
                for layer in range(depth)
            ]
            before += depth
            stages.append(Stage(blocks, PatchMerging(width) if stage + 1 < len(swin.depths) else None))
        self.layers = nn.ModuleList(stages)  # type: ignore[assignment]
        width = swin.embed_dim * 2 ** (len(swin.depths) - 1)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(swin.head_dropout)
        self.fc_cls = nn.Linear(width, swin.num_classes)
        self.reset_parameters()
        self.freeze()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        swin = any(name.startswith("layers.0.blocks.0.attn.") for name in tensors)
        if not swin or not any("_Adapter" in name for name in tensors):
            return None
        found = swin_weights.infer_swin(swin_weights.swin_tower(tensors, where), where)
        if (mask := tensors.get("layers.0.blocks.1.attn_mask")) is not None:  # one row a window of the first stage
            found["img_size"] = math.isqrt(len(mask)) * found["window_size"] * found["patch_size"][-1]
        return found

    def reset_parameters(self) -> None:
        """Initialise everything: the trunk and the temporal bias as Swin does, adapters and head as AIM does."""
        self.patch_embed.proj.reset_parameters()
        self.patch_embed.norm.reset_parameters()
        for stage in self.layers:
            for block in stage.blocks:
                block.reset_parameters()
                for adapter in (module for module in block.children() if isinstance(module, Adapter)):
                    adapter.reset_parameters()
            if stage.downsample is not None:
                stage.downsample.norm.reset_parameters()
                nn.init.normal_(stage.downsample.reduction.weight, std=0.02)
        self.norm.reset_parameters()
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)

    def freeze(self) -> None:
        """Set ``requires_grad`` as the class says: called at construction."""
        for name, parameter in self.named_parameters():
            over_time = "temporal_position_bias_table" in name and not self.published_freeze
            trains = "Adapter" in name or name.startswith("fc_cls.") or over_time
            parameter.requires_grad_(trains or self.tune == "all")

    def is_adaptation(self, name: str) -> bool:
        """Whether a tensor is what adaptation added: adapters, what the attention over time has of its own, head."""
        over_time = name.endswith(("temporal_position_bias_table", "t_relative_coords"))
        return over_time or super().is_adaptation(name)

    def no_weight_decay(self) -> set[str]:
        """Names that take no weight decay: all layer norms and the tables of position biases, as for Swin on video."""
        tables = {name for name, _ in self.named_parameters() if name.endswith("position_bias_table")}
        return super().no_weight_decay() | tables

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return swin_weights.fit_weights(self, file, source)

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to the normalised tokens of the last stage, ``[B, T, N, D]``."""
        tokens = self.embed(x)
        for stage in self.layers:
            tokens = stage(tokens)
        return self.norm(tokens)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features to logits ``[B, num_classes]``: mean over time and space, dropout, classifier."""
        return self.fc_cls(self.dropout(features.mean((1, 2))))

    def embed(self, x: Tensor) -> Tensor:
        """Clips to the first block's input ``[B, T, N, D]``."""
        self.check_clips(x)
        stem = self.patch_embed
        return stem.norm(embed_tubelets(x, stem.proj.weight, stem.bias, self.mean, self.std))


class PatchEmbed(nn.Module):
    """The parameters of the stem; the model applies them."""

    def __init__(self, patch_size: tuple[int, ...], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, embed_dim, patch_size, stride=patch_size)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(embed_dim)

    @property
    def bias(self) -> Tensor:
        return self.proj.bias  # type: ignore[return-value]  # never without


class Stage(nn.Module):
    """Blocks of one width in a row, and the merging of patches after them where there is another stage."""

    blocks: Sequence[AIMSwinBlock]

    def __init__(self, blocks: Sequence[AIMSwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchMerging(nn.Module):
    """``[B, T, N, D]`` to ``[B, T, N / 4, 2D]``: 2 × 2 tokens of a frame side by side, norm, projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, d = x.shape
        half = int(n**0.5 + 0.5) // 2
        x = x.reshape(b, t, half, 2, half, 2, d).permute(0, 1, 2, 4, 5, 3, 6)  # rows vary fastest within the four
        return self.reduction(self.norm(x.reshape(b, t, half * half, 4 * d)))
