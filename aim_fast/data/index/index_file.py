"""The index on disk: one compressed NumPy archive, beside the data or in the user's cache folder.

A column a field, names packed into one string with zero bytes between, the rest in a JSON header. 200,000 rows load in
about a second. Paths under the root are stored relative to it, so that the data can be mounted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from aim_fast.data.index.rows import Index, Row
from aim_fast.errors import DataError
from aim_fast.files import replacing

__all__ = ["index_paths", "outdated", "read_index", "stored_indices", "write_index"]

_VERSION = 2  # 1 counted packets instead of frames
# RuntimeError: a member that damage turned into an encrypted one, or one of an unknown compression
_UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
_NUMBERS = {
    "label": np.int32,
    "frames": np.int32,
    "height": np.int32,
    "width": np.int32,
    "rotation": np.int16,
    "size": np.int64,
    "mtime_ns": np.int64,
    "aspect": np.float64,
    "seekable": np.bool_,
}
_WORDS = ("codec", "pixel_format", "special")  # few different ones, listed in the header


def index_paths(dataset: str, root: str | Path, split: str) -> list[Path]:
    """Where the index may be: beside the data, then in the cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    root = Path(root).expanduser().absolute()
    folder, stem = (root, "") if root.is_dir() else (root.parent, f"-{root.name}")
    name = f"{dataset}{stem}-{split}.npz"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return [folder / ".aim-fast" / name, cache / "aim-fast" / "index" / key / name]


def stored_indices(dataset: str, root: str | Path, split: str) -> Iterator[tuple[Index, bool]]:
    """(index, complete) of each place that has one, the latest first: data that cannot be written to any more may have
    an older one beside them than the cache folder."""
    found = [(path.stat().st_mtime_ns, path) for path in index_paths(dataset, root, split) if path.is_file()]
    for _, path in sorted(found, reverse=True):
        stored = read_index(path, Path(root).expanduser())
        if stored is not None:
            yield stored


def outdated(dataset: str, root: str | Path, split: str) -> bool:
    """Whether there are index files, and all of earlier versions."""
    found = any(path.is_file() for path in index_paths(dataset, root, split))
    return found and next(stored_indices(dataset, root, split), None) is None


def write_index(index: Index, root: Path, *, complete: bool) -> None:
    """Beside the data if that can be written, else in the cache; a crash leaves the file before it whole."""
    reasons = []
    for path in index_paths(index.dataset, root, index.split):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **_columns(index, complete))  # type: ignore[arg-type]
            return
        except OSError as error:
            reasons.append(f"{path.parent} ({error.strerror or error})")
    raise DataError(f"the index cannot be written to {' or '.join(reasons)}; free space, or set XDG_CACHE_HOME")


def _columns(index: Index, complete: bool) -> dict[str, np.ndarray]:
    rows = index.rows
    base = _base(Path(index.root)) + os.sep
    words = {name: sorted({getattr(row, name) for row in rows}) for name in _WORDS}
    header = {
        "version": _VERSION,
        "complete": complete,
        "dataset": index.dataset,
        "split": index.split,
        "classes": index.classes,
        "words": words,
        "errors": {i: row.error for i, row in enumerate(rows) if row.error is not None},
        "multi_label": index.multi_label,
        "others": {i: row.others for i, row in enumerate(rows) if row.others},
    }
    columns: dict[str, np.ndarray] = {
        name: np.array([getattr(row, name) for row in rows], kind) for name, kind in _NUMBERS.items()
    }
    for name in _WORDS:
        columns[name] = np.array([words[name].index(getattr(row, name)) for row in rows], np.int16)
    columns["path"] = _packed(row.path.removeprefix(base) for row in rows)
    columns["id"] = _packed(row.id for row in rows)
    columns["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return columns


def read_index(path: Path, root: Path) -> tuple[Index, bool] | None:
    """(index, complete), or None for an index of another version, which is then written anew."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        header = json.loads(columns["header"].tobytes())
        if header["version"] != _VERSION:
            return None
        base = _base(root)
        paths = [os.path.join(base, name) for name in _unpacked(columns["path"])]
        errors = {int(i): error for i, error in header["errors"].items()}
        facts = {name: columns[name].tolist() for name in _NUMBERS}
        facts |= {name: [header["words"][name][number] for number in columns[name].tolist()] for name in _WORDS}
        others = {int(i): tuple(labels) for i, labels in header.get("others", {}).items()}
        names = zip(paths, _unpacked(columns["id"]), strict=True)
        rows = [
            Row(name, id=identity, error=errors.get(i), others=others.get(i, ()), **{k: v[i] for k, v in facts.items()})
            for i, (name, identity) in enumerate(names)
        ]
        index = Index(header["dataset"], header["split"], str(root), header["classes"], rows)
        return replace(index, multi_label=header.get("multi_label", False)), header["complete"]
    except _UNREADABLE as error:
        raise DataError(
            f"index {path} cannot be read ({type(error).__name__}); "
            "delete it, or scan again with aim-fast index --rebuild"
        ) from None


def _base(root: Path) -> str:
    return str(root if root.is_dir() else root.parent)


def _packed(names: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def _unpacked(column: np.ndarray) -> list[str]:
    return column.tobytes().decode("utf-8", "surrogateescape").split("\0")
