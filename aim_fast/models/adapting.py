"""Arguments of AIM, of which other methods and trunks have some too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.choices import TemporalPlace, Tune
from aim_fast.models.record import Record, argument
from aim_kernels.choices import AdapterPlace, DropPathMode


@dataclass(frozen=True)
class Adapting(Record):
    """Where adapters are, how wide, and what trains.

    Args:
        tune: "adapters", or "all" for full fine-tuning.
        drop_path: droppath rate of the last block; rates grow linearly from 0 at the first.
        drop_path_mode: "position" (published code on CLIP), "frame" (on ImageNet's ViT) or "clip" (paper), see
            ``aim_kernels.DropPath``.
        adapters: which of "spatial", "temporal", "joint" a block has (the ablation rungs).
        adapter_layers: which blocks have them: "all", "bottom" or "top" (half), "alternate", or numbers from 0. Blocks
            below the lowest are plain frozen blocks: no gradient is computed and nothing is kept there.
        temporal_place: where ``temporal_embedding`` is added: "lowest" to the input of the lowest block with adapters
            (the stem, where that is block 0), or "stem" always, as the published code does, which then needs a
            gradient through every block; "frozen" leaves it at zero.
        num_tadapter: 1, or 2 for an adapter before temporal attention too (Something-Something v2).
        adapter_ratio: hidden units of an adapter per channel.
        adapter_scale: factor of the joint adapter: 0.5 on Kinetics and Diving-48, 1 on Something-Something v2.
    """

    heading: ClassVar[str] = "AIM"

    tune: Tune = argument(
        "adapters",
        "what trains: adapters, or all for full fine-tuning; the model's own if not given",
        shared=True,
        unset=True,
    )
    drop_path: float = argument(
        0.2,
        "droppath rate of the last block; rates grow linearly from 0",
        shared=True,
        structure=False,
        alike=True,
        ge=0,
        lt=1,
    )
    drop_path_mode: DropPathMode = argument(
        "position", "what droppath drops: position (published), clip, or frame", shared=True, structure=False
    )
    adapters: Collection[AdapterPlace] = argument(
        ("spatial", "temporal", "joint"),
        "adapters put on the trunk: any of spatial,temporal,joint, or `none`",
        alike=True,
    )
    adapter_layers: str | Sequence[int | str] = argument(
        "all", "blocks that have adapters: all, bottom or top (half), alternate, or numbers from 0 such as 8,9,10,11"
    )
    temporal_place: TemporalPlace = argument(
        "lowest",
        "temporal embedding: at the lowest block with adapters, in the stem (as published), or frozen at zero",
        structure=False,
    )
    num_tadapter: int = argument(
        1,
        "temporal adapters a block: 1, or 2 for one before the temporal attention as well",
        alike=True,
        ge=1,
    )
    adapter_ratio: float = argument(0.25, "hidden width of an adapter as a share of the model's width", alike=True)
    adapter_scale: float = argument(0.5, "factor on the joint adapter", told=False, structure=False, alike=True)
