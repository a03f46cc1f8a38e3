"""Results as published, for the models of the table of names: ``published_results.yaml`` read, and looked up.

A published figure is only ever shown beside a model that has the structure it was published for: all that
``create_model`` would be given must agree, but for what changes no structure (droppath, activation, normalisation).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aim_fast.errors import UsageError, nearest
from aim_fast.models.composition import about_of, arguments_of
from aim_fast.models.libraries import is_library
from aim_fast.models.methods.adapter_layers import resolve_layers
from aim_fast.models.registry import MODELS, argument_names, find_entry, full_name
from aim_fast.models.words import named

_FILE = Path(__file__).parent / "published_results.yaml"
_SIZES = ("printed_frames", "views", "gflops", "gflops_a_view", "params", "trainable", "train_memory_gb", "train_batch")


@dataclass(frozen=True)
class PublishedResult:
    """One row of a published table, as printed but for ``frames`` and ``counted``.

    Units: ``top1`` percent, ``gflops`` 10⁹ multiply-adds of all ``views`` (clips x crops), ``gflops_a_view`` of one,
    ``params`` and ``trainable`` millions, ``train_memory_gb`` of one GPU at ``train_batch`` clips. ``counted``: what
    the structure that reproduces the row has, in the same units, where ``model`` names none that can be counted.
    """

    dataset: str
    source: str
    model: str = ""  # none where create_model makes no such structure
    name: str = ""  # as printed
    frames: int | None = None  # of the model; None where it is not said: such a row stands beside no model
    printed_frames: int | None = None  # where that is not ``frames``, of which the printed GFLOPs are
    views: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rung: str | None = None
    weights: str | None = None
    data_percent: float = 100.0
    protocol: str | None = None
    top1: float | None = None
    gflops: float | None = None
    gflops_a_view: float | None = None
    params: float | None = None
    trainable: float | None = None
    train_memory_gb: float | None = None
    train_batch: int | None = None
    counted: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The overrides with which ``create_model`` makes the model of this row."""
        frames = {} if self.frames is None else {"num_frames": self.frames}
        taken = argument_names(self.model, *(self.overrides.get(part) for part in ("head", "method")))
        return dataset_arguments(self.model, self.dataset, taken) | frames | dict(self.overrides)

    @property
    def figures(self) -> dict[str, Any]:
        """What stands beside a model in a table: figures, protocol and source, those that there are."""
        found = {
            name: getattr(self, name)
            for name in ("name", "top1", *_SIZES, "rung", "weights", "counted", "note", "source")
        }
        return {name: value for name, value in found.items() if value}

    @property
    def views_a_video(self) -> int:
        """Clips times crops; 1 where it is not said."""
        clips, _, crops = (self.views or "1x1").partition("x")
        return int(clips) * int(crops)


@functools.cache
def published_results() -> tuple[PublishedResult, ...]:
    """Every row of the file."""
    content = _content()
    return tuple(PublishedResult(**row | {"source": content["sources"][row["source"]]}) for row in content["results"])


def datasets() -> list[str]:
    """Names of the data sets whose heads and adapters are known: ``kinetics400, kinetics700, ssv2, …``."""
    return list(_content()["datasets"])


def dataset_arguments(model: str, dataset: str, taken: Collection[str] | None = None) -> dict[str, Any]:
    """What a data set asks of a model, as overrides of ``create_model``, those that the model takes.

    ``taken``: its arguments, where it is another combination than its name says. Raises UsageError for an unknown
    data set.
    """
    known = _content()["datasets"]
    if dataset not in known:
        raise UsageError(f"no settings for data set {dataset!r}: {nearest(dataset, known)}")
    taken = argument_names(model) if taken is None else taken
    return {name: value for name, value in known[dataset].items() if name in taken}


def find_published(model: str, dataset: str, arguments: Mapping[str, Any]) -> PublishedResult | None:
    """The row published for ``create_model(model, **arguments)`` trained on the whole of ``dataset``, if there is one.

    Of several, the first: those published as rungs of an ablation have the structure of a model of a main table.
    """
    asked = _structure(model, arguments)
    for row in published_results():
        if not (row.model and row.frames) or (row.dataset, row.data_percent, row.protocol) != (dataset, 100, None):
            continue
        if is_library(row.model) and row.model != named(model)[0]:  # whose library may not be installed
            continue
        if _structure(row.model, row.arguments) == asked:
            return row
    return None


def _structure(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments that make a model's structure and choose what trains, defaults filled in, each in one form.

    Of a name of the table its class: one combination can be named in several ways.
    """
    entry = find_entry(model, arguments.get("head"), arguments.get("method"))
    name = named(model)[0]
    kind = entry.model if full_name(name) in MODELS else name
    values = arguments_of(entry) | {"model": kind, "method": entry.method, "head": entry.head}
    values |= {name: value for name, value in arguments.items() if name in values}
    if "adapter_layers" in values:
        values["adapter_layers"] = (
            resolve_layers(values["adapter_layers"], values["depth"]) if values.get("adapters", True) else ()
        )
    passed = {name for name, about in about_of(entry).items() if about.running or not about.structure}
    return {name: _plain(value) for name, value in values.items() if name not in passed}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@functools.cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text())
