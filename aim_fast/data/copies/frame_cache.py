"""Decoded frames of a split on disk, so that epochs do not decode video.

Every frame of a clip is kept, because each epoch samples others: raw RGB, read through memory maps, or JPEG. Frames
whose short side is above ``short_side`` are shrunk to it, linearly with antialiasing; smaller ones are kept as they
are, and a raw cache of those gives the same batches as decoding does, bit for bit. JPEG (quality 95, full chroma) takes
about a tenth of the room and changes levels by about one.

    FOLDER/<kind>-<short side>/<split>/0000.bin     frames of some clips, one after the other
                                       0000.json    which clips, their sizes, and where their frames are

A shard counts once its ``.json`` is there, which is written last and renamed: building that is interrupted goes on with
what is missing, and clips whose file changed are cached anew. Clips beyond the byte budget stay with their videos.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import torch
from PIL import Image

from aim_fast.cores import default_workers
from aim_fast.data.choices import FrameCacheKind
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.pixels.resize import box_slices, resize_box, resize_whole
from aim_fast.data.plan.clip_plan import ClipPlan
from aim_fast.data.video.decode import decode_frames, stream_frames
from aim_fast.data.video.frame_folder import CODEC as PICTURES
from aim_fast.errors import DataError, UsageError
from aim_fast.files import check_room, clear_unfinished, one_builder, replacing, write_whole

__all__ = ["JPEG_SHARE", "KINDS", "FrameCache", "load_or_build_frame_cache", "raw_bytes"]

KINDS: tuple[str, ...] = get_args(FrameCacheKind)
_SHARD_BYTES = 256 * 2**20
SHARD_CLIPS = 64
_QUALITY = 95
JPEG_SHARE = 0.12  # of the raw bytes, for planning the room that is needed
_PICTURES_AT_ONCE = 64
_LESS_ROOM = "give --cache-gib, --cache-format jpeg, or another --cache-dir"


_Key = tuple[str, int, int, int, str]  # path, size, time, frames and what is special: what a clip is cached by


@dataclass(frozen=True, slots=True)
class _Entry:
    """A clip in a shard: frame i is the bytes from ``offsets[i]`` to ``offsets[i + 1]``."""

    shard: Path
    height: int
    width: int
    offsets: np.ndarray  # int64 [n + 1]


class FrameCache:
    """The cached clips of one index. Made by ``load_or_build_frame_cache``."""

    def __init__(self, kind: str, entries: dict[int, _Entry], clips: int, missing: list[str]) -> None:
        self.kind, self.entries, self.clips, self.missing = kind, entries, clips, missing
        self._maps: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        """Whether row ``index`` is cached."""
        return index in self.entries

    @property
    def description(self) -> str:
        """One line to print."""
        size = sum(int(entry.offsets[-1] - entry.offsets[0]) for entry in self.entries.values())
        line = f"frame cache: {len(self.entries)} of {self.clips} clips, {size / 2**30:.2f} GiB, {self.kind}"
        return line + (f"; {len(self.missing)} beyond the budget are decoded" if self.missing else "")

    def box(self, index: int, plan: ClipPlan, img_size: int) -> np.ndarray:
        """uint8 [U, S, S, 3]: the plan's frames of row ``index``, its box of them resized, as decoding gives them."""
        entry = self.entries[index]
        data = self._map(entry.shard)
        if self.kind == "raw":
            frames = data[entry.offsets[0] : entry.offsets[-1]].reshape(-1, entry.height, entry.width, 3)
            rows, columns = box_slices(plan, entry.height, entry.width)
            return resize_whole(frames[plan.frames, rows, columns], plan.flip, img_size)
        encoded = [data[entry.offsets[number] : entry.offsets[number + 1]] for number in plan.frames]
        return resize_box(
            np.stack([np.asarray(Image.open(io.BytesIO(one.tobytes()))) for one in encoded]), plan, img_size
        )

    def _map(self, shard: Path) -> np.ndarray:
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = np.asarray(np.memmap(shard, np.uint8, "r"))
            return self._maps[shard]


