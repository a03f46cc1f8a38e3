"""AIM on a CLIP ViT: a frozen image Transformer with spatial, temporal and joint adapters in its blocks.

Stem, tail and shapes are those of ``CLIPViT``; the blocks are depth ×
``aim_kernels.AIMBlock``. Parameter names are those of the published checkpoints without ``backbone.`` and
``cls_head.``. Source: Yang et al., AIM: Adapting Image Models for Efficient Video Action Recognition, ICLR 2023, and
its public implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from aim_fast.models.aim_adaptation import AIMAdaptation
from aim_fast.models.choices import TemporalPlace, Tune
from aim_fast.models.pixels import CLIP_MEAN, CLIP_STD
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.models.weights.architecture import infer_architecture, usual_heads
from aim_kernels.choices import Activation, AdapterPlace, BlockBackend, DropPathMode, Memory
from aim_kernels.modules import AIMBlock


class AIMViTCLIP(AIMAdaptation, CLIPViT):
    """A CLIP ViT adapted to video by AIM: clips in, class logits out.

    Input: uint8 ``[B, T, H, W, 3]`` RGB (normalised inside), or floating ``[B, 3, T, H, W]`` already normalised with
    ``mean`` and ``std``; T = num_frames, H = W = img_size. Output: logits ``[B, num_classes]``.

    What trains is set at construction (``requires_grad``), as published: every adapter, ``temporal_embedding``,
    ``ln_post`` and ``fc_cls``; the rest is frozen. With ``adapters=()`` the model is the frozen space-only rung, a
    linear probe on frame-averaged CLS features: only ``fc_cls`` trains. With ``tune="all"`` everything trains, but
    for the ``temporal_embedding`` of a model without adapters, which knows nothing of time: fine-tuned space-only.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: the image Transformer.
        num_frames: frames of a clip, the length of ``temporal_embedding``.
        num_tadapter: 1, or 2 for an adapter before temporal attention too (Something-Something v2).
        adapter_scale: factor of the joint adapter: 0.5 on Kinetics and Diving-48, 1 on Something-Something v2.
        adapter_ratio: hidden units of an adapter per channel.
        drop_path: droppath rate of the last block; rates grow linearly from 0 at the first.
        num_classes: outputs of ``fc_cls``.
        mlp_ratio: hidden units of the frozen MLPs per channel: 4, but for the largest CLIPs.
        drop_path_mode: "position" (published code), "clip" (paper) or "frame", see ``aim_kernels.DropPath``.
        adapters: which of "spatial", "temporal", "joint" a block has (the ablation rungs).
        adapter_layers: which blocks have them: "all", "bottom" or "top" (half), "alternate", or numbers from 0. Blocks
            below the lowest are plain frozen blocks: no gradient is computed and nothing is kept there.
        temporal_place: where ``temporal_embedding`` is added: "lowest" to the input of the lowest block with adapters
            (the stem, where that is block 0), or "stem" always, as the published code does, which then needs a
            gradient through every block; "frozen" leaves it at zero.
        tune: "adapters", or "all" for full fine-tuning.
        activation: of the image Transformer's MLPs, "quick_gelu" (OpenAI's weights) or "gelu".
        head_dropout: dropout before ``fc_cls``.
        mean, std: of the R, G and B channel, on the scale of 0 to 255.
        backend: of the stem and the blocks, "fused" or "reference" (plain torch), see ``aim_kernels.AIMBlock``.
        memory: what the blocks keep for backward, "fast", "balanced" or "lean"; no value changes with it.

    Raises ValueError for sizes that cannot be, and in ``forward`` for a clip of another layout or size.
    """

    arguments: ClassVar[tuple[str, ...]] = (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_frames", "num_tadapter"),
        *("adapter_scale", "adapter_ratio", "drop_path", "num_classes", "drop_path_mode", "activation"),
        *("head_dropout", "adapters", "adapter_layers", "temporal_place", "tune", "mean", "std"),
    )

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_frames: int = 8,
        num_tadapter: int = 1,
        adapter_scale: float = 0.5,
        adapter_ratio: float = 0.25,
        drop_path: float = 0.2,
        num_classes: int = 400,
        *,
        mlp_ratio: float = 4.0,
        drop_path_mode: DropPathMode = "position",
        adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint"),
        adapter_layers: str | Sequence[int | str] = "all",
        temporal_place: TemporalPlace = "lowest",
        tune: Tune = "adapters",
        activation: Activation = "quick_gelu",
        head_dropout: float = 0.5,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
    ) -> None:
        places, layers = self.check_adaptation(adapters, adapter_layers, temporal_place, tune, depth)

        def block(drop_rate: float, number: int) -> nn.Module:
            return AIMBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                num_tadapter=num_tadapter,
                adapter_scale=adapter_scale,
                adapter_ratio=adapter_ratio,
                drop_path=drop_rate,
                drop_path_mode=drop_path_mode,
                adapters=places if number in layers else (),
                activation=activation,
                backend=backend,
                memory=memory,
            )

        super().__init__(
            block,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_frames=num_frames,
            num_classes=num_classes,
            drop_path=drop_path,
            head_dropout=head_dropout,
            mean=mean,
            std=std,
        )
        self.mlp_ratio = mlp_ratio
        self.num_tadapter = num_tadapter
        self.adapter_scale = adapter_scale
        self.adapter_ratio = adapter_ratio
        self.drop_path_mode = drop_path_mode
        self.adapters = places
        self.adapter_layers = layers
        self.temporal_place = temporal_place
        self.tune = tune
        self.reset_parameters()
        self.freeze()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        adapted = any(".S_Adapter." in name or ".T_Adapter." in name or ".MLP_Adapter." in name for name in tensors)
        if not adapted or "conv1.weight" not in tensors or not cls.has_stem_of(tensors):
            return None
        if any(".t_attn." in name for name in tensors):  # TimeSformer
            return None
        found = infer_architecture(tensors, where)
        # The published code adds the temporal embedding in the stem, wherever the adapters are.
        place = {} if 0 in found["adapter_layers"] else {"temporal_place": "stem"}
        return found | place | {"num_heads": usual_heads(found["embed_dim"])}

    @staticmethod
    def has_stem_of(tensors: Mapping[str, Tensor]) -> bool:
        """Whether a tower's stem is this model's: ends in a norm."""
        return "ln_pre.weight" in tensors
