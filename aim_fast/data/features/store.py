"""Frozen features on disk: computed once for every clip of a split, read at random in training.

    FOLDER/store.json                what the features are: trunk, frames, views, data set, shape
    FOLDER/shard-00000.safetensors   features [n, V, ...], keys int64 [n], valid uint8 [n]

n = ``shard_clips`` clips in the order of the index, V views of each. A key is a hash of a clip's path below the data
root, its size and its frames, so features are found for any part of a split, under other labels, and never for another
file. A shard is written under a temporary name, synced and renamed: a kill leaves whole shards, and writing goes on
after the last of them. ``valid`` is 0 where a clip could not be decoded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aim_fast.data.choices import FeatureDtype
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.loader import ClipLoader
from aim_fast.errors import DataError, UsageError
from aim_fast.files import check_room, write_whole
from aim_fast.plain_path import plain_path

__all__ = ["DTYPES", "FeatureSource", "FeatureStore", "clip_key", "write_features"]

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(FeatureDtype)}
_STORE = "store.json"
_VERSION = 1


@dataclass(frozen=True)
class FeatureSource:
    """What features were computed by and from: features of another source are of no use to a model.

    ``part`` says which of the model's values they are, ``trunk_sha256`` which weights it had; ``interval`` is 0 where
    frames are spread over the video; ``mean`` and ``std`` are of R, G and B on the scale of 0 to 255.
    """

    part: str
    trunk_sha256: str
    num_frames: int
    interval: int
    img_size: int
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> FeatureSource:
        """From what JSON makes of its fields."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def differences(self, other: FeatureSource) -> list[str]:
        """In what ``other`` differs, one phrase a field, hashes shortened."""
        found = []
        for field in dataclasses.fields(self):
            mine, theirs = (getattr(source, field.name) for source in (self, other))
            if mine != theirs:
                if field.name == "trunk_sha256":
                    mine, theirs = (f"{sha[:12]}…" for sha in (mine, theirs))
                name = {"trunk_sha256": "trunk SHA-256", "num_frames": "frames"}.get(field.name, field.name)
                found.append(f"{name} {mine}, not {theirs}")
        return found


