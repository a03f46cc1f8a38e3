"""A recipe: everything that decides what a training run computes, as groups of fields: ``recipe.optimisation.lr``.

A field has one name, the same in files, on the command line and here, unique over the groups: so ``replace(lr=1e-3)``,
``--lr`` and a file without groups know which is meant. What :mod:`aim_fast.training.recipe_groups` refuses becomes one
line here, a ``UsageError``. Files are read by :mod:`aim_fast.training.recipe_file`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from aim_fast.data.storage.address import is_address, shown
from aim_fast.errors import UsageError, nearest
from aim_fast.training.part_groups import Parts
from aim_fast.training.recipe_group import Group, kind_of, refused
from aim_fast.training.recipe_groups import Augmentation, Data, Distillation, Evaluation, Optimisation, Run


class Recipe(Parts):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    data: Data = Field(default_factory=Data)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    optimisation: Optimisation = Field(default_factory=Optimisation)
    distillation: Distillation = Field(default_factory=Distillation)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    run: Run = Field(default_factory=Run)

    @classmethod
    def of(cls, fields: Mapping[str, Any], places: Mapping[str, str] = types.MappingProxyType({})) -> Recipe:
        """From fields by their names alone; ``places`` say of a field where it was given, for what is refused.

        Raises UsageError for an unknown field, for a value that cannot be, and for fields that contradict each other.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            groups.setdefault(group_of(name, places.get(name, "recipe")), {})[name] = value
        try:
            return cls.model_validate(groups)
        except ValidationError as error:
            raise _refusal(error, places) from None

    def fields(self) -> dict[str, Any]:
        """Every field by its name."""
        return {name: value for group in GROUPS for name, value in getattr(self, group)}

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed and checked again."""
        return Recipe.of(self.fields() | changes)

    def to_yaml(self) -> str:
        """All fields, an address without its secrets."""
        fields = self.model_dump(mode="json")
        if is_address(root := fields["data"]["data_root"]):
            fields["data"]["data_root"] = shown(root)
        return yaml.safe_dump(fields, sort_keys=False)

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        data, augmentation = self.data, self.augmentation
        if augmentation.aug.startswith("timm:") and augmentation.randaugment:
            raise refused("given without another RandAugment: add --randaugment none", augmentation.aug, "aug")
        if augmentation.crop_scales and augmentation.crop_short_side:
            raise refused(
                "given without crop_short_side: both say what is cropped", augmentation.crop_scales, "crop_scales"
            )
        if (repeats := augmentation.aug_repeats) > 1 and (data.features or augmentation.train_view == "validation"):
            raise refused("1 where nothing is drawn at random: all samples would be one", repeats, "aug_repeats")
        if (kept := data.cache_features) and augmentation.train_view != "validation":
            must = "given with train_view validation: one view of a clip is kept, none drawn at random"
            raise refused(must, kept, "cache_features")
        if kept and (data.features or augmentation.mixup or augmentation.cutmix):
            must = "without features, mixup and cutmix: a cache has neither pixels nor other features"
            raise refused(must, kept, "cache_features")
        if data.cache_layers and not kept:
            raise refused("given with cache_features, the folder of what is kept", data.cache_layers, "cache_layers")
        optimisation = self.optimisation
        if (drops := optimisation.lr_drops) and optimisation.schedule != "drops":
            raise refused("given with schedule drops", drops, "lr_drops")
        if optimisation.min_lr > optimisation.lr:
            raise refused(f"at most lr, {optimisation.lr:g}", optimisation.min_lr, "min_lr")
        if data.shots and data.shot_list:
            raise refused("left out where shot_list names the clips", data.shots, "shots")
        if data.balanced_sampling and data.read_order == "shards":
            raise refused("left out with read_order shards, which reads clips as they lie", True, "balanced_sampling")
        if (teacher := self.distillation.teacher) and (kept or data.features):
            must = "left out with features and cache_features: a teacher sees pixels, and they keep none"
            raise refused(must, teacher, "teacher")
        if data.multi_label and (augmentation.mixup or augmentation.cutmix):
            must = "left out with mixup and cutmix, which mix one label a clip: give --mixup 0 --cutmix 0"
            raise refused(must, True, "multi_label")
        if data.multi_label and augmentation.flip_labels:
            raise refused("left out with multi_label, where a clip has no one class to swap", True, "flip_labels")
        if data.multi_label and data.shots:
            raise refused("0 with multi_label, where a clip is one of several classes", data.shots, "shots")
        if (metric := optimisation.patience_metric) and not optimisation.patience:
            raise refused("given with patience", metric, "patience_metric")
        if metric and metric != "loss" and (metric == "map") != data.multi_label:
            kinds = "map or loss with multi_label, else top1, top5, mean_class or loss"
            raise refused(kinds, metric, "patience_metric")
        return self


GROUPS: dict[str, type[Group]] = {name: field.annotation for name, field in Recipe.model_fields.items()}  # type: ignore[misc]
FIELDS: dict[str, FieldInfo] = {name: field for group in GROUPS.values() for name, field in group.model_fields.items()}
_GROUP_OF = {name: key for key, group in GROUPS.items() for name in group.model_fields}
# What may differ between a run and its continuation: places and speed, not what is computed.
_SAME_RESULT = frozenset(
    {
        *(
            "data_root",
            "accept_gaps",
            "weights",
            "weights_key",
            "views",
            "cache_dir",
            "cache_gib",
            "shard_cache_gib",
            "decoder",
            "workers",
        ),
        *(
            "device",
            "memory",
            "compile",
            "cuda_graph",
            "kernels",
            "output",
            "eval_every",
            "checkpoint_every",
            "log_every",
            "tracker",
            "time_limit",
        ),
    }
)


def group_of(name: str, where: str) -> str:
    """The name of the group that a field is in. Raises UsageError for an unknown field."""
    if name not in _GROUP_OF:
        raise UsageError(f"{where}: unknown field {name!r}; {nearest(name, FIELDS)}")
    return _GROUP_OF[name]


def coerce(name: str, value: Any, where: str) -> Any:
    """The value of a field from YAML or from the command line, in the field's type, or UsageError."""
    group = GROUPS[group_of(name, where)]
    try:
        return getattr(group(**{name: value}), name)
    except ValidationError as error:
        raise _refusal(error, {name: where}) from None


