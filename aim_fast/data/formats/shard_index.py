"""What is in a tar shard and where: its samples with the offset of each video, read once and kept beside the data.

A sample is what WebDataset calls one: members that share their name up to the first dot of the last part, such as
``00000012.webm``, ``00000012.cls`` and ``00000012.json``. The label is the text of ``.cls`` or the ``label`` (or
``cls``) of ``.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from dataclasses import astuple, dataclass
from pathlib import Path

from aim_fast.data.formats.annotation import VIDEO_EXTENSIONS, class_number, decoded
from aim_fast.data.video.source import TarMember
from aim_fast.errors import DataError
from aim_fast.files import write_whole

__all__ = ["Sample", "read_shard"]

_VERSION = 2  # 1 took several labels for one
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip of a shard: its key, its video, its label as text ("" without one), its id and its class's name."""

    key: str
    name: str
    offset: int
    size: int
    label: str
    id: str
    class_name: str

    def path(self, shard: str) -> str:
        """The path by which the rest of the data path knows this video."""
        return TarMember(shard, self.offset, self.size, self.name).path


def read_shard(shard: Path, root: Path) -> list[Sample]:
    """The samples of a shard in their order, from the offset index under ``root`` where that is of this very file.

    Raises:
        DataError: no plain tar, cut off, a sample without its video, two videos or labels of one key.
    """
    try:
        state = shard.stat()
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror}; copy or write it again") from None
    places = _index_files(shard, root)
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(place.read_text())
            if (stored["version"], stored["size"], stored["mtime_ns"]) == (_VERSION, state.st_size, state.st_mtime_ns):
                return [Sample(*sample) for sample in stored["samples"]]
    samples = _samples(shard)
    content = {
        "version": _VERSION,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "samples": [astuple(sample) for sample in samples],
    }
    for place in places:
        with contextlib.suppress(OSError):  # an index is read faster than a shard, and not needed
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, json.dumps(content))
            break
    return samples


def _index_files(shard: Path, root: Path) -> list[Path]:
    """Beside the data, then in the user's cache folder."""
    name = os.path.relpath(shard, root).replace(os.sep, "__") + ".json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    return [root / ".aim-fast" / "shards" / name, cache / "aim-fast" / "index" / key / "shards" / name]


def _samples(shard: Path) -> list[Sample]:
    videos: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                extension = extension.lower()
                if f".{extension}" in VIDEO_EXTENSIONS:
                    if key in videos:
                        raise DataError(f"{shard}: sample {key} has two videos, {videos[key][0]} and {member.name}")
                    videos[key] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "json"):
                    file = archive.extractfile(member)
                    content = file.read() if file else b""
                    texts.setdefault(key, {})
                    if extension in texts[key]:
                        raise DataError(f"{shard}: sample {key} has two .{extension}; write the shard again")
                    texts[key][extension] = _text(shard, member.name, content)
            if shard.stat().st_size < archive.offset + _BLOCK:
                raise tarfile.ReadError("no end-of-archive block")
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is cut off or no plain tar ({error}) behind {len(videos)} videos; copy or write it again "
            "(compressed tars cannot be read at random: unpack them to .tar)"
        ) from None
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from None
    lost = [key for key in texts if key not in videos]
    if lost:
        raise DataError(f"{shard}: sample {lost[0]} has a label but no video ({len(lost)} such); write the shard again")
    return [_sample(shard, key, video, texts.get(key, {})) for key, video in videos.items()]


def _text(shard: Path, name: str, content: bytes) -> str:
    try:
        return decoded(content).strip()
    except UnicodeDecodeError:
        raise DataError(f"{shard}: {name} is not UTF-8 text; write the shard again") from None


def _sample(shard: Path, key: str, video: tuple[str, int, int], texts: dict[str, str]) -> Sample:
    facts = {}
    if "json" in texts:
        try:
            facts = json.loads(texts["json"])
        except json.JSONDecodeError as error:
            raise DataError(f"{shard}: {key}.json is not valid JSON ({error.msg}); write the shard again") from None
        if not isinstance(facts, dict):
            raise DataError(f"{shard}: {key}.json is no object; expected one with a label")
    told = next((facts[name] for name in ("label", "cls") if facts.get(name) is not None), "")
    if isinstance(told, (bool, list, dict)) or "\n" in texts.get("cls", ""):
        raise DataError(
            f"{shard}: sample {key} has label {texts.get('cls') or told!r}; expected one class's number or name"
        )
    label, other = texts.get("cls") or str(told), class_number(told)
    if class_number(label) != other and None not in (class_number(label), other):
        raise DataError(f"{shard}: sample {key} has label {label} in its .cls and {told} in its .json; write it again")
    return Sample(key, *video, label, str(facts.get("id", key)), str(facts.get("class", "")))
