"""The fields of a recipe, in groups: types, choices, ranges, defaults, and what ``--help`` says of them.

The fields of what is trained are in :mod:`aim_fast.training.part_groups`. No two groups have a field of the same name.
Sizes are in pixels, frames and clips; rates are per optimiser step.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import WrapValidator

from aim_fast.data.choices import Decoder, FeatureDtype, FrameCacheKind, ReadOrder
from aim_fast.errors import UsageError
from aim_fast.models.record import Clips
from aim_fast.training.recipe_group import Group, field, field_of, must
from aim_kernels.choices import BlockBackend, Memory

Precision = Literal["auto", "bf16", "fp16", "fp32", "fp8"]
CudaGraph = Literal["auto", "on", "off"]
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
_VIEWS = re.compile(r"\s*0*([1-9]\d*)[xX×]0*([13])\s*")
_TIMM_POLICY = re.compile(r"default|published|timm:[a-z0-9]+(-[a-z0-9.]+)*")

Span = Annotated[
    tuple[float, ...], must("two numbers, the smaller first", lambda two: len(two) == 2 and 0 < two[0] <= two[1])
]
Sides = Annotated[
    tuple[int, ...],
    must(
        "two numbers from 224 on, the smaller first, or none", lambda s: not s or (len(s) == 2 and 224 <= s[0] <= s[1])
    ),
]
Decays = Annotated[
    tuple[float, ...],
    must("two numbers from 0 to 1", lambda two: len(two) == 2 and all(0 <= beta < 1 for beta in two)),
]
Strength = Annotated[
    tuple[int, ...], must("two numbers, operations and magnitude, such as 4,7", lambda two: len(two) in (0, 2))
]
Scales = Annotated[tuple[float, ...], must("shares above 0 and up to 1, or none", lambda s: all(0 < a <= 1 for a in s))]
Jitter = Annotated[
    tuple[float, ...],
    must(
        "brightness, contrast, saturation and hue (to 0.5), such as 0.4,0.4,0.2,0.1, or none",
        lambda four: not four or (len(four) == 4 and min(four) >= 0 and four[3] <= 0.5),
    ),
]
Policy = Annotated[
    str, must("default, published or timm:POLICY, such as timm:rand-m9-mstd0.5-inc1", _TIMM_POLICY.fullmatch)
]
Views = Annotated[str, must("CLIPSxCROPS, for example 1x3; crops are 1 or 3", _VIEWS.fullmatch)]
# What takes no weight decay, in words beside patterns of names.
NO_DECAY = ("default", "norms", "biases", "vectors", "embeddings")
_FACTOR = re.compile(r"[^=\s]+=(\d+\.?\d*|\.\d+)(e-?\d+)?")
Factors = Annotated[
    tuple[str, ...],
    must("NAME=FACTOR each, such as head=10,*.ln_*=0.5", lambda words: all(map(_FACTOR.fullmatch, words))),
]
Epochs = Annotated[tuple[int, ...], must("epochs from 1, ascending", lambda e: all(a < b for a, b in zip((0, *e), e)))]
Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...],
    must("each named once", lambda words: len(set(words)) == len(words)),
]
_DURATION = re.compile(r"(?=.*\d)(?:(\d+):([0-5]\d)|(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?)")
Duration = Annotated[str, must("a time such as 1:30, hours and minutes, 90m or 2h30m", _DURATION.fullmatch)]
AUTO = "auto"  # a batch size that is to be measured
BALANCED = "balanced"  # weights of classes that their clips decide
Count = Annotated[int, WrapValidator(lambda value, whole: AUTO if value == AUTO else whole(value))]
Device = Annotated[str, must("auto, cpu, cuda or cuda:N", DEVICES.fullmatch)]


class Data(Group):
    """Which clips, which of their frames, and how they are read."""

    dataset: str | None = field(None, "data set, as `aim-fast datasets` lists them")
    data_root: str | None = field(None, "folder of the data set; of shards s3://, gs:// or http:// too")
    shard_cache_gib: float = field(64.0, "most GiB that tars from s3://, gs:// or http:// take on this disk", gt=0)
    accept_gaps: bool = field(
        False, "go on where no clip is made of a class, or of a tenth of the files, that are there"
    )
    multi_label: bool = field(
        False, "clips may have several labels, or none: each class is told on its own, scored by mean average precision"
    )
    balanced_sampling: bool = field(
        False, "draw the clips of an epoch so that every class comes equally often, those of small ones again"
    )
    data_share: float = field(1.0, "share of each class's training clips that is used, drawn by seed", gt=0, le=1)
    classes: str | None = field(None, "these classes alone: a file of names, or how many to draw by the seed")
    shots: int = field(0, "few-shot: training clips a class, drawn by the seed; 0 for all", ge=0)
    shot_list: str | None = field(None, "few-shot: file of the training clips, an id or path a line")
    frames: int = field(8, "frames a clip, T", ge=1)
    interval: int = field(0, "frames between sampled frames; 0 spreads the frames over the whole video", ge=0)
    equal_segments: bool = field(
        False, "with interval 0, segments of equal length that share no frame (TSN) instead of AIM's"
    )
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
    cache_layers: Literal["lower", "all"] | None = field(
        None,
        "of a network beside the trunk cache_features keeps the input of the lowest block that it reads (lower), or "
        "all that it reads, and no block runs again; lower if not given, where a block is below",
    )
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
    crop_short_side: Sides = field(
        (),
        "short side, drawn from such as 224,258, of which a square of 224 is cropped anywhere, not the random box",
    )
    crop_scales: Scales = field(
        (),
        "multi-scale crop (TSN): shares of the short side such as 1,0.875,0.75,0.66 for the box's sides, at one of 13 "
        "places, not the random box",
    )
    flip: float = field(
        0.0,
        "probability of mirroring a clip; leave 0 where left and right are classes, or add flip_labels",
        ge=0,
        le=1,
    )
    flip_labels: bool = field(False, "a mirrored clip has the class whose name says right for left and left for right")
    randaugment: Strength = field((), "RandAugment as `operations,magnitude`, such as 4,7; empty for none")
    color_jitter: float = field(0.0, "standard deviation of PCA lighting noise; 0 for none", ge=0)
    jitter: Jitter = field(
        (), "colour jitter as torchvision's: brightness, contrast, saturation and hue, such as 0.4,0.4,0.2,0.1"
    )
    jitter_prob: float = field(1.0, "probability of that colour jitter", ge=0, le=1)
    grayscale: float = field(0.0, "probability of taking the colour out of a clip", ge=0, le=1)
    aug: Policy = field(
        "default",
        "default; published: RandAugment with its hidden flip and crop; or timm:POLICY, as timm:rand-m9-mstd0.5-inc1",
    )
    random_erasing: float = field(0.0, "probability of erasing one box in all frames", ge=0, le=1)
    aug_repeats: int = field(
        1, "samples of each clip in a step, of the same frames, augmented apart (repeated augmentation)", ge=1, le=16
    )
    label_smoothing: float = field(0.0, "label smoothing", ge=0, lt=1)
    mixup: float = field(0.0, "mixup alpha; 0 for none", ge=0)
    cutmix: float = field(0.0, "cutmix alpha; 0 for none", ge=0)


class Optimisation(Group):
    """How long, in which steps, and at which rates."""

    epochs: int = field(50, "epochs; with 0 nothing is trained and the start is saved", ge=0)
    batch_size: Count = field(8, "clips a process takes at a time; auto: the most that fit, measured", ge=1)
    total_batch_size: int | None = field(
        None, "clips a step over all processes: gradients are accumulated until it is reached", ge=1
    )
    accumulate: int | None = field(None, "batches a step, instead of what total_batch_size would give", ge=1)
    lr: float = field(3e-4, "learning rate of a step", ge=0)
    backbone_lr_factor: float = field(1.0, "factor on the learning rate of everything but the classifier", ge=0)
    lr_factors: Factors = field(
        (),
        "learning-rate factors NAME=FACTOR of trunk, head, method, or patterns of parameter names such as *.ln_*=0.1; "
        "the first that fits; before the method's own",
    )
    layer_decay: float = field(
        1.0, "factor on the learning rate of each block beside the one above it, for training a trunk whole", gt=0, le=1
    )
    class_weights: str | None = field(
        None, "weights of the classes in the loss: balanced, by their clips, or a file with `CLASS WEIGHT` lines"
    )
    optimizer: Literal["adamw", "sgd"] = field("adamw", "adamw, or sgd with momentum")
    momentum: float = field(0.9, "SGD's momentum", ge=0, lt=1)
    weight_decay: float = field(0.05, "weight decay; norms and class and positional embeddings have none", ge=0)
    no_decay: tuple[str, ...] = field(
        ("default",),
        "what has no weight decay: default (what trunk and method say), norms, biases, vectors (all of one dimension), "
        "embeddings, patterns of parameter names, or none",
    )
    betas: Decays = field((0.9, 0.999), "AdamW's two decays")
    warmup_epochs: float = field(2.5, "epochs of linear warm-up, stepped each iteration", ge=0)
    warmup_factor: float = field(0.1, "factor on the learning rate at the start of the warm-up", ge=0)
    schedule: Literal["epochs", "steps", "drops"] = field(
        "epochs", "cosine: stepped in epochs from the start (AIM), or in steps from the warm-up's end; or drops"
    )
    min_lr: float = field(0.0, "where the cosine ends", ge=0)
    lr_drops: Epochs = field((), "epochs at which the learning rate falls to a tenth, with schedule drops")
    clip_norm: float = field(0.0, "largest norm of the gradient; 0 for no limit", ge=0)
    ema: float = field(0.0, "decay of an exponential moving average of the trained tensors; 0 for none", ge=0, lt=1)
    patience: int = field(0, "validations without a better one after which training ends; 0 for never", ge=0)
    patience_metric: Literal["top1", "top5", "mean_class", "map", "loss"] | None = field(
        None,
        "what counts as better: top1, top5, mean_class, map or loss; what picks the best checkpoint if not given",
    )


class Distillation(Group):
    """A trained model that is learned from."""

    teacher: str | None = field(None, "run or checkpoint to learn from as well, of the same classes and frames")
    distill_weight: float = field(0.5, "share of the loss that is the teacher's, the rest the labels'", gt=0, le=1)
    distill_temperature: float = field(4.0, "temperature that softens both models' scores for it", gt=0)


class Evaluation(Group):
    """What a trained model is scored on."""

    views: Views = field("1x1", "clips x crops of each video in `eval`; validation during training takes 1x1")
    view_starts: Literal["middles", "ends"] = field(
        "middles", "frames at an interval: views at the middles of equal parts (AIM), or from one end to the other"
    )
    random_views: bool = field(False, "draw the frames of each view in `eval` at random, by the seed")


class Run(Group):
    """Where a run computes, how, and what it writes."""

    seed: int = field(0, "seed of initial values, data order and augmentation", ge=0)
    device: Device = field("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = field(
        "auto",
        "auto, bf16, fp16, fp32, or fp8: bf16 with the frozen trunk's products in fp8, on GPUs from compute capability "
        "8.9 up; auto is bf16 where the device has it",
    )
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
    time_limit: Duration | None = field(
        None, "stop after this time, such as 1:30 (hours and minutes) or 90m, saved to go on with --resume"
    )
    tracker: Trackers = field(
        ("tensorboard",), "where the lines go besides, some of tensorboard, wandb, mlflow, trackio; or none"
    )


def parse_views(text: str) -> tuple[int, int]:
    """(clips, crops) of a text such as ``1x3``. Raises UsageError for anything else."""
    if match := _VIEWS.fullmatch(text):
        return int(match[1]), int(match[2])
    raise UsageError(f"views {text!r} are not CLIPSxCROPS: write for example 1x3; crops are 1 or 3")


def seconds_of(duration: str) -> float:
    """Seconds of a time such as ``1:30`` (hours and minutes), ``90m``, ``2h30m`` or ``45s``."""
    match = _DURATION.fullmatch(duration)
    hours, minutes, h, m, s = (int(part or 0) for part in (match.groups() if match else ()))
    return 3600.0 * (hours + h) + 60.0 * (minutes + m) + s