def load_or_build_frame_cache(
    index: Index,
    folder: str | Path,
    *,
    kind: str = "raw",
    short_side: int = 256,
    max_bytes: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FrameCache:
    """The cache of an index's healthy clips below ``folder``, with what it lacks decoded now.

    Args:
        kind: "raw" or "jpeg".
        short_side: larger frames are shrunk to it; 0 keeps every frame as it is.
        max_bytes: budget of this split; clips are taken in order until it is spent. None for no limit.
        workers: decoding threads; None for one a core.
        progress: called with (clips done, clips to do).

    Raises:
        UsageError: an unknown kind. DataError: too little room on the disk, said before anything is decoded, or a
        folder that cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind of frame cache {kind!r}: known are {', '.join(KINDS)}")
    place = Path(folder).expanduser() / f"{kind}-{short_side}" / index.split
    share = JPEG_SHARE if kind == "jpeg" else 1.0
    try:
        place.mkdir(parents=True, exist_ok=True)
        have = _read(place)
        wanted, missing = _within(index, have, short_side, share, max_bytes)
        if any(_key(index.rows[number]) not in have for number in wanted):
            with one_builder([place / "lock"], f"the frame cache {place}"):
                clear_unfinished(place)
                have = _read(place)  # another process may have cached meanwhile
                wanted, missing = _within(index, have, short_side, share, max_bytes)
                todo = [number for number in wanted if _key(index.rows[number]) not in have]
                needed = sum(_expected(index.rows[number], short_side, share) for number in todo)
                check_room(place, needed, "the frame cache needs about", _LESS_ROOM)
                _build(index, todo, place, kind, short_side, share, workers or default_workers(), progress)
                have = _read(place)
    except OSError as error:
        raise DataError(
            f"frame cache {place}: {error.strerror or error}; make room or give another --cache-dir"
        ) from None
    entries = {number: have[_key(index.rows[number])] for number in wanted if _key(index.rows[number]) in have}
    return FrameCache(kind, entries, len(index.healthy), missing)


def _key(row: Row) -> tuple[str, int, int, int, str]:
    return row.path, row.size, row.mtime_ns, row.frames, row.special


def _shape(row: Row, short_side: int) -> tuple[int, int]:
    height, width = row.upright_size
    factor = short_side / min(height, width) if short_side else 1.0
    return (height, width) if factor >= 1 else (round(height * factor), round(width * factor))


def raw_bytes(row: Row, short_side: int) -> int:
    """Of all frames of a clip, as raw frames of ``short_side`` pixels at most."""
    height, width = _shape(row, short_side)
    return row.frames * height * width * 3


def _expected(row: Row, short_side: int, share: float) -> int:
    return int(raw_bytes(row, short_side) * share)


def _within(
    index: Index, have: dict[_Key, _Entry], short_side: int, share: float, max_bytes: int | None
) -> tuple[list[int], list[str]]:
    """Rows to cache, in order until the budget is spent, and the paths of the others."""
    wanted, others, spent = [], [], 0
    for number in index.healthy.tolist():
        row = index.rows[number]
        entry = have.get(_key(row))
        spent += int(entry.offsets[-1] - entry.offsets[0]) if entry else _expected(row, short_side, share)
        if max_bytes is not None and spent > max_bytes:
            others.append(row.path)
        else:
            wanted.append(number)
    return wanted, others


def _read(place: Path) -> dict[_Key, _Entry]:
    """Every clip of the finished shards."""
    found = {}
    for manifest in sorted(place.glob("*.json")):
        shard = manifest.with_suffix(".bin")
        try:
            size = shard.stat().st_size
            for clip in json.loads(manifest.read_text()):
                offsets = np.array(clip["offsets"], np.int64)
                if offsets[-1] <= size:
                    key = (clip["path"], clip["size"], clip["mtime_ns"], len(offsets) - 1, clip.get("special", ""))
                    found[key] = _Entry(shard, clip["height"], clip["width"], offsets)
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            continue  # what it says is cached again
    return found


def _build(
    index: Index,
    todo: list[int],
    place: Path,
    kind: str,
    short_side: int,
    share: float,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    taken = {int(path.stem) for path in place.glob("[0-9]*.json")}
    first = max(taken, default=-1) + 1
    shards = list(_shards(index, todo, short_side, share))
    done = 0
    lock = threading.Lock()

    def one() -> None:
        nonlocal done
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(todo))

    ended = threading.Event()

    def work(number: int, rows: list[int]) -> None:
        if ended.is_set():
            return
        try:
            _write_shard(place / f"{first + number:04d}", [index.rows[row] for row in rows], kind, short_side, one)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(workers, thread_name_prefix="cache") as pool:
        jobs = [pool.submit(work, number, rows) for number, rows in enumerate(shards)]
        try:
            for job in jobs:
                job.result()
        finally:
            ended.set()


def _shards(index: Index, todo: list[int], short_side: int, share: float) -> Iterator[list[int]]:
    """The rows to write, cut into shards."""
    rows, size = [], 0
    for number in todo:
        rows.append(number)
        size += _expected(index.rows[number], short_side, share)
        if size >= _SHARD_BYTES or len(rows) == SHARD_CLIPS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _write_shard(stem: Path, rows: Sequence[Row], kind: str, short_side: int, one: Callable[[], None]) -> None:
    """One ``.bin`` and its ``.json``; a clip that fails to decode is left to its video."""
    clips = []
    with replacing(stem.with_suffix(".bin")) as temporary, open(temporary, "wb") as file:
        for row in rows:
            start = file.tell()
            try:
                clips.append(_write_clip(file, row, kind, short_side))
            except DataError:
                file.seek(start)
                file.truncate()
            one()
    write_whole(stem.with_suffix(".json"), json.dumps(clips))


def _write_clip(file: BinaryIO, row: Row, kind: str, short_side: int) -> dict:
    height, width = _shape(row, short_side)
    offsets = [file.tell()]
    for pixels in _frames(row):
        frame = _shrunk(pixels, height, width)
        if kind == "raw":
            file.write(np.ascontiguousarray(frame).data)
        else:
            Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY, subsampling=0)
        offsets.append(file.tell())
    if len(offsets) != row.frames + 1:
        raise DataError(f"{row.path} has {len(offsets) - 1} frames, not {row.frames}; index the data set again")
    facts = {"path": row.path, "size": row.size, "mtime_ns": row.mtime_ns, "special": row.special}
    facts |= {"height": height, "width": width}
    return {**facts, "offsets": offsets}


def _frames(row: Row) -> Iterator[np.ndarray]:
    if row.codec != PICTURES:
        for frame in stream_frames(row.path):
            yield frame.pixels
        return
    for start in range(0, row.frames, _PICTURES_AT_ONCE):
        yield from decode_frames(row.path, range(start, min(start + _PICTURES_AT_ONCE, row.frames)))


def _shrunk(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    frame = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(frame, (height, width), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()
