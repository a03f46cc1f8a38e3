"""All models in a table: what each costs, and what was published for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aim_fast.errors import UsageError
from aim_fast.models.combinations import combinations, parts_of
from aim_fast.models.composition import arguments_of
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.heads import HEADS
from aim_fast.models.libraries import is_library, list_networks
from aim_fast.models.methods import method_lines
from aim_fast.models.published import PublishedResult, dataset_arguments, find_published, published_results
from aim_fast.models.registry import argument_names, find_entry, list_models, list_trunks
from aim_fast.models.words import named, written

# Data sets whose models the table is made for when nothing else is asked.
TABLE_DATASETS = ("kinetics400", "ssv2")


def model_table(
    frames: Sequence[int] = (),
    views: int | None = None,
    datasets: Sequence[str] = TABLE_DATASETS,
    names: Sequence[str] = (),
    methods: Sequence[str] = (),
    heads: Sequence[str] = (),
    refuse: Callable[[str], None] = lambda line: None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """One row per model, data set and number of frames, then one per published row of another structure.

    ``names`` are all models when not given, those of other libraries that are installed among them, and what was
    published of others; each may have settings. Without ``frames`` a model has those that something was published for,
    else its own; with them, models that cannot take so many are left out.

    Keys: ``name, dataset, frames, views, overrides, params, trainable, gflops, published``. ``gflops`` are 10⁹
    multiply-adds of all ``views`` of one clip together, as published tables give them: of those whose GFLOPs
    are published, or 3, when not given. These are counted here, None of a system that has no model; ``published``
    is what was printed for this structure, or None. ``overrides`` go to every model that takes them, over the data
    set's. With ``methods`` or ``heads`` a model is as many as there are combinations of it; of ``names``, ``refuse`` is
    called with a line for each that cannot be. Raises UsageError where none can.
    """
    rows: list[dict[str, Any]] = []
    chosen_models: list[tuple[str, dict[str, Any]]] = []
    every = [*list_models(), *list_networks()]
    for word in names or every:
        name, said = named(word)
        there, missing = combinations(word, methods, heads)
        lines = [f"{written(word, parts)}: {reason}" for parts, reason in missing] if names else []
        if lines and not there:
            raise UsageError(lines[0])
        for line in lines:
            refuse(line)
        chosen_models += [(name, {**parts, **said}) for parts in there]
    for name, parts in chosen_models:
        taken = argument_names(name, parts.get("head"), parts.get("method"))
        chosen = parts | {key: value for key, value in overrides.items() if key in taken}
        for dataset in (
            datasets if names or not is_library(name) else datasets[:1]
        ):  # which changes the classifier alone
            for num_frames in [parts["num_frames"]] if "num_frames" in parts else frames or _own_frames(name, dataset):
                arguments = dataset_arguments(name, dataset, taken) | {"num_frames": num_frames} | chosen
                published = find_published(name, dataset, arguments)
                try:
                    rows.append(_row(name, dataset, arguments, views, chosen, published))
                except UsageError as error:
                    if not frames or (names and not rows and (name, parts) == chosen_models[-1]):
                        raise
                    if names and dataset == datasets[0]:
                        refuse(f"{written(name, parts)}, {num_frames} frames: {error}")
    for result in published_results():
        if overrides or methods or heads or result.dataset not in datasets:
            continue
        if frames and result.frames not in frames:
            continue
        if result.model in (names or every) and result.overrides:
            rows.append(_row(result.model, result.dataset, result.arguments, views, result.overrides, result))
        elif not names and result.model not in every:
            rows.append(_printed(result))
    return rows


def _own_frames(name: str, dataset: str) -> list[int]:
    """Frames of the rows of the main tables, or what the model is made for when nothing is said."""
    published = {
        result.frames
        for result in published_results()
        if (result.model, result.dataset) == (name, dataset) and result.frames and not result.overrides
    }
    return sorted(published) or [arguments_of(find_entry(name))["num_frames"]]


def _row(
    name: str,
    dataset: str,
    arguments: Mapping[str, Any],
    views: int | None,
    overrides: Mapping[str, Any],
    published: PublishedResult | None,
) -> dict[str, Any]:
    params, trainable, products = count_costs(name, arguments)
    if views is None:
        views = published.views_a_video if published and published.gflops and published.views else 3
    return {
        "name": name,
        "dataset": dataset,
        "frames": arguments["num_frames"],
        "views": views,
        "overrides": dict(overrides),
        "params": params,
        "trainable": trainable,
        "gflops": round(products * views / 1e9, 3),
        "published": published and published.figures,
    }


def _printed(result: PublishedResult) -> dict[str, Any]:
    """The row of a system that has no model here, or none that is installed."""
    return {
        "name": result.name or result.model,
        "dataset": result.dataset,
        "frames": result.frames,
        "views": result.views_a_video if result.views else None,
        "overrides": {},
        "params": None,
        "trainable": None,
        "gflops": None,
        "published": result.figures,
    }


def part_table(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What models are composed of: the names of trunks, methods and heads, and of each what it is, in a line.

    ``names`` are all trunks when not given. ``combinations`` are, of each trunk, the methods and heads that there are.
    """
    found = {"methods": method_lines(), "heads": {name: head.line for name, head in HEADS.items()}}
    trunks = dict.fromkeys(names or list_trunks(), "")
    there = {name: parts_of(name) for name in trunks}
    if not names:
        trunks |= {"timm:NAME": "any of timm's", "open_clip:NAME": "any of open_clip's, of pre-norm blocks in a row"}
    return {"trunks": trunks, **found, "combinations": there}
