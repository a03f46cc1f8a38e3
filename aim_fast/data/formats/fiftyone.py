"""Exports of FiftyOne that hold whole videos with a class, told apart by what is there.

- ``FiftyOneDataset``: ``samples.json`` (or a file a sample in ``samples/``) beside ``data/``; the class is the
  ``Classification`` of a sample, of several fields that called ``ground_truth``; its tags say the split;
- ``FiftyOneVideoLabelsDataset``: ``manifest.json`` with ``labels/<name>.json``, whose video-level attributes have it;
- ``VideoClassificationDirectoryTree``: ``<class>/<video>``, with ``_unlabeled`` for those that have none.

Formats: docs.voxel51.com, exporting datasets, and fiftyone.utils.data.exporters, which writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aim_fast.data.formats.annotation import read_json
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.data.formats.tool_export import UNTOLD, Labelled, listing_of, split_word
from aim_fast.errors import DataError, abridged

__all__ = ["LAYOUT", "holds_export", "read"]

LAYOUT = Layout(
    text="an export of FiftyOne: samples.json and data/ (FiftyOneDataset), manifest.json, labels/ and data/ "
    "(FiftyOneVideoLabelsDataset), or <class>/<video> (VideoClassificationDirectoryTree)",
    source="https://docs.voxel51.com: dataset.export(export_dir=…, dataset_type=…)",
    videos=("data",),
    depth=8,
)
_FIELD = "ground_truth"
_UNLABELLED = "_unlabeled"


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the samples."""
    places = (data.path, *sorted(filter(Path.is_dir, data.path.iterdir())))
    roots = [place for place in places if _documents(place) or (place / "samples.json").is_file()]
    rows = [row for root in roots for row in _rows(root, data.path)] if roots else _tree(data)
    if not rows:
        raise data.refusal(f"no {'sample in the ' if roots else ''}export of FiftyOne in {data.path}")
    return listing_of(data, rows)


def holds_export(data: DataRoot) -> bool:
    """Whether samples or a manifest are there that this format reads; a tree of folders is any tool's."""
    return data.path.is_dir() and _documents(data.path)


def _documents(root: Path) -> bool:
    return (
        any((root / name).exists() for name in ("samples.json", "samples")) and (root / "metadata.json").is_file()
    ) or ((root / "manifest.json").is_file() and (root / "labels").is_dir())


def _rows(root: Path, top: Path) -> Iterator[Labelled]:
    """``root``: an export, of one split where it is a folder below ``top``."""
    split = split_word(root.name) if root != top else ""
    if (root / "manifest.json").is_file() and not (root / "metadata.json").is_file():
        yield from _of_manifest(root, split)
        return
    file = root / "samples.json"
    if file.is_file():
        content = read_json(file)
        samples = content.get("samples") if isinstance(content, dict) else None
        places = [f"samples.json sample {number}" for number in range(len(samples or ()))]
    else:
        files = sorted((root / "samples").glob("*.json"))
        samples, places = [read_json(one) for one in files], [f"samples/{one.name}" for one in files]
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise DataError(f"{file}: holds no list of samples; is it that of a FiftyOneDataset?")
    label_field = _label_field(file, samples)
    for place, sample in zip(places, samples):
        path, tags = sample.get("filepath"), sample.get("tags") or []
        if not isinstance(path, str) or not path:
            raise DataError(f"{file}: {place} has no filepath; export it again")
        told = split_word(*map(str, tags)) if isinstance(tags, list) else ""
        words = _words(sample.get(label_field))
        yield Labelled((path.replace("\\", "/"),), words, place, told or split)


def _label_field(file: Path, samples: list[dict[str, Any]]) -> str:
    """The field of the samples that has classifications; DataError where it is not sure which."""
    fields = Counter(name for sample in samples for name, value in sample.items() if _is_classification(value))
    if len(fields) > 1 and _FIELD not in fields:
        raise DataError(
            f"{file}: {abridged(list(map(repr, sorted(fields))))} all hold classifications: which is the class? Export "
            f"one of them, or name it {_FIELD}"
        )
    return _FIELD if _FIELD in fields else next(iter(fields), _FIELD)


def _is_classification(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_cls") in ("Classification", "Classifications")


def _words(value: Any) -> tuple[str, ...]:
    if not _is_classification(value):
        return ()
    several = value.get("classifications")
    found = several if isinstance(several, list) else [value]
    return tuple(str(one["label"]) for one in found if isinstance(one, dict) and one.get("label") is not None)


def _of_manifest(root: Path, split: str) -> Iterator[Labelled]:
    file = root / "manifest.json"
    content = read_json(file)
    index = content.get("index") if isinstance(content, dict) else None
    if not isinstance(index, list):
        raise DataError(f"{file}: holds no index of videos; is it that of a FiftyOneVideoLabelsDataset?")
    for number, record in enumerate(index):
        video, labels = (record.get(key) if isinstance(record, dict) else None for key in ("data", "labels"))
        if not (isinstance(video, str) and isinstance(labels, str) and video and labels):
            raise DataError(f"{file}: entry {number} names no data and labels; export it again")
        content = read_json(_inside(file, root, labels))
        attributes = content.get("attrs") if isinstance(content, dict) else None
        listed = attributes.get("attrs", []) if isinstance(attributes, dict) else []
        found = [one for one in listed if isinstance(one, dict) and "value" in one] if isinstance(listed, list) else []
        words = tuple(str(one["value"]) for one in found)
        parts = isinstance(content, dict) and any(map(content.get, ("frames", "events", "objects")))
        lacks = "videos with labels of frames or stretches alone" if parts else UNTOLD
        yield Labelled((video.replace("\\", "/"),), words, f"manifest.json entry {number}", split, lacks)


def _inside(file: Path, root: Path, name: str) -> Path:
    place = (root / name).resolve()
    if root.resolve() not in place.parents:
        raise DataError(f"{file}: names {name!r}, which is outside of {root}; export it again")
    return place


def _tree(data: DataRoot) -> list[Labelled]:
    rows = []
    for _, path in data.videos:
        parts = Path(path).relative_to(data.path).parts
        split = split_word(parts[0]) if len(parts) > 2 else ""
        below = parts[1:] if split else parts
        if len(below) > 1:
            words = () if below[0] == _UNLABELLED else (below[0],)
            rows.append(Labelled((path,), words, "/".join(parts), split))
    return rows
