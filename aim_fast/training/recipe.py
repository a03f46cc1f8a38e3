"""A recipe: everything that decides what a training run computes, as one flat dataclass.

Recipes come from YAML files: those shipped in `aim_fast/training/recipes/` are the published configurations (Yang et
al., ICLR 2023), and a user's own is any file with some of the same fields. A file may say `extends: NAME` and hold
only what differs. Options typed on the command line win over the file.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aim_fast.errors import UsageError, nearest

RECIPES = Path(__file__).parent / "recipes"


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Recipe:
    """One training run. Sizes are in pixels, frames and clips; rates are per optimiser step."""

    # what is trained
    model: str = _option("aim_vit_b16_clip", "model name, as `aim-fast models` lists them")
    weights: str | None = _option(
        None, "weights of the frozen trunk: a file, an open_clip or timm tag, or the word `random`"
    )
    activation: str | None = _option(None, "quick_gelu or gelu, for weights that do not say theirs")
    frames: int = _option(8, "frames a clip, T")
    img_size: int | None = _option(None, "side of the square input, pixels; the model's own when not given")
    adapters: tuple[str, ...] = _option(
        ("spatial", "temporal", "joint"), "adapters put on the trunk: any of spatial,temporal,joint, or `none`"
    )
    adapter_layers: tuple[str, ...] = _option(
        ("all",), "blocks that have adapters: all, bottom or top (half), alternate, or numbers from 0 such as 8,9,10,11"
    )
    temporal_place: str = _option(
        "lowest",
        "temporal embedding: at the lowest block with adapters, in the stem (as published), or frozen at zero",
    )
    tune: str | None = _option(None, "what trains: adapters, or all for full fine-tuning; the model's own if not given")
    num_tadapter: int = _option(1, "temporal adapters a block: 1, or 2 for one before the temporal attention as well")
    adapter_ratio: float = _option(0.25, "hidden width of an adapter as a share of the model's width")
    adapter_scale: float = _option(0.5, "factor on the joint adapter")
    prompt_prefix: int | None = _option(None, "PromptCLIP: learned positions before a class name; 16 if not given")
    prompt_postfix: int | None = _option(None, "PromptCLIP: learned positions after a class name; 16 if not given")
    temporal_layers: int | None = _option(None, "PromptCLIP: blocks over frame features; 0 for their mean")
    max_names: int | None = _option(None, "PromptCLIP: names that a training step scores at most; 400 if not given")
    drop_path: float = _option(0.2, "droppath rate of the last block; rates grow linearly from 0")
    drop_path_mode: str = _option("position", "what droppath drops: position (published), clip, or frame")
    published_freeze: bool = _option(False, "Swin: leave the temporal bias at its random start, as published")
    head: str = _option("linear", "linear: a classifier; text: class names scored by CLIP's own towers (AIM on CLIP)")
    templates: str | None = _option(None, "text head: file of prompts, one a line, {} for the class; ours if not given")
    head_dropout: float = _option(0.5, "dropout before the classifier")

    # what it is trained on
    dataset: str | None = _option(None, "data set, as `aim-fast datasets` lists them")
    data_root: str | None = _option(None, "folder of the data set")
    data_share: float = _option(1.0, "share of each class's training clips that is used, drawn by seed")
    cache: str = _option("none", "none, or frames: keep decoded frames on disk, so that epochs do not decode video")
    cache_format: str = _option("raw", "raw frames, or jpeg: a tenth of the room, levels change by about one")
    cache_dir: str | None = _option(None, "folder of the cached frames; DATA_ROOT/.aim-fast when not given",
                                    incidental=True)  # fmt: skip
    cache_gib: float = _option(0.0, "most GiB that the cached frames of a split take; 0 for no limit", incidental=True)
    read_order: str = _option(
        "shuffled", "shuffled, or shards: whole tar shards one after another, for disks slow at random access"
    )
    classes: str | None = _option(None, "these classes alone: a file of names, or how many to draw by the seed")
    shots: int = _option(0, "few-shot: training clips a class, drawn by the seed; 0 for all")
    shot_list: str | None = _option(None, "few-shot: file of the training clips, an id or path a line")
    features: str | None = _option(
        None, "folder of frozen features, written by `aim-fast features`, to read in place of videos"
    )
    cache_features: str | None = _option(
        None,
        "folder in which the frozen bottom's output is kept for every clip, to train from; needs train_view validation",
    )
    cache_dtype: str = _option("float16", "what cached features are kept in: float16, bfloat16 or float32")
    interval: int = _option(0, "frames between sampled frames; 0 spreads the frames over the whole video")
    train_view: str = _option(
        "augmented", "what is trained on: augmented, or validation: the validation view, with nothing drawn at random"
    )
    random_resized_crop: bool = _option(True, "train on one random box a clip instead of the centre")
    crop_area: tuple[float, ...] = _option((0.08, 1.0), "share of the frame's area that the random box covers")
    crop_aspect: tuple[float, ...] = _option((0.75, 1.3333333333333333), "aspect ratio of the random box")
    flip: float = _option(0.0, "probability of mirroring a clip; leave 0 where left and right are classes")
    randaugment: tuple[int, ...] = _option((), "RandAugment as `operations,magnitude`, such as 4,7; empty for none")
    color_jitter: float = _option(0.0, "standard deviation of PCA lighting noise; 0 for none")
    aug: str = _option(
        "default",
        "default; published: RandAugment with its hidden flip and crop; or timm:POLICY, as timm:rand-m9-mstd0.5-inc1",
    )
    random_erasing: float = _option(0.0, "probability of erasing one box in all frames")
    label_smoothing: float = _option(0.0, "label smoothing")
    mixup: float = _option(0.0, "mixup alpha; 0 for none")
    cutmix: float = _option(0.0, "cutmix alpha; 0 for none")

    # how it is trained
    epochs: int = _option(50, "epochs; with 0 nothing is trained and the start is saved")
    batch_size: int = _option(8, "clips a process takes at a time")
    total_batch_size: int | None = _option(
        None, "clips a step over all processes: gradients are accumulated until it is reached"
    )
    accumulate: int | None = _option(None, "batches a step, instead of what total_batch_size would give")
    lr: float = _option(3e-4, "learning rate of a step")
    backbone_lr_factor: float = _option(1.0, "factor on the learning rate of everything but the classifier")
    weight_decay: float = _option(0.05, "weight decay; norms and class and positional embeddings have none")
    betas: tuple[float, ...] = _option((0.9, 0.999), "AdamW's two decays")
    warmup_epochs: float = _option(2.5, "epochs of linear warm-up, stepped each iteration")
    warmup_factor: float = _option(0.1, "factor on the learning rate at the start of the warm-up")
    clip_norm: float = _option(0.0, "largest norm of the gradient; 0 for no limit")
    ema: float = _option(0.0, "decay of an exponential moving average of the trained tensors; 0 for none")
    seed: int = _option(0, "seed of initial values, data order and augmentation")
    backend: str = _option("fused", "fused operators, or reference: plain PyTorch")
    precision: str = _option("auto", "auto, bf16, fp16 or fp32; auto is bf16 where the device has it")

    # evaluation
    views: str = _option("1x1", "clips x crops of each video in `eval`; validation during training takes 1x1")

    random_views: bool = _option(False, "draw the frames of each view in `eval` at random, by the seed")

    # what does not change the result
    device: str = _option("auto", "auto, cpu, cuda or cuda:N", incidental=True)
    decoder: str = _option(
        "auto", "auto: the fastest on the data set's own clips, measured; or dali, or pyav", incidental=True
    )
    workers: int = _option(0, "threads and processes that decode; 0 chooses by the machine", incidental=True)
    memory: str = _option("fast", "what is kept for backward: fast, balanced or lean; slower, less", incidental=True)
    compile: bool = _option(False, "train the model through torch.compile", incidental=True)
    cuda_graph: bool = _option(
        False, "capture the training step as a CUDA graph: one GPU, bf16 or fp32", incidental=True
    )
    output: str | None = _option(None, "folder of the run; runs/DATASET-MODEL-FRAMESf when not given", incidental=True)
    eval_every: int = _option(1, "epochs between validations; 0 for none but the last", incidental=True)
    checkpoint_every: int = _option(500, "steps between checkpoints within an epoch; 0 for none", incidental=True)
    log_every: int = _option(10, "steps between lines of metrics.jsonl", incidental=True)

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed and checked again."""
        return dataclasses.replace(self, **changes)

    def to_yaml(self) -> str:
        rows = {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in dataclasses.fields(self)
        }
        return yaml.safe_dump(rows, sort_keys=False)


FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
_TYPES = typing.get_type_hints(Recipe)
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
MOST_WORKERS = 512
ADAPTERS = ("spatial", "temporal", "joint")
_CHOICES = {
    "backend": ("fused", "reference"),
    "memory": ("fast", "balanced", "lean"),
    "activation": ("quick_gelu", "gelu"),
    "train_view": ("augmented", "validation"),
    "cache_dtype": ("float16", "bfloat16", "float32"),
    "cache": ("none", "frames"),
    "decoder": ("auto", "dali", "pyav"),
    "cache_format": ("raw", "jpeg"),
    "read_order": ("shuffled", "shards"),
    "precision": PRECISIONS,
    "drop_path_mode": ("position", "clip", "frame"),
    "temporal_place": ("lowest", "stem", "frozen"),
    "tune": ("adapters", "all"),
    "head": ("linear", "text"),
}
_POSITIVE = ("frames", "num_tadapter", "batch_size", "img_size", "total_batch_size", "accumulate", "log_every")
_NOT_NEGATIVE = (
    "cache_gib", "interval", "epochs", "lr", "weight_decay", "warmup_epochs", "clip_norm", "workers", "eval_every",
    "checkpoint_every", "mixup", "cutmix", "color_jitter", "backbone_lr_factor", "warmup_factor", "seed",
    "shots",
)  # fmt: skip
_SHARE = ("drop_path", "head_dropout", "flip", "random_erasing", "label_smoothing", "ema")


