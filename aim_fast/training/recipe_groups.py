"""The fields of a recipe, in groups: types, choices, ranges, defaults, and what ``--help`` says of them.

The fields of what is trained are in :mod:`aim_fast.training.part_groups`. No two groups have a field of the same name.
Sizes are in pixels, frames and clips; rates are per optimiser step.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from aim_fast.data.choices import Decoder, FeatureDtype, FrameCacheKind, ReadOrder
from aim_fast.errors import UsageError
from aim_fast.models.record import Clips
from aim_fast.training.recipe_group import Group, field, field_of, must
from aim_kernels.choices import BlockBackend, Memory

Precision = Literal["auto", "bf16", "fp16", "fp32"]
CudaGraph = Literal["auto", "on", "off"]
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
_VIEWS = re.compile(r"\s*0*([1-9]\d*)[xX×]0*([13])\s*")
_TIMM_POLICY = re.compile(r"default|published|timm:[a-z0-9]+(-[a-z0-9.]+)*")

Span = Annotated[
    tuple[float, ...], must("two numbers, the smaller first", lambda two: len(two) == 2 and 0 < two[0] <= two[1])
]
Decays = Annotated[
    tuple[float, ...],
    must("two numbers from 0 to 1", lambda two: len(two) == 2 and all(0 <= beta < 1 for beta in two)),
]
Strength = Annotated[
    tuple[int, ...], must("two numbers, operations and magnitude, such as 4,7", lambda two: len(two) in (0, 2))
]
Policy = Annotated[
    str, must("default, published or timm:POLICY, such as timm:rand-m9-mstd0.5-inc1", _TIMM_POLICY.fullmatch)
]
Views = Annotated[str, must("CLIPSxCROPS, for example 1x3; crops are 1 or 3", _VIEWS.fullmatch)]
Device = Annotated[str, must("auto, cpu, cuda or cuda:N", DEVICES.fullmatch)]


class Data(Group):
    """Which clips, which of their frames, and how they are read."""

    dataset: str | None = field(None, "data set, as `aim-fast datasets` lists them")
    data_root: str | None = field(None, "folder of the data set")
    accept_gaps: bool = field(
        False, "go on where no clip is made of a class, or of a tenth of the files, that are there"
    )
    data_share: float = field(1.0, "share of each class's training clips that is used, drawn by seed", gt=0, le=1)
    classes: str | None = field(None, "these classes alone: a file of names, or how many to draw by the seed")
    shots: int = field(0, "few-shot: training clips a class, drawn by the seed; 0 for all", ge=0)
    shot_list: str | None = field(None, "few-shot: file of the training clips, an id or path a line")
    frames: int = field(8, "frames a clip, T", ge=1)
    interval: int = field(0, "frames between sampled frames; 0 spreads the frames over the whole video", ge=0)
    cache: Literal["none", "frames"] = field(
        "none", "none, or frames: keep decoded frames on disk, so that epochs do not decode video"
    )
    cache_format: FrameCacheKind = field("raw", "raw frames, or jpeg: a tenth of the room, levels change by about one")
    cache_dir: str | None = field(None, "folder of the cached frames; DATA_ROOT/.aim-fast when not given")
    cache_gib: float = field(0.0, "most GiB that the cached frames of a split take; 0 for no limit", ge=0)
    read_order: ReadOrder = field(
        "shuffled", "shuffled, or shards: whole tar shards one after another, for disks slow at random access"
    )
    features: str | None = field(
        None, "folder of frozen features, written by `aim-fast features`, to read in place of videos"
    )
    cache_features: str | None = field(
        None,
        "folder in which the frozen bottom's output is kept for every clip, to train from; needs train_view validation",
    )
    cache_dtype: FeatureDtype = field("float16", "what cached features are kept in: float16, bfloat16 or float32")
    decoder: Decoder = field("auto", "auto: the fastest on the data set's own clips, measured; or dali, or pyav")
    workers: int = field(0, "threads and processes that decode; 0 chooses by the machine", ge=0, le=512)


class Augmentation(Group):
    """What is drawn at random of a training clip."""

    train_view: Literal["augmented", "validation"] = field(
        "augmented", "what is trained on: augmented, or validation: the validation view, with nothing drawn at random"
    )
    random_resized_crop: bool = field(True, "train on one random box a clip instead of the centre")
    crop_area: Span = field((0.08, 1.0), "share of the frame's area that the random box covers")
    crop_aspect: Span = field((0.75, 1.3333333333333333), "aspect ratio of the random box")
    flip: float = field(0.0, "probability of mirroring a clip; leave 0 where left and right are classes", ge=0, le=1)
    randaugment: Strength = field((), "RandAugment as `operations,magnitude`, such as 4,7; empty for none")
    color_jitter: float = field(0.0, "standard deviation of PCA lighting noise; 0 for none", ge=0)
    aug: Policy = field(
        "default",
        "default; published: RandAugment with its hidden flip and crop; or timm:POLICY, as timm:rand-m9-mstd0.5-inc1",
    )
    random_erasing: float = field(0.0, "probability of erasing one box in all frames", ge=0, le=1)
    label_smoothing: float = field(0.0, "label smoothing", ge=0, lt=1)
    mixup: float = field(0.0, "mixup alpha; 0 for none", ge=0)
    cutmix: float = field(0.0, "cutmix alpha; 0 for none", ge=0)


class Optimisation(Group):
    """How long, in which steps, and at which rates."""

    epochs: int = field(50, "epochs; with 0 nothing is trained and the start is saved", ge=0)
    batch_size: int = field(8, "clips a process takes at a time", ge=1)
    total_batch_size: int | None = field(
        None, "clips a step over all processes: gradients are accumulated until it is reached", ge=1
    )
    accumulate: int | None = field(None, "batches a step, instead of what total_batch_size would give", ge=1)
    lr: float = field(3e-4, "learning rate of a step", ge=0)
    backbone_lr_factor: float = field(1.0, "factor on the learning rate of everything but the classifier", ge=0)
    weight_decay: float = field(0.05, "weight decay; norms and class and positional embeddings have none", ge=0)
    betas: Decays = field((0.9, 0.999), "AdamW's two decays")
    warmup_epochs: float = field(2.5, "epochs of linear warm-up, stepped each iteration", ge=0)
    warmup_factor: float = field(0.1, "factor on the learning rate at the start of the warm-up", ge=0)
    schedule: Literal["epochs", "steps"] = field(
        "epochs", "cosine: stepped in epochs from the start (AIM), or in steps from the warm-up's end"
    )
    clip_norm: float = field(0.0, "largest norm of the gradient; 0 for no limit", ge=0)
    ema: float = field(0.0, "decay of an exponential moving average of the trained tensors; 0 for none", ge=0, lt=1)


class Evaluation(Group):
    """What a trained model is scored on."""

    views: Views = field("1x1", "clips x crops of each video in `eval`; validation during training takes 1x1")
    random_views: bool = field(False, "draw the frames of each view in `eval` at random, by the seed")


class Run(Group):
    """Where a run computes, how, and what it writes."""

    seed: int = field(0, "seed of initial values, data order and augmentation", ge=0)
    device: Device = field("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = field("auto", "auto, bf16, fp16 or fp32; auto is bf16 where the device has it")
    backend: BlockBackend = field_of(Clips, "backend")[1]  # type: ignore[assignment]
    memory: Memory = field_of(Clips, "memory")[1]  # type: ignore[assignment]
    compile: bool = field(False, "train the model through torch.compile")
    cuda_graph: CudaGraph = field(
        "auto", "capture the training step as CUDA graphs: on, off, or auto: on a GPU where it is measured to be faster"
    )
    kernels: Literal["tuned", "committed"] = field(
        "tuned",
        "on a GPU the fastest right kernels, measured at the first start there; or committed: the same anywhere",
    )
    output: str | None = field(None, "folder of the run; runs/DATASET-MODEL-FRAMESf when not given")
    eval_every: int = field(1, "epochs between validations; 0 for none but the last", ge=0)
    checkpoint_every: int = field(500, "steps between checkpoints within an epoch; 0 for none", ge=0)
    log_every: int = field(10, "steps between lines of metrics.jsonl", ge=1)


def parse_views(text: str) -> tuple[int, int]:
    """(clips, crops) of a text such as ``1x3``. Raises UsageError for anything else."""
    if match := _VIEWS.fullmatch(text):
        return int(match[1]), int(match[2])
    raise UsageError(f"views {text!r} are not CLIPSxCROPS: write for example 1x3; crops are 1 or 3")
