"""What a recipe asks of the data path: the index of a split, how frames are sampled, how clips are augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aim_fast.data import Augmentation, ClipLoader, Index, Sampling, load_or_build_index
from aim_fast.data.formats import same_classes
from aim_fast.data.share import share_of_classes
from aim_fast.errors import UsageError
from aim_fast.training.devices import Place, first_process_first
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe, parse_views


def data_classes(recipe: Recipe) -> list[str]:
    """The class names of the recipe's data set, read from the annotations of both splits and no video.

    Raises DataError when the splits do not have the same classes in the same order, or share a video.
    """
    dataset, root = _source(recipe)
    return same_classes(dataset, root)


def _source(recipe: Recipe) -> tuple[str, Path]:
    if not recipe.dataset:
        raise UsageError("no data set: give --dataset NAME (aim-fast datasets lists them) with --data-root")
    if not recipe.data_root:
        raise UsageError(f"no folder for data set {recipe.dataset}: give --data-root DIR")
    return recipe.dataset, Path(recipe.data_root)


def open_split(recipe: Recipe, split: str, place: Place, progress: RunProgress) -> Index:
    """The index of a split of the recipe's data set, scanned by rank 0 where it is new, with its summary said."""
    dataset, root = _source(recipe)
    with first_process_first(place):
        index = load_or_build_index(dataset, root, split, workers=recipe.workers, progress=progress.shown)
    for line in index.summary():
        progress.say(line)
    if split == "train" and recipe.data_share < 1:
        whole, index = len(index), share_of_classes(index, recipe.data_share, recipe.seed)
        progress.say(f"{len(index)} of {whole} training clips are used, {100 * recipe.data_share:g} % of each class")
    return index


def open_loader(
    recipe: Recipe,
    place: Place,
    index: Index,
    img_size: int,
    sampling: Sampling,
    augmentation: Augmentation | None = None,
) -> ClipLoader:
    """This process's clips of an index: training clips where there is an augmentation, else the views of `sampling`."""
    return ClipLoader(
        index,
        train=augmentation is not None,
        num_frames=recipe.frames,
        img_size=img_size,
        batch_size=recipe.batch_size,
        sampling=sampling,
        augmentation=augmentation,
        seed=recipe.seed,
        rank=place.rank,
        world=place.world,
        workers=place.decoding_threads(recipe.workers),
        device=place.device,
        read_order=recipe.read_order,
    )


def sampling_of(recipe: Recipe) -> Sampling:
    """How frames and views are taken from a video."""
    clips, crops = parse_views(recipe.views)
    return Sampling(num_frames=recipe.frames, interval=recipe.interval or None, clips=clips, crops=crops)


def augmentation_of(recipe: Recipe) -> Augmentation:
    """How training clips are augmented; `published` adds the flip and crop that imgaug's RandAugment hides."""
    published = recipe.aug == "published" and bool(recipe.randaugment)
    fields: dict[str, Any] = {
        "random_resized_crop": recipe.random_resized_crop,
        "scale": recipe.crop_area,
        "ratio": recipe.crop_aspect,
        "flip": 0.5 if published else recipe.flip,
        "randaug": recipe.randaugment or None,
        "pre_crop": 7.0 if published else 0.0,
        "erasing": recipe.random_erasing,
        "color_jitter": recipe.color_jitter,
    }
    return Augmentation(**fields)
