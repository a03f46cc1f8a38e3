"""The fields of a recipe, in groups: types, choices, ranges, defaults, and what ``--help`` says of them.

A field that one method alone reads is in that method's group. No two groups have a field of the same name. Sizes are in
pixels, frames and clips; rates are per optimiser step. What is refused raises pydantic's ``ValidationError``, of which
:mod:`aim_fast.training.recipe` makes one line.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from aim_fast.data.choices import Decoder, FeatureDtype, FrameCacheKind, ReadOrder
from aim_fast.errors import UsageError
from aim_fast.models.choices import Head, Method, TemporalPlace, Tune
from aim_kernels.choices import Activation, AdapterPlace, BlockBackend, DropPathMode, Memory

Precision = Literal["auto", "bf16", "fp16", "fp32"]
CudaGraph = Literal["auto", "on", "off"]
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
_VIEWS = re.compile(r"\s*0*([1-9]\d*)[xX×]0*([13])\s*")
_TIMM_POLICY = re.compile(r"default|published|timm:[a-z0-9]+(-[a-z0-9.]+)*")


def refused(must: str, value: Any, name: str | None = None) -> PydanticCustomError:
    """What a check raises: ``value``, of field ``name`` where several are checked, ``must`` be otherwise."""
    return PydanticCustomError("must", "{must}", {"must": must, "value": value, **({"name": name} if name else {})})


def _must(be: str, holds: Callable[[Any], Any]) -> AfterValidator:
    """A check of one field; ``be`` ends the sentence "... must be"."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise refused(be, value)
        return value

    return AfterValidator(check)


Span = Annotated[
    tuple[float, ...], _must("two numbers, the smaller first", lambda two: len(two) == 2 and 0 < two[0] <= two[1])
]
Decays = Annotated[
    tuple[float, ...],
    _must("two numbers from 0 to 1", lambda two: len(two) == 2 and all(0 <= beta < 1 for beta in two)),
]
Strength = Annotated[
    tuple[int, ...], _must("two numbers, operations and magnitude, such as 4,7", lambda two: len(two) in (0, 2))
]
Places = Annotated[tuple[AdapterPlace, ...], _must("each named once", lambda words: len(set(words)) == len(words))]
Policy = Annotated[
    str, _must("default, published or timm:POLICY, such as timm:rand-m9-mstd0.5-inc1", _TIMM_POLICY.fullmatch)
]
Views = Annotated[str, _must("CLIPSxCROPS, for example 1x3; crops are 1 or 3", _VIEWS.fullmatch)]
Device = Annotated[str, _must("auto, cpu, cuda or cuda:N", DEVICES.fullmatch)]


def kind_of(field: FieldInfo) -> tuple[type, bool]:
    """Of a field's values, or of the items of a list: int, float, bool or str; and whether it is a list."""
    kind: Any = field.annotation
    if types.NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    listed = typing.get_origin(kind) is tuple
    if listed:
        kind = typing.get_args(kind)[0]
    return (str if typing.get_origin(kind) is Literal else kind), listed


def is_switch(field: FieldInfo) -> bool:
    """Whether ``on`` and ``off`` are among its words: YAML reads them as yes and no."""
    return {"on", "off"} <= set(typing.get_args(field.annotation))


def _field(default: Any, help: str, **limits: float) -> Any:
    return Field(default, description=help, **limits)  # type: ignore[call-overload]


