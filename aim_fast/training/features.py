"""Writing frozen features of a data set: the recipe's model, up to where it trains, over every view of every clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from aim_fast.data import Index, Sampling, read_dataset
from aim_fast.data.features.store import DTYPES, FeatureStore, write_features
from aim_fast.data.formats import chosen_dataset
from aim_fast.files import check_room
from aim_fast.training.clips import feature_source, open_loader, open_split, sampling_of
from aim_fast.training.devices import Place, first_process_first, single_place
from aim_fast.training.first_start import recall_kernels
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_model import build_model
from aim_fast.training.trained_model import TrainedModel


def extract_features(recipe: Recipe, splits: Sequence[str], folder: Path, dtype: str, quiet: bool = False) -> list[str]:
    """Writes ``folder/SPLIT`` for each split, by one process; returns a line a split for a reader.

    Raises UsageError for a model that has no frozen part, and what building, reading and writing raise.
    """
    dataset, root = chosen_dataset(recipe.data.dataset, recipe.data.data_root, recipe.data.shard_cache_gib)
    place, progress = single_place(recipe.run.device, recipe.run.precision), RunProgress(quiet)
    classes = read_dataset(dataset, root, splits[0], recipe.data.multi_label).classes
    trained = build_model(recipe, classes, place)
    recall_kernels(trained, place)
    for line in trained.lines:
        progress.say(line)
    lines = []
    for split in splits:
        index = open_split(recipe, split, place, progress)
        done = _write_split(trained, place, index, sampling_of(recipe), folder, dtype, progress)
        store, clips = FeatureStore(folder / split), len(index.healthy)
        resumed = f", {done} of them found done" if done else ""
        lines.append(
            f"{folder / split}: {clips} clips{resumed}, {store.views} views of {list(store.shape)} in {dtype}, "
            f"{store.bytes / 2**20:.1f} MiB"
        )
    return lines


def cache_features(trained: TrainedModel, place: Place, indices: Iterable[Index], progress: RunProgress) -> None:
    """Keeps the frozen part's output for the validation view of every clip below its recipe's ``cache_features``.

    The first process writes what is not there yet. Raises UsageError, before anything is written, for a model that
    trains from its first layer on, DataError where the disk has no room for all clips, and UsageError where the folder
    holds features of another trunk, depth or number of frames.
    """
    recipe, model = trained.recipe, trained.model
    recall_kernels(trained, place)
    folder, dtype = Path(recipe.data.cache_features or ""), recipe.data.cache_dtype
    with torch.inference_mode(), place.autocast():  # one clip shows whether there is something to keep, and how much
        clip = torch.zeros((1, model.num_frames, *(model.img_size,) * 2, 3), dtype=torch.uint8).to(place.device)
        size = model.frozen_features(clip).numel() * DTYPES[dtype].itemsize
    with first_process_first(place):
        if place.first:
            sampling, alone = sampling_of(recipe).validation(model.img_size), replace(place, world=1)
            indices = list(indices)
            there = sum(shard.stat().st_size for index in indices for shard in (folder / index.split).glob("shard-*"))
            clips = sum(len(index.healthy) for index in indices)
            kept = f"{model.frozen_part}, {size / 2**20:.2f} MiB a clip in {dtype}"
            progress.say(f"{folder}: {kept}, {clips * size / 2**30:.1f} GiB for {clips} clips")
            check_room(folder, clips * size - there, "the features need", "take a larger disk, or --data-share")
            for index in indices:
                _write_split(trained, alone, index, sampling, folder, dtype, progress)
                store = FeatureStore(folder / index.split)
                part, written = store.source.part, store.bytes / 2**20
                progress.say(f"{store.folder}: {part} of {len(index)} clips, {written:.1f} MiB")


def _write_split(
    trained: TrainedModel,
    place: Place,
    index: Index,
    sampling: Sampling,
    folder: Path,
    dtype: str,
    progress: RunProgress,
) -> int:
    """Writes ``folder/SPLIT``; returns how many clips were found done."""
    recipe, model = trained.recipe, trained.model
    training = model.training
    model.eval()

    @torch.inference_mode()
    def extract(frames: Tensor) -> Tensor:
        with place.autocast():
            return model.frozen_features(frames.to(place.device, non_blocking=True))

    loader = open_loader(recipe, place, index, model.img_size, sampling)
    try:
        show = progress.bar(f"{index.split} views")
        source = feature_source(trained)
        return write_features(folder / index.split, source, loader, extract, dtype=dtype, progress=show)
    finally:
        progress.close()
        loader.close()
        model.train(training)