def _check(recipe: Recipe) -> None:
    def refuse(name: str, must: str) -> typing.NoReturn:
        raise UsageError(f"recipe field {name}: {getattr(recipe, name)!r} must be {must}")

    for name in _POSITIVE:
        if (value := getattr(recipe, name)) is not None and value < 1:
            refuse(name, "at least 1")
    for name in _NOT_NEGATIVE:
        if getattr(recipe, name) < 0:
            refuse(name, "0 or more")
    for name in _SHARE:
        if not 0 <= getattr(recipe, name) < 1 and not (
            name in ("flip", "random_erasing") and getattr(recipe, name) == 1
        ):
            refuse(name, "from 0 to 1" if name in ("flip", "random_erasing") else "0 or more and below 1")
    for name, choices in _CHOICES.items():
        if getattr(recipe, name) not in (*choices, FIELDS[name].default):
            refuse(name, f"one of {', '.join(choices)}")
    for name in ("crop_area", "crop_aspect"):
        pair = getattr(recipe, name)
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            refuse(name, "two numbers, the smaller first")
    if recipe.aug not in ("default", "published") and not re.fullmatch(r"timm:[a-z0-9]+(-[a-z0-9.]+)*", recipe.aug):
        refuse("aug", "default, published or timm:POLICY, such as timm:rand-m9-mstd0.5-inc1")
    if recipe.aug.startswith("timm:") and recipe.randaugment:
        refuse("aug", "given without another RandAugment: add --randaugment none")
    if not 0 < recipe.data_share <= 1:
        refuse("data_share", "above 0 and at most 1")
    if recipe.cache_features and recipe.train_view != "validation":
        refuse("cache_features", "given with train_view validation: one view of a clip is kept, none drawn at random")
    if recipe.cache_features and (recipe.features or recipe.mixup or recipe.cutmix):
        refuse("cache_features", "without features, mixup and cutmix: a cache has neither pixels nor other features")
    if recipe.shots and recipe.shot_list:
        refuse("shots", "left out where shot_list names the clips")
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        refuse("betas", "two numbers from 0 to 1")
    if len(recipe.randaugment) not in (0, 2):
        refuse("randaugment", "two numbers, operations and magnitude, such as 4,7")
    if len(set(recipe.adapters)) != len(recipe.adapters):
        refuse("adapters", "each named once")
    if recipe.workers > MOST_WORKERS:
        refuse("workers", f"at most {MOST_WORKERS}")
    for adapter in recipe.adapters:
        if adapter not in ADAPTERS:
            raise UsageError(f"recipe field adapters: unknown {adapter!r}; {nearest(adapter, ADAPTERS)}")
    if not DEVICES.fullmatch(recipe.device):
        refuse("device", "auto, cpu, cuda or cuda:N")
    parse_views(recipe.views)


def parse_views(text: str) -> tuple[int, int]:
    """(clips, crops) of a text such as `1x3`. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    clips, crops = (int(match[1]), int(match[2])) if match else (0, 0)
    if clips < 1 or crops not in (1, 3):
        raise UsageError(f"views {text!r} are not CLIPSxCROPS: write for example 1x3; crops are 1 or 3")
    return clips, crops


def coerce(name: str, value: Any, where: str) -> Any:
    """The value of a recipe field from YAML or from the command line, in the field's type, or UsageError."""
    if name not in FIELDS:
        raise UsageError(f"{where}: unknown field {name!r}; {nearest(name, FIELDS)}")
    kind, optional = _TYPES[name], False
    if isinstance(kind, types.UnionType):
        kind, optional = typing.get_args(kind)[0], True
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [] if value.strip() in ("", "none") else value.split(",")
        if value is None:
            value = ()
        if not isinstance(value, (list, tuple)):
            value = [value]
        item = typing.get_args(kind)[0]
        return tuple(_scalar(item, v.strip() if isinstance(v, str) else v, name, where) for v in value)
    return _scalar(kind, value, name, where)


_KINDS = {int: "a whole number", float: "a number", bool: "yes or no (true, false)", str: "a word"}