class FeatureStore:
    """Stored features, opened for reading.

    Attributes: ``source``; ``views`` V of each clip; ``shape`` of one view's features; ``dataset``, ``split``;
    ``bytes`` on disk.
    Raises DataError for a folder that holds none, not all, or damaged ones.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / _STORE).is_file():
            raise DataError(f"{self.folder}: holds no features; write them with aim-fast features --output")
        header = _read_header(self.folder)
        self.source: FeatureSource = header["source"]
        self.views: int = header["views"]
        self.shape: tuple[int, ...] = tuple(header["shape"])
        self.dataset, self.split = header["dataset"], header["split"]
        self._shard_clips: int = header["shard_clips"]
        count = -(-header["clips"] // self._shard_clips)
        paths = [_shard(self.folder, number) for number in range(count)]
        if there := [path for path in paths if not path.is_file()]:
            raise DataError(
                f"{self.folder}: {len(there)} of {count} shards of features are missing; run the same aim-fast "
                "features again, which goes on where it stopped"
            )
        self.bytes = sum(path.stat().st_size for path in paths)
        self._files = [_opened(path) for path in paths]
        self._slices = [file.get_slice("features") for file in self._files]
        keys = torch.cat([file.get_tensor("keys") for file in self._files]).tolist()
        valid = torch.cat([file.get_tensor("valid") for file in self._files]).tolist()
        self._position = {key: place for place, key in enumerate(keys)}
        self._invalid = {place for place, good in enumerate(valid) if not good}

    def positions(self, index: Index) -> np.ndarray:
        """int64 [rows of the index]: where each one's features are; -1 for a clip that could not be decoded.

        Raises DataError, naming the first, where the store lacks clips that the index can use.
        """
        found = np.full(len(index.rows), -1, np.int64)
        lacking = []
        for number, row in enumerate(index.rows):
            if row.healthy:
                place = self._position.get(clip_key(index, row))
                if place is None:
                    lacking.append(row.path)
                elif place not in self._invalid:
                    found[number] = place
        if lacking:
            raise DataError(
                f"{self.folder}: has no features of {len(lacking)} of {len(index)} clips (of {self.dataset} "
                f"{self.split}; first {lacking[0]}): write features of this data set as it is now"
            )
        return found

    def read(self, places: list[int], views: list[int]) -> Tensor:
        """Features ``[len(places), ...]`` of those places and views."""
        rows = []
        for place, view in zip(places, views, strict=True):
            shard, row = divmod(place, self._shard_clips)
            rows.append(self._slices[shard][row : row + 1, view : view + 1][0])
        return torch.cat(rows)


def clip_key(index: Index, row: Row) -> int:
    """A signed 64-bit hash of which file a row is: path below the data root, bytes and frames."""
    path = os.path.relpath(row.path, index.root)
    digest = hashlib.blake2b(os.fsencode(f"{path}\0{row.size}\0{row.frames}"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def write_features(
    folder: Path,
    source: FeatureSource,
    loader: ClipLoader,
    extract: Callable[[Tensor], Tensor],
    *,
    dtype: str = "float16",
    shard_bytes: int = 64 * 2**20,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write ``extract(frames)`` [B, ...] of every view of every clip of an evaluation loader, a batch at a time.

    Goes on after the shards that are there; returns how many clips were found done. ``progress`` is called with (views
    done, all views) after each batch. Raises UsageError where the folder holds other features, DataError where
    the disk refuses or a feature does not fit into ``dtype``.
    """
    index, views = loader.index, loader.sampling.views
    rows = [index.rows[number] for number in index.healthy]
    keys = [clip_key(index, row) for row in rows]
    header: dict[str, Any] = {
        "version": _VERSION,
        "source": dataclasses.asdict(source),
        "dataset": index.dataset,
        "split": index.split,
        "clips": len(rows),
        "clips_sha256": hashlib.sha256(repr(keys).encode()).hexdigest(),
        "views": views,
        "random": loader.sampling.random,
        "seed": loader.seed if loader.sampling.random else None,
        "dtype": dtype,
    }
    done = _found_done(folder, header)
    if done == len(rows):
        return done
    try:
        folder.mkdir(parents=True, exist_ok=True)
        at = done
        for features, valid in _by_shard(loader, extract, header, done, folder, DTYPES[dtype], shard_bytes, progress):
            count = len(features)
            tensors = {"features": features, "keys": torch.tensor(keys[at : at + count]), "valid": valid}
            write_whole(_shard(folder, at // header["shard_clips"]), save(tensors))
            at += count
    except OSError as error:
        raise DataError(f"{folder}: features cannot be written ({error.strerror}); make room or go elsewhere") from None
    return done


def _by_shard(
    loader: ClipLoader,
    extract: Callable[[Tensor], Tensor],
    header: dict[str, Any],
    done: int,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [n, V, ...] and valid uint8 [n] of one shard after the other; completes the header at the first."""
    views, total, size = header["views"], header["clips"] * header["views"], loader.batch_size
    place = done * views
    first, held, good = place // size, [], []
    for number, batch in enumerate(loader.batches(0, start=first), start=first):
        part = slice(place - number * size, min(size, total - number * size))
        kept = batch.weights.cpu()[part] > 0
        made = extract(batch.frames)[part].to(dtype).cpu()
        if not made[kept].isfinite().all():
            raise DataError(f"{folder}: features do not fit into {dtype}: give --dtype bfloat16 or float32")
        of_a_clip = views * made[0].numel() * made.element_size()
        if number == first:
            check_room(folder, (header["clips"] - done) * of_a_clip, "the features need", "take a larger disk")
        if "shape" not in header:
            header |= {"shape": list(made.shape[1:]), "shard_clips": max(shard_bytes // of_a_clip, 1)}
            write_whole(folder / _STORE, json.dumps(header, indent=2))
        held.append(made)
        good.append(kept)
        place += len(made)
        if progress:
            progress(place, total)
        of_a_shard = header["shard_clips"] * views
        while sum(map(len, held)) >= of_a_shard or (place == total and held):
            features, valid = torch.cat(held), torch.cat(good)
            shard = features[:of_a_shard].unflatten(0, (-1, views)).contiguous()
            yield shard, valid[:of_a_shard].view(-1, views).all(1).to(torch.uint8)
            held, good = ([x[of_a_shard:]] if len(x) > of_a_shard else [] for x in (features, valid))


def _found_done(folder: Path, header: dict[str, Any]) -> int:
    """Clips whose shards are there; the header then gets shape and size of a shard from the store."""
    if not (folder / _STORE).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty and holds no features; give another --output")
        return 0
    saved = _read_header(folder)
    there, asked = saved["source"], FeatureSource.of(header["source"])
    odd = there.differences(asked) + [
        f"{name} {saved.get(name)}, not {value}"
        for name, value in header.items()
        if name != "source" and saved.get(name) != value
    ]
    if odd:
        raise UsageError(f"{folder}: holds other features ({'; '.join(odd)}); give another --output or remove it")
    header |= {name: saved[name] for name in ("shape", "shard_clips")}
    number = 0
    while number * header["shard_clips"] < header["clips"] and _shard(folder, number).is_file():
        number += 1
    return min(number * header["shard_clips"], header["clips"])


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / _STORE).read_text())
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']}")
        header["source"] = FeatureSource.of(header["source"])
        for name in ("clips", "views", "shard_clips", "shape", "dataset", "split"):
            header[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _STORE}: cannot be read ({error}); write the features again") from None
    return header


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _opened(path: Path) -> Any:
    try:
        return safe_open(plain_path(path), "pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it and run aim-fast features again") from None
