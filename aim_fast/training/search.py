"""The vectors of a folder that are nearest to a video or to words, by cosine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_fast.data import load_views
from aim_fast.data.features.vectors import HEADER, VideoVectors, part_file, read_part
from aim_fast.errors import DataError, UsageError
from aim_fast.training.embedder import Embedder, open_embedder
from aim_fast.training.progress import RunProgress

__all__ = ["Found", "search"]


@dataclass(frozen=True)
class Found:
    """A video and the seconds of it that a vector is of, None for the whole video; ``score`` is the cosine."""

    video: str
    start: float | None
    end: float | None
    score: float


def search(
    folder: Path, video: str | None, words: str | None, run: str | None, fields: Mapping[str, Any], top_k: int
) -> list[Found]:
    """The ``top_k`` nearest, the nearest first, to a video file or to words.

    The model is opened as it was for the vectors; ``run`` and ``fields`` say what of that is elsewhere now. Raises
    UsageError where the vectors are of another model, or words are given to one that reads none, DataError for a folder
    without all its vectors and for a video that cannot be read.
    """
    header = _read_header(folder)
    parts = [read_part(folder, header["format"], number) for number in range(header["files"])]
    videos = [video for part in parts for video in part if not video.error]
    if not videos:
        raise DataError(f"{folder}: none of its videos could be read, so there is nothing to find")
    opened = header["opened"]
    fields = opened["fields"] | dict(fields)
    embedder = open_embedder(run or opened["run"], opened["recipe"], fields)
    if embedder.key != header["model_key"]:
        raise UsageError(
            f"{folder}: its vectors are of another model than {embedder.trained.source}: give the run or the weights "
            "that they were written by, or write them again"
        )
    for line in embedder.trained.lines:
        RunProgress().say(line)
    asked = embedder.text(words) if words is not None else _vector(embedder, str(video))
    return _nearest(videos, asked, top_k)


def _vector(embedder: Embedder, video: str) -> np.ndarray:
    views = load_views(video, embedder.sampling, embedder.trained.model.img_size, allow_short=True)
    return embedder.vectors(views).mean(0)


def _nearest(videos: list[VideoVectors], asked: np.ndarray, top_k: int) -> list[Found]:
    vectors = np.concatenate([video.vectors for video in videos]).astype(np.float32)
    of = np.repeat(np.arange(len(videos)), [len(video.vectors) for video in videos])
    times = np.concatenate([np.stack([video.moments.start, video.moments.end], 1) for video in videos])
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    scores = vectors @ asked / np.maximum(lengths, 1e-12)
    found = []
    for row in np.argsort(-scores, kind="stable")[:top_k].tolist():
        start, end = (None if np.isnan(time) else float(time) for time in times[row])
        found.append(Found(videos[of[row]].video, start, end, float(scores[row])))
    return found


def _read_header(folder: Path) -> dict[str, Any]:
    if not (folder / HEADER).is_file():
        raise DataError(f"{folder}: holds no vectors; write them with aim-fast embed --output")
    try:
        header = json.loads((folder / HEADER).read_text())
        files = [part_file(folder, header["format"], number) for number in range(header["files"])]
        missing = [file for file in files if not file.exists()]
        for name in ("opened", "model_key"):
            header[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / HEADER}: cannot be read ({error}); write the vectors again") from None
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {header['files']} files of vectors are missing; run the same aim-fast embed "
            "again, which goes on where it stopped"
        )
    return header
