"""Writing frozen features of a data set: the recipe's model, up to where it trains, over every view of every clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aim_fast.data import read_dataset
from aim_fast.data.feature_store import FeatureStore, write_features
from aim_fast.errors import UsageError
from aim_fast.training.clips import feature_source, open_loader, open_split, sampling_of
from aim_fast.training.devices import single_place
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.run import build_model


def extract_features(recipe: Recipe, splits: Sequence[str], folder: Path, dtype: str, quiet: bool = False) -> list[str]:
    """Writes `folder/SPLIT` for each split, by one process; returns a line a split for a reader.

    Raises UsageError for a model that has no frozen part, and what building, reading and writing raise.
    """
    if not recipe.dataset or not recipe.data_root:
        raise UsageError("no data set: give --dataset NAME (aim-fast datasets lists them) and --data-root DIR")
    place, progress = single_place(recipe.device, recipe.precision), RunProgress(quiet)
    classes = read_dataset(recipe.dataset, Path(recipe.data_root), splits[0]).classes
    model, report = build_model(recipe, classes, place)
    for line in report.lines:
        progress.say(line)
    model.eval()
    source = feature_source(recipe, model, report.sha256)

    @torch.inference_mode()
    def extract(frames: Tensor) -> Tensor:
        with place.autocast():
            return model.frozen_features(frames.to(place.device, non_blocking=True))

    lines = []
    for split in splits:
        index = open_split(recipe, split, place, progress)
        loader = open_loader(recipe, place, index, model.img_size, sampling_of(recipe))
        try:
            count = progress.counter(f"{split} views", loader.clips_per_epoch)
            done = write_features(folder / split, source, loader, extract, dtype=dtype, progress=count)
        finally:
            progress.close()
            loader.close()
        store, clips = FeatureStore(folder / split), len(index.healthy)
        resumed = f", {done} of them found done" if done else ""
        lines.append(
            f"{folder / split}: {clips} clips{resumed}, {store.views} views of {list(store.shape)} in {dtype}, "
            f"{store.bytes / 2**20:.1f} MiB"
        )
    return lines
