"""Vectors of many videos into a folder: per clip by the loader, per window or frame by one pass over each video.

The videos are cut into parts, and a part is the same bytes whoever writes it: its videos and the batches that the
model sees depend on nothing else. Any number of processes, of one machine or of several that share the folder, each
take a part that is not there and that no other has locked, until all are there; so one that was killed is made good by
the others, or by the next start.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aim_fast.data import Index, Sampling
from aim_fast.data.choices import VectorDtype, VectorFormat, VectorsPer
from aim_fast.data.features.vectors import HEADER, Moments, VideoVectors, check_format, part_file, read_part, write_part
from aim_fast.data.formats import Listing, chosen_dataset, read_dataset
from aim_fast.data.formats.named import named_videos
from aim_fast.data.index.indexing import index_listing
from aim_fast.data.loader import Batch, ClipLoader
from aim_fast.data.prefetch import Prefetcher
from aim_fast.data.windows import Length, Window, read_windows
from aim_fast.errors import AimFastError, DataError, UsageError
from aim_fast.files import claimed, one_builder, write_whole
from aim_fast.training.clips import open_loader, open_split
from aim_fast.training.embedder import Embedder
from aim_fast.training.progress import RunProgress

__all__ = ["Videos", "Wanted", "embed"]

_READ_AHEAD = 8  # windows of each video that is being read
_LOOK_SECONDS = 0.5  # between looks at what other processes have written
_VERSION = 1


@dataclass(frozen=True)
class Videos:
    """What is embedded: files, folders and lists, or a split of a data set."""

    sources: Sequence[str] = ()
    split: str | None = None


@dataclass(frozen=True)
class Wanted:
    """One vector a clip, a frame or a window, and how they are written; ``per_file`` videos a part."""

    per: VectorsPer = "clip"
    window: Length | None = None
    stride: Length | None = None
    form: VectorFormat = "safetensors"
    dtype: VectorDtype = "float32"
    per_file: int = 64


Part = Callable[[int], list[VideoVectors]]


def embed(embedder: Embedder, videos: Videos, folder: Path, wanted: Wanted, quiet: bool = False) -> dict[str, str]:
    """Writes what of ``folder`` is not there yet, and returns when all of it is: the reason, one line, of each video
    that has no vectors.

    Raises UsageError for what cannot be asked for and for a folder of other vectors, DataError for videos that are not
    there and a disk that refuses.
    """
    check_format(wanted.form)
    sampling, wanted = _sampled(embedder, wanted)
    progress = RunProgress(quiet)
    for line in embedder.trained.lines:
        progress.say(line)
    model = embedder.trained.model
    blank = torch.zeros((1, model.num_frames, *(model.img_size,) * 2, 3), dtype=torch.uint8)
    width = embedder.vectors(blank, wanted.per).shape[-1]
    _check_folder(folder)
    if wanted.per == "clip":
        index = _index(embedder, videos, folder, progress)
        rows = [index.rows[number] for number in index.healthy]
        paths = [row.path for row in rows]
        left_out = {row.path: row.error or "" for row in index.rows if not row.healthy}
    else:
        paths, left_out = [clip.path for clip in _listing(embedder, videos).clips], {}
    if wanted.form == "npy":
        _check_names(paths)
    header = _header(embedder, wanted, sampling, width, paths, left_out)
    size = header["videos_a_file"]
    _write_header(folder, header)
    if wanted.per == "clip":
        loader = open_loader(embedder.trained.recipe, embedder.place, index, model.img_size, sampling)
        try:
            _write_parts(folder, header, _of_clips(embedder, loader, size, wanted), progress)
        finally:
            loader.close()
    else:
        _write_parts(folder, header, _of_windows(embedder, paths, size, sampling, wanted, width), progress)
    return left_out | _failed(folder, header)


def _sampled(embedder: Embedder, wanted: Wanted) -> tuple[Sampling, Wanted]:
    """How frames are taken, and lengths that are said. Raises UsageError for lengths that cannot be."""
    whole = embedder.sampling
    centre = Sampling(whole.num_frames, whole.interval, short_side=whole.short_side)
    per, window, stride = wanted.per, wanted.window, wanted.stride
    for name, length in (("--window", window), ("--stride", stride)):
        if length and (per == "clip" or (per == "frame" and name == "--window")):
            raise UsageError(f"{name} is of --per window, not of --per {per}: leave it out")
    if per == "clip":
        return whole, wanted
    if per == "frame":
        if stride and stride.unit != "frames":
            raise UsageError("--stride of --per frame is a number of frames, such as 4: every how many have a vector")
        interval = round(stride.amount) if stride else whole.interval or 1
        length = Length(interval * whole.num_frames, "frames")
        return replace(centre, interval=interval), replace(wanted, stride=length)
    if window or not whole.interval:
        centre, window = replace(centre, interval=None), window or Length(4.0)
    else:
        window = Length(whole.num_frames * whole.interval, "frames")
    wanted = replace(wanted, window=window, stride=stride or window._replace(amount=window.amount / 2))
    if wanted.form == "npy" and {window.unit, wanted.stride.unit} != {"frames"}:  # type: ignore[union-attr]
        raise UsageError(
            "--format npy has one window and one stride in frames for all videos: give --window and --stride without s"
        )
    return centre, wanted


def _listing(embedder: Embedder, videos: Videos) -> Listing:
    if videos.split is None:
        return named_videos(videos.sources)
    data = embedder.trained.recipe.data
    return read_dataset(*chosen_dataset(data.dataset, data.data_root, data.shard_cache_gib), videos.split)


def _index(embedder: Embedder, videos: Videos, folder: Path, progress: RunProgress) -> Index:
    if videos.split is not None:
        return open_split(embedder.trained.recipe, videos.split, replace(embedder.place, world=1), progress)
    index = index_listing(
        named_videos(videos.sources),
        "videos",
        folder,
        "all",
        "whole video files",
        workers=embedder.trained.recipe.data.workers,
        progress=progress.shown,
    )
    return index


def _check_folder(folder: Path) -> None:
    if folder.exists() and not (folder / HEADER).exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give --output a folder")
    if folder.is_dir() and not (folder / HEADER).exists() and any(name[0] != "." for name in os.listdir(folder)):
        raise UsageError(f"{folder}: is not empty and holds no vectors; give another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None


def _check_names(paths: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for path in paths:
        if (other := first.setdefault(Path(path).stem, path)) != path:
            raise UsageError(
                f"--format npy names a file after its video, and {other} and {path} have one name: rename one, or "
                "take another format"
            )


def _header(
    embedder: Embedder,
    wanted: Wanted,
    sampling: Sampling,
    width: int,
    paths: Sequence[str],
    left_out: dict[str, str],
) -> dict[str, Any]:
    trained, batch = embedder.trained, embedder.trained.recipe.optimisation.batch_size
    size = wanted.per_file
    if wanted.per == "clip":  # whole batches of the loader
        size = -(-size * sampling.views // batch) * batch // sampling.views
        while size * sampling.views % batch:
            size += 1
    header: dict[str, Any] = {
        "version": _VERSION,
        "model": trained.identity.model,
        "model_key": embedder.key,
        "opened": embedder.asked,
        "per": wanted.per,
        "window": wanted.window and f"{wanted.window.amount:g} {wanted.window.unit}",
        "stride": wanted.stride and f"{wanted.stride.amount:g} {wanted.stride.unit}",
        "frames": sampling.num_frames,
        "interval": sampling.interval,
        "views": sampling.views,
        "batch_size": batch,
        "precision": embedder.place.precision,
        "format": wanted.form,
        "dtype": wanted.dtype,
        "input_dim": width,
        "videos": len(paths),
        "videos_sha256": hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest(),
        "videos_a_file": size,
        "files": -(-len(paths) // size),
        "left_out": left_out,
    }
    if wanted.form == "npy" and wanted.per != "clip":
        frames, stride = (wanted.window, wanted.stride) if wanted.per == "window" else (Length(1), None)
        every = stride or Length(sampling.interval or 1)
        assert frames is not None
        header |= {"feat_stride": every.ticks(1), "num_frames": frames.ticks(1), "offset_frames": frames.ticks(1) // 2}
    return header


def _write_header(folder: Path, header: dict[str, Any]) -> None:
    """Writes what the folder is to hold, or finds that it holds that."""
    with one_builder([folder / ".aim-fast" / "embed.lock"], f"the vectors of {folder}"):
        if not (folder / HEADER).exists():
            write_whole(folder / HEADER, json.dumps(header, indent=1))
            return
    try:
        saved = json.loads((folder / HEADER).read_text())
        odd = [
            f"{name} {saved.get(name)}, not {value}"
            for name, value in header.items()
            if name != "opened" and saved.get(name) != value
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / HEADER}: cannot be read ({error}); write the vectors elsewhere") from None
    if odd:
        raise UsageError(f"{folder}: holds other vectors ({'; '.join(odd)[:300]}); give another --output or remove it")


def _write_parts(folder: Path, header: dict[str, Any], part: Part, progress: RunProgress) -> None:
    """Writes parts that no other process has, until all are there."""
    form, files = header["format"], header["files"]
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    show = progress.bar("files of vectors")
    order = [(number + rank * files // world) % files for number in range(files)]
    while missing := [number for number in order if not part_file(folder, form, number).exists()]:
        wrote = False
        for number in missing:
            with claimed(folder / ".aim-fast" / f"part-{number:05d}.lock") as mine:
                if not mine or part_file(folder, form, number).exists():
                    continue
                videos = part(number)
                cast = [replace(video, vectors=_cast(folder, video.vectors, header["dtype"])) for video in videos]
                write_part(folder, form, number, cast)
                wrote = True
            show(sum(part_file(folder, form, other).exists() for other in range(files)), files)
        if not wrote:
            time.sleep(_LOOK_SECONDS)
    progress.close()


def _cast(folder: Path, vectors: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = vectors.astype(dtype)
    if not np.isfinite(cast).all():
        more = "" if dtype == "float32" else ": give --dtype float32"
        raise DataError(f"{folder}: the vectors do not fit into {dtype}{more}")
    return cast


def _of_clips(embedder: Embedder, loader: ClipLoader, size: int, wanted: Wanted) -> Part:
    """Parts of ``size`` healthy videos: the mean over their views of what the loader gives, in its own batches."""
    index, views = loader.index, loader.sampling.views
    batches = size * views // loader.batch_size
    coming: tuple[int, Iterator[Batch]] = (-1, iter(()))

    def part(number: int) -> list[VideoVectors]:
        nonlocal coming
        follows, given = coming
        if follows != number:
            given = loader.batches(0, start=number * batches)
        rows = index.healthy[number * size : (number + 1) * size].tolist()
        found: dict[int, list[np.ndarray]] = {row: [] for row in rows}
        for batch in itertools.islice(given, batches):
            weights, vectors = batch.weights.cpu().tolist(), embedder.vectors(batch.frames)
            for row, weight, vector in zip(batch.indices.tolist(), weights, vectors):
                if weight:
                    found[row].append(vector)
        coming = number + 1, given
        width, made = vectors.shape[1], []
        for row, of_views in found.items():
            path, last = index.rows[row].path, index.rows[row].frames - 1
            if len(of_views) < views:
                reason = loader.counts.names.get(path, "cannot be decoded any more")
                made.append(VideoVectors(path, np.zeros((0, width), np.float32), error=reason))
                continue
            whole = Moments.of([(np.nan, np.nan, 0, last)])
            made.append(VideoVectors(path, np.mean(of_views, 0, keepdims=True), whole))
        return made

    return part


def _of_windows(
    embedder: Embedder, paths: Sequence[str], size: int, sampling: Sampling, wanted: Wanted, width: int
) -> Part:
    """Parts of ``size`` videos: a vector of each window, or of each frame of windows that stand end to end."""
    recipe, model = embedder.trained.recipe, embedder.trained.model
    threads = embedder.place.decoding_threads(recipe.data.workers)
    options: dict[str, Any] = {"seconds": wanted.window, "stride": wanted.stride, "aligned": True, "threads": threads}
    if sampling.interval is not None:
        options["seconds"] = None

    def part(number: int) -> list[VideoVectors]:
        names = paths[number * size : (number + 1) * size]
        rows: list[list[tuple[float, float, int, int]]] = [[] for _ in names]
        vectors: list[list[np.ndarray]] = [[] for _ in names]
        rates, errors = [0.0] * len(names), [""] * len(names)
        waiting: list[tuple[int, Window]] = []

        def run() -> None:
            made = embedder.vectors(torch.stack([window.frames for _, window in waiting]), wanted.per)
            for (at, window), of_window in zip(waiting, made):
                start, rate = window.start - window.tick / window.rate, window.rate
                if wanted.per == "window":
                    rows[at].append((window.start, window.end, window.tick, window.tick + window.ticks - 1))
                    vectors[at].append(of_window)
                    continue
                for tick, vector in zip(window.taken.tolist(), of_window):
                    shown = window.tick + tick
                    if tick < window.ticks and (not rows[at] or shown > rows[at][-1][2]):
                        rows[at].append((start + shown / rate, start + (shown + 1) / rate, shown, shown))
                        vectors[at].append(vector)
            waiting.clear()

        for at, item in _read_in_order(
            names, lambda path: read_windows(path, sampling, model.img_size, **options), threads
        ):
            if isinstance(item, AimFastError):
                errors[at] = " ".join(str(item).split())
                continue
            rates[at] = item.rate
            waiting.append((at, item))
            if len(waiting) == recipe.optimisation.batch_size:
                run()
        if waiting:
            run()
        return [
            VideoVectors(name, np.zeros((0, width), np.float32), error=errors[at])
            if errors[at]
            else VideoVectors(name, np.stack(vectors[at]), Moments.of(rows[at]), rates[at])
            for at, name in enumerate(names)
        ]

    return part


def _read_in_order(
    paths: Sequence[str], read: Callable[[str], Iterator[Window]], ahead: int
) -> Iterator[tuple[int, Window | AimFastError]]:
    """(number of its path, window) in order; the windows of ``ahead`` videos are read at once. Errors end a video."""
    prefetchers = {number: Prefetcher[Window](_READ_AHEAD) for number in range(len(paths))}
    started: dict[int, Iterator[Window]] = {}
    try:
        for number in range(len(paths)):
            for coming in range(number, min(number + ahead, len(paths))):
                if coming not in started:
                    started[coming] = prefetchers[coming].start(read(paths[coming]))  # type: ignore[arg-type]
            try:
                for window in started.pop(number):
                    yield number, window
            except UsageError:
                raise
            except AimFastError as error:
                yield number, error
            started[number] = iter(())
    finally:
        for prefetcher in prefetchers.values():
            prefetcher.stop()


def _failed(folder: Path, header: dict[str, Any]) -> dict[str, str]:
    parts = (read_part(folder, header["format"], number) for number in range(header["files"]))
    return {video.video: video.error for part in parts for video in part if video.error}