def recipe_differences(saved: Recipe, asked: Recipe) -> list[str]:
    """What ``asked`` would compute differently from ``saved``, one ``name: saved -> asked`` a field."""
    theirs = asked.fields()
    found = {
        name: f"{name}: {value!r} -> {theirs[name]!r}"
        for name, value in saved.fields().items()
        if name not in _SAME_RESULT and value != theirs[name]
    }
    if found.keys() & _NAMING and _same_model(saved.model, asked.model):
        found = {name: line for name, line in found.items() if name not in _NAMING}
    return list(found.values())


_NAMING = {"model", "method", "head"}  # one combination can be named in several ways


def _same_model(*recipes: Any) -> bool:
    from aim_fast.models.registry import find_entry  # imports torch

    try:
        first, second = (find_entry(one.model, one.head, one.method)._replace(recipes="") for one in recipes)
    except UsageError:  # which of the two cannot be is said where it is made
        return False
    return first == second


_KINDS = {int: "a whole number", float: "a number", bool: "yes or no (true, false)", str: "a word"}


def _refusal(error: ValidationError, places: Mapping[str, str]) -> UsageError:
    """The first thing that pydantic found wrong, as one line: where, which field, what it is, what it must be."""
    found = error.errors(include_url=False)[0]
    limits, path = found.get("ctx", {}), [part for part in found["loc"] if isinstance(part, str)]
    name = limits["name"] if "name" in limits else path[-1]
    field, where, value = FIELDS[name], places.get(name, "recipe"), found["input"]
    kind, listed = kind_of(field)
    if found["type"] == "must":
        must, value = limits["must"], limits["value"]
    elif found["type"] == "literal_error":
        choices = re.findall("'(.*?)'", limits["expected"])
        if listed:
            return UsageError(f"{where}: {name}: unknown {value!r}; {nearest(str(value), choices)}")
        must = f"one of {', '.join(choices)}"
    elif found["type"].startswith(("greater_than", "less_than")):
        must, value = _range(field), kind(value)
    else:
        return UsageError(f"{where}: {name} is {value!r}, not {_KINDS[kind]}")
    return UsageError(f"{where}: {name}: {value!r} must be {must}")


def _range(field: FieldInfo) -> str:
    limits = {key: getattr(one, key) for one in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(one, key)}
    if limits.keys() == {"ge", "le"}:
        return f"from {limits['ge']} to {limits['le']}"
    words = {"ge": "at least {}" if limits.get("ge") else "{} or more", "gt": "above {}", "le": "at most {}"}
    return " and ".join(words.get(key, "below {}").format(limit) for key, limit in limits.items())