class Group(BaseModel):
    """Fields that belong together, each in its type, its choices and its range."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: Any) -> Any:
        """A list may be written ``a,b`` or ``none``, or be its only item; yes and no are on and off, and no numbers."""
        field = cls.model_fields[info.field_name]
        kind, listed = kind_of(field)
        if isinstance(value, bool) and is_switch(field):
            return "on" if value else "off"
        if listed and isinstance(value, str):
            value = [] if value.strip() in ("", "none") else [word.strip() for word in value.split(",")]
        elif listed and not isinstance(value, (list, tuple)):
            value = [] if value is None else [value]
        if kind is not bool and any(isinstance(one, bool) for one in (value if listed else [value])):
            raise PydanticCustomError("kind", "a yes or no")
        return value


class Model(Group):
    """What is trained."""

    model: str = _field("aim_vit_b16_clip", "model name, as `aim-fast models` lists them")
    weights: str | None = _field(
        None, "weights of the frozen trunk: a file, a folder, an open_clip or timm tag, or the word `random`"
    )
    weights_key: str | None = _field(
        None, "entry of the weights' file that is taken, where it holds several, such as model_ema"
    )
    activation: Activation | None = _field(None, "quick_gelu, gelu or gelu_tanh, for weights that do not say theirs")
    img_size: int | None = _field(None, "side of the square input, pixels; the model's own when not given", ge=1)
    tune: Tune | None = _field(None, "what trains: adapters, or all for full fine-tuning; the model's own if not given")
    drop_path: float = _field(0.2, "droppath rate of the last block; rates grow linearly from 0", ge=0, lt=1)
    drop_path_mode: DropPathMode = _field("position", "what droppath drops: position (published), clip, or frame")
    method: Method | None = _field(
        None,
        "what is put on the trunk: aim, probe, full, timesformer or promptclip; the model's own if not given",
    )
    head: Head = _field(
        "linear",
        "linear: a classifier; text: class names scored by CLIP's towers; attentive: a query over all tokens",
    )
    head_dropout: float = _field(0.5, "dropout before the classifier", ge=0, lt=1)


class AIM(Group):
    """The adapters of AIM, on any trunk."""

    adapters: Places = _field(
        ("spatial", "temporal", "joint"), "adapters put on the trunk: any of spatial,temporal,joint, or `none`"
    )
    adapter_layers: tuple[str, ...] = _field(
        ("all",), "blocks that have adapters: all, bottom or top (half), alternate, or numbers from 0 such as 8,9,10,11"
    )
    temporal_place: TemporalPlace = _field(
        "lowest", "temporal embedding: at the lowest block with adapters, in the stem (as published), or frozen at zero"
    )
    num_tadapter: int = _field(
        1, "temporal adapters a block: 1, or 2 for one before the temporal attention as well", ge=1
    )
    adapter_ratio: float = _field(0.25, "hidden width of an adapter as a share of the model's width")
    adapter_scale: float = _field(0.5, "factor on the joint adapter")


class Swin(Group):
    """What AIM on Swin alone reads."""

    published_freeze: bool = _field(False, "Swin: leave the temporal bias at its random start, as published")


class PromptCLIP(Group):
    """What PromptCLIP alone reads."""

    prompt_prefix: int | None = _field(None, "PromptCLIP: learned positions before a class name; 16 if not given")
    prompt_postfix: int | None = _field(None, "PromptCLIP: learned positions after a class name; 16 if not given")
    temporal_layers: int | None = _field(None, "PromptCLIP: blocks over frame features; 0 for their mean")
    max_names: int | None = _field(None, "PromptCLIP: names that a training step scores at most; 400 if not given")


class TextHead(Group, title="Text head"):
    """What the text head alone reads."""

    templates: str | None = _field(None, "text head: file of prompts, one a line, {} for the class; ours if not given")


class Data(Group):
    """Which clips, which of their frames, and how they are read."""

    dataset: str | None = _field(None, "data set, as `aim-fast datasets` lists them")
    data_root: str | None = _field(None, "folder of the data set")
    accept_gaps: bool = _field(
        False, "go on where no clip is made of a class, or of a tenth of the files, that are there"
    )
    data_share: float = _field(1.0, "share of each class's training clips that is used, drawn by seed", gt=0, le=1)
    classes: str | None = _field(None, "these classes alone: a file of names, or how many to draw by the seed")
    shots: int = _field(0, "few-shot: training clips a class, drawn by the seed; 0 for all", ge=0)
    shot_list: str | None = _field(None, "few-shot: file of the training clips, an id or path a line")
    frames: int = _field(8, "frames a clip, T", ge=1)
    interval: int = _field(0, "frames between sampled frames; 0 spreads the frames over the whole video", ge=0)
    cache: Literal["none", "frames"] = _field(
        "none", "none, or frames: keep decoded frames on disk, so that epochs do not decode video"
    )
    cache_format: FrameCacheKind = _field("raw", "raw frames, or jpeg: a tenth of the room, levels change by about one")
    cache_dir: str | None = _field(None, "folder of the cached frames; DATA_ROOT/.aim-fast when not given")
    cache_gib: float = _field(0.0, "most GiB that the cached frames of a split take; 0 for no limit", ge=0)
    read_order: ReadOrder = _field(
        "shuffled", "shuffled, or shards: whole tar shards one after another, for disks slow at random access"
    )
    features: str | None = _field(
        None, "folder of frozen features, written by `aim-fast features`, to read in place of videos"
    )
    cache_features: str | None = _field(
        None,
        "folder in which the frozen bottom's output is kept for every clip, to train from; needs train_view validation",
    )
    cache_dtype: FeatureDtype = _field("float16", "what cached features are kept in: float16, bfloat16 or float32")
    decoder: Decoder = _field("auto", "auto: the fastest on the data set's own clips, measured; or dali, or pyav")
    workers: int = _field(0, "threads and processes that decode; 0 chooses by the machine", ge=0, le=512)


class Augmentation(Group):
    """What is drawn at random of a training clip."""

    train_view: Literal["augmented", "validation"] = _field(
        "augmented", "what is trained on: augmented, or validation: the validation view, with nothing drawn at random"
    )
    random_resized_crop: bool = _field(True, "train on one random box a clip instead of the centre")
    crop_area: Span = _field((0.08, 1.0), "share of the frame's area that the random box covers")
    crop_aspect: Span = _field((0.75, 1.3333333333333333), "aspect ratio of the random box")
    flip: float = _field(0.0, "probability of mirroring a clip; leave 0 where left and right are classes", ge=0, le=1)
    randaugment: Strength = _field((), "RandAugment as `operations,magnitude`, such as 4,7; empty for none")
    color_jitter: float = _field(0.0, "standard deviation of PCA lighting noise; 0 for none", ge=0)
    aug: Policy = _field(
        "default",
        "default; published: RandAugment with its hidden flip and crop; or timm:POLICY, as timm:rand-m9-mstd0.5-inc1",
    )
    random_erasing: float = _field(0.0, "probability of erasing one box in all frames", ge=0, le=1)
    label_smoothing: float = _field(0.0, "label smoothing", ge=0, lt=1)
    mixup: float = _field(0.0, "mixup alpha; 0 for none", ge=0)
    cutmix: float = _field(0.0, "cutmix alpha; 0 for none", ge=0)


class Optimisation(Group):
    """How long, in which steps, and at which rates."""

    epochs: int = _field(50, "epochs; with 0 nothing is trained and the start is saved", ge=0)
    batch_size: int = _field(8, "clips a process takes at a time", ge=1)
    total_batch_size: int | None = _field(
        None, "clips a step over all processes: gradients are accumulated until it is reached", ge=1
    )
    accumulate: int | None = _field(None, "batches a step, instead of what total_batch_size would give", ge=1)
    lr: float = _field(3e-4, "learning rate of a step", ge=0)
    backbone_lr_factor: float = _field(1.0, "factor on the learning rate of everything but the classifier", ge=0)
    weight_decay: float = _field(0.05, "weight decay; norms and class and positional embeddings have none", ge=0)
    betas: Decays = _field((0.9, 0.999), "AdamW's two decays")
    warmup_epochs: float = _field(2.5, "epochs of linear warm-up, stepped each iteration", ge=0)
    warmup_factor: float = _field(0.1, "factor on the learning rate at the start of the warm-up", ge=0)
    clip_norm: float = _field(0.0, "largest norm of the gradient; 0 for no limit", ge=0)
    ema: float = _field(0.0, "decay of an exponential moving average of the trained tensors; 0 for none", ge=0, lt=1)


class Evaluation(Group):
    """What a trained model is scored on."""

    views: Views = _field("1x1", "clips x crops of each video in `eval`; validation during training takes 1x1")
    random_views: bool = _field(False, "draw the frames of each view in `eval` at random, by the seed")


class Run(Group):
    """Where a run computes, how, and what it writes."""

    seed: int = _field(0, "seed of initial values, data order and augmentation", ge=0)
    device: Device = _field("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = _field("auto", "auto, bf16, fp16 or fp32; auto is bf16 where the device has it")
    backend: BlockBackend = _field("fused", "fused operators, or reference: plain PyTorch")
    memory: Memory = _field("fast", "what is kept for backward: fast, balanced or lean; slower, less")
    compile: bool = _field(False, "train the model through torch.compile")
    cuda_graph: CudaGraph = _field(
        "auto", "capture the training step as CUDA graphs: on, off, or auto: on a GPU where it is measured to be faster"
    )
    output: str | None = _field(None, "folder of the run; runs/DATASET-MODEL-FRAMESf when not given")
    eval_every: int = _field(1, "epochs between validations; 0 for none but the last", ge=0)
    checkpoint_every: int = _field(500, "steps between checkpoints within an epoch; 0 for none", ge=0)
    log_every: int = _field(10, "steps between lines of metrics.jsonl", ge=1)


def parse_views(text: str) -> tuple[int, int]:
    """(clips, crops) of a text such as ``1x3``. Raises UsageError for anything else."""
    if match := _VIEWS.fullmatch(text):
        return int(match[1]), int(match[2])
    raise UsageError(f"views {text!r} are not CLIPSxCROPS: write for example 1x3; crops are 1 or 3")