def _scalar(kind: type, value: Any, name: str, where: str) -> Any:
    try:
        if kind is bool:
            if isinstance(value, bool):
                return value
        elif kind is str:
            if isinstance(value, (str, int)) and not isinstance(value, bool):
                return str(value)
        elif not isinstance(value, bool) and (kind is float or isinstance(value, (int, str))):
            number = kind(value)
            if math.isfinite(number):
                return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"{where}: {name} is {value!r}, not {_KINDS[kind]}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_fields(source: str | Path) -> dict[str, Any]:
    """The fields that a recipe file sets, its `extends` followed. `source` is a shipped name or a file."""
    path = Path(source)
    if str(source) in shipped_recipes():
        path = RECIPES / f"{source}.yaml"
    elif not path.suffix and not path.is_file():
        raise UsageError(
            f"recipe {str(source)!r} is neither shipped nor a file; {nearest(path.name, shipped_recipes())}"
        )
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(
            f"recipe {path}: {error.strerror}; give a readable YAML file or one of the shipped names"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"recipe {path}: not text; write one `field: value` a line") from None
    content = _read_mapping(text, f"recipe {path}")
    parent, _ = content.pop("extends", (None, 0))
    fields = read_fields(parent) if parent else {}
    return fields | {
        name: coerce(name, value, f"recipe {path}, line {line}") for name, (value, line) in content.items()
    }


def _read_mapping(text: str, where: str) -> dict[str, tuple[Any, int]]:
    """Each field of a YAML file with its value and its line, from 1. Raises UsageError with the line to be mended."""
    try:
        content = yaml.safe_load(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        line = f" at line {line}" if (line := _line_of(error)) else ""
        raise UsageError(f"{where}: not valid YAML{line}; write one `field: value` a line") from None
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where}: holds no fields; write one `field: value` a line")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(f"{where}: {key.value} is given at line {lines[key.value]} and at line {line}; keep one")
        lines[key.value] = line
    return {str(name): (value, lines.get(str(name), 1)) for name, value in content.items()}


def _line_of(error: yaml.YAMLError) -> int | None:
    """The line, from 1, that a reader has to mend: where a quote or bracket was opened that is not closed, and where
    parsing stopped otherwise (a mapping as a whole begins at the first line, which tells nothing)."""
    problem, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    opened = context if "block mapping" not in (getattr(error, "context", None) or "") else None
    mark = opened or problem or context
    return mark.line + 1 if mark else None


def default_recipe(dataset: str | None, model: str | None, frames: int | None) -> str:
    """Name of the shipped recipe that fits what was asked for: the published one where there is one."""
    name = (model or "").lower().replace("-", "")
    trunk = "l14" if any(size in name for size in ("l14", "l16", "h14", "h16", "g14", "vite14")) else "b16"
    if name.startswith("promptclip"):
        return "promptclip"
    if model and model.endswith("_demo"):
        return "demo_swin" if model == "aim_swin_demo" else "demo"
    published = {"ssv1": "ssv2", "ssv2": "ssv2", "kinetics400": "k400", "kinetics600": "k400"}
    if name.endswith("_in21k") or name.startswith("timm:"):
        if published.get(dataset or "") == "k400":
            return f"k400_in21k_b16_{frames if frames in (8, 16, 32) else 8}f"
        return "ssv2_in21k_b16_8f" if dataset in published else "finetune_in21k_b16"
    if model and model.startswith("aim_swin"):
        return f"{published.get(dataset or '', 'finetune')}_swin_b"
    if dataset in ("ssv1", "ssv2"):
        return f"ssv2_{trunk}_{frames if frames in (8, 16, 32) else 8}f"
    if dataset in ("kinetics400", "kinetics600"):
        return f"k400_{trunk}_{frames if frames in (8, 16, 32) else 8}f"
    if dataset == "kinetics700":
        return f"k700_{trunk}_{frames if frames in (8, 32) else 8}f"
    if dataset == "diving48":
        return f"diving48_{trunk}_32f"
    return f"finetune_{trunk}"


def load_recipe(source: str | Path | None, overrides: dict[str, Any]) -> Recipe:
    """A recipe from a file or shipped name (None: chosen by data set, model and frames), with `overrides` on top."""
    overrides = {name: coerce(name, value, "command line") for name, value in overrides.items()}
    if source is None:
        source = default_recipe(overrides.get("dataset"), overrides.get("model"), overrides.get("frames"))
    return Recipe(**(read_fields(source) | overrides))


def recipe_differences(saved: Recipe, asked: Recipe) -> list[str]:
    """What `asked` would compute differently from `saved`, one `name: saved -> asked` a field."""
    return [
        f"{name}: {getattr(saved, name)!r} -> {getattr(asked, name)!r}"
        for name, f in FIELDS.items()
        if not f.metadata.get("incidental")
        and name not in ("data_root", "weights", "views")
        and getattr(saved, name) != getattr(asked, name)
    ]
