"""What a recipe asks of the data path: the index of a split, how frames are sampled, how clips are augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from aim_fast.data import Augmentation, ClipLoader, Index, Sampling, load_or_build_index
from aim_fast.data.copies.frame_cache import FrameCache, load_or_build_frame_cache
from aim_fast.data.decoder_choice import choose_decoder, prefetch_depth
from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.features.store import FeatureSource, FeatureStore
from aim_fast.data.formats import chosen_dataset
from aim_fast.data.index.selection import choose_classes, draw_share, draw_shots, keep_classes, keep_listed
from aim_fast.data.index.splits import same_classes
from aim_fast.errors import DataError, UsageError
from aim_fast.training.devices import Place, first_process_first
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import AUTO, parse_views
from aim_fast.training.trained_model import TrainedModel


def data_classes(recipe: Recipe) -> list[str]:
    """The class names that the recipe trains on, read from the annotations of both splits and no video.

    Raises DataError when the splits do not have the same classes in the same order, or share a video.
    """
    dataset, root = chosen_dataset(recipe.data.dataset, recipe.data.data_root, recipe.data.shard_cache_gib)
    classes = same_classes(dataset, root, multi_label=recipe.data.multi_label)
    if recipe.data.classes:
        classes = choose_classes(classes, recipe.data.classes, recipe.run.seed)
    if len(classes) < 2:
        raise DataError(
            f"{root}: one class ({classes[0]!r}) leaves nothing to tell apart: check --data-root and --classes"
        )
    return classes


def open_split(
    recipe: Recipe, split: str, place: Place, progress: RunProgress, classes: list[str] | None = None
) -> Index:
    """The index of a split of the recipe's data set, scanned by rank 0 where it is new, with its summary said.

    The clips of ``classes`` alone where they are given, and of the training split those that few-shot learning takes.
    """
    dataset, root = chosen_dataset(recipe.data.dataset, recipe.data.data_root, recipe.data.shard_cache_gib)
    with first_process_first(place):
        index = load_or_build_index(
            dataset,
            root,
            split,
            workers=recipe.data.workers,
            progress=progress.shown,
            accept_gaps=recipe.data.accept_gaps,
            multi_label=recipe.data.multi_label,
        )
    total = len(index)
    for line in index.summary():
        progress.say(line)
    if classes is not None and classes != index.classes:
        index = keep_classes(index, classes)
    if split == "train" and recipe.data.shot_list:
        index = keep_listed(index, recipe.data.shot_list)
    elif split == "train" and recipe.data.shots:
        index = draw_shots(index, recipe.data.shots, recipe.run.seed)
    elif split == "train" and recipe.data.data_share < 1:
        index = draw_share(index, recipe.data.data_share, recipe.run.seed)
    if len(index) < total:
        progress.say(f"{split}: {len(index)} of its {total} clips are taken, {len(index.classes)} classes")
    return index


def open_loader(
    recipe: Recipe,
    place: Place,
    index: Index,
    img_size: int,
    sampling: Sampling,
    augmentation: Augmentation | None = None,
    progress: RunProgress | None = None,
) -> ClipLoader:
    """This process's clips of an index: training clips where there is an augmentation, else the views of ``sampling``.

    Where the recipe caches frames, what the cache lacks is decoded first.
    """
    _refuse_auto(recipe)
    progress = progress or RunProgress(quiet=True)
    cache = _open_cache(recipe, place, index, img_size, progress)
    threads = place.decoding_threads(recipe.data.workers)
    decoder: str = recipe.data.decoder
    if decoder == "auto" and not (cache and len(cache.entries) == len(index.healthy)):
        decoder = _fastest_decoder(recipe, place, index, img_size, sampling, augmentation, progress)
    samples = recipe.optimisation.batch_size * (augmentation.repeats if augmentation else 1)
    return ClipLoader(
        index,
        train=augmentation is not None,
        num_frames=recipe.data.frames,
        img_size=img_size,
        batch_size=recipe.optimisation.batch_size,
        sampling=sampling,
        augmentation=augmentation,
        seed=recipe.run.seed,
        rank=place.rank,
        world=place.world,
        workers=threads,
        device=place.device,
        decoder=decoder,
        prefetch=prefetch_depth(samples, recipe.data.frames, img_size, threads, place.device),
        read_order=recipe.data.read_order,
        balanced=recipe.data.balanced_sampling,
        cache=cache,
    )


def _fastest_decoder(
    recipe: Recipe,
    place: Place,
    index: Index,
    img_size: int,
    sampling: Sampling,
    augmentation: Augmentation | None,
    progress: RunProgress,
) -> str:
    """In training the decoder that the first process measures while the others leave it the machine."""
    together = place.world > 1 and augmentation is not None
    found: list[str | None] = [None]
    if place.first or not together:
        choice = choose_decoder(
            index,
            sampling=sampling,
            img_size=img_size,
            batch_size=recipe.optimisation.batch_size,
            threads=place.decoding_threads(recipe.data.workers),
            device=place.device,
            augmentation=augmentation,
        )
        found[0] = choice.decoder
        if choice.clips_per_s and augmentation is not None:
            progress.say(f"{index.split}: {choice.description}")
    if together:
        dist.broadcast_object_list(found)
    return found[0] or "auto"


def open_training(
    recipe: Recipe, place: Place, index: Index, img_size: int, source: FeatureSource, progress: RunProgress
) -> ClipLoader | FeatureLoader:
    """Training clips of an index, or their stored features where the recipe names some."""
    if recipe.data.features or recipe.data.cache_features:
        return open_features(recipe, place, index, True, source)
    sampling = sampling_of(recipe)
    if recipe.augmentation.train_view == "validation":
        sampling = sampling.validation(img_size)
    return open_loader(recipe, place, index, img_size, sampling, augmentation_of(recipe), progress)


def open_validation(
    recipe: Recipe, place: Place, index: Index, img_size: int, source: FeatureSource, progress: RunProgress
) -> ClipLoader | FeatureLoader:
    """The published validation view of an index, or all stored views of its features."""
    if recipe.data.features or recipe.data.cache_features:
        return open_features(recipe, place, index, False, source)
    return open_loader(recipe, place, index, img_size, sampling_of(recipe).validation(img_size), None, progress)


def feature_source(trained: TrainedModel) -> FeatureSource:
    """What features of this model, by its recipe, are computed from."""
    model, recipe = trained.model, trained.recipe
    return FeatureSource(
        model.frozen_part
        + (", validation view" if recipe.data.cache_features else "")
        + (", equal segments" if recipe.data.equal_segments and not recipe.data.interval else ""),
        trained.identity.trunk_sha256,
        model.num_frames,
        recipe.data.interval,
        model.img_size,
        model.activation,
        model.mean,
        model.std,
    )


def open_features(recipe: Recipe, place: Place, index: Index, train: bool, source: FeatureSource) -> FeatureLoader:
    """This process's stored features of an index, from ``recipe.data.features`` or the cache, in place of its videos.

    Raises DataError where there are none, of all clips, or where they are of another source.
    """
    _refuse_auto(recipe)
    store = FeatureStore(Path(recipe.data.features or recipe.data.cache_features or "") / index.split)
    if odd := store.source.differences(source):
        raise DataError(f"{store.folder}: holds features of another trunk or other clips: {'; '.join(odd)}")
    return FeatureLoader(
        index,
        store,
        train=train,
        batch_size=recipe.optimisation.batch_size,
        seed=recipe.run.seed,
        rank=place.rank,
        world=place.world,
        balanced=recipe.data.balanced_sampling,
        device=place.device,
    )


def _refuse_auto(recipe: Recipe) -> None:
    if recipe.optimisation.batch_size == AUTO:
        raise UsageError("batch_size auto is of train, which measures it: give a number of clips here")


def _open_cache(recipe: Recipe, place: Place, index: Index, img_size: int, progress: RunProgress) -> FrameCache | None:
    if recipe.data.cache == "none":
        return None
    if recipe.data.cache_dir is None and not Path(index.root).is_dir():
        raise UsageError(f"--cache frames: {index.root} is no folder to keep frames in; give --cache-dir")
    folder = Path(recipe.data.cache_dir) if recipe.data.cache_dir else Path(index.root) / ".aim-fast" / "frames"
    with first_process_first(place):
        cache = load_or_build_frame_cache(
            index,
            folder,
            kind=recipe.data.cache_format,
            short_side=max(256, round(img_size * 256 / 224)),  # as the published views have before a crop
            max_bytes=int(recipe.data.cache_gib * 2**30) or None,
            workers=place.decoding_threads(recipe.data.workers),
            progress=progress.bar(f"caching the frames of {index.split}"),
        )
    progress.close()
    progress.say(f"{index.split}: {cache.description}")
    return cache


def sampling_of(recipe: Recipe) -> Sampling:
    """How frames and views are taken from a video."""
    clips, crops = parse_views(recipe.evaluation.views)
    drawn = recipe.evaluation.random_views and clips > 1
    ends = recipe.evaluation.view_starts == "ends"
    interval = recipe.data.interval or None
    return Sampling(
        recipe.data.frames,
        interval,
        clips=clips,
        crops=crops,
        ends=ends,
        equal=recipe.data.equal_segments,
        random=drawn,
    )


def augmentation_of(recipe: Recipe) -> Augmentation:
    """How training clips are augmented; ``published`` adds the flip and crop that imgaug's RandAugment hides."""
    asked = recipe.augmentation
    if asked.train_view == "validation":
        return Augmentation(none=True)
    published = asked.aug == "published" and bool(asked.randaugment)
    fields: dict[str, Any] = {
        "random_resized_crop": asked.random_resized_crop,
        "short_sides": asked.crop_short_side,
        "crop_scales": asked.crop_scales,
        "scale": asked.crop_area,
        "ratio": asked.crop_aspect,
        "flip": 0.5 if published else asked.flip,
        "flip_labels": asked.flip_labels,
        "randaug": asked.randaugment or None,
        "policy": asked.aug.removeprefix("timm:") if asked.aug.startswith("timm:") else "",
        "pre_crop": 7.0 if published else 0.0,
        "erasing": asked.random_erasing,
        "color_jitter": asked.color_jitter,
        "jitter": asked.jitter,
        "jitter_prob": asked.jitter_prob,
        "grayscale": asked.grayscale,
        "repeats": asked.aug_repeats,
    }
    return Augmentation(**fields)
