"""What is in a tar shard and where: its samples with the offset of each video, read once and kept beside the data.

A sample is members that share their name up to a dot, such as ``00000012.webm``, ``00000012.cls`` and
``00000012.json`` (see :mod:`aim_fast.data.formats.shard_samples`). The label is the text of ``.cls`` or the ``label``
(or ``cls``) of ``.json``. Members that are no part of a sample are counted and named; a link is what it links to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from aim_fast.data.formats.annotation import class_number, decoded
from aim_fast.data.formats.extensions import HEAD, Kind, file_kind, hidden
from aim_fast.data.formats.shard_samples import LABELS, REPAIR, group, label_in, parts_of, read_facts, stem
from aim_fast.data.storage.cache import open_archive
from aim_fast.data.video.source import TarMember
from aim_fast.errors import DataError
from aim_fast.files import write_whole

__all__ = ["Sample", "Shard", "read_shard"]

_VERSION = 2  # 1 passed over keys with dots, and took several labels for one
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


@dataclass(frozen=True, slots=True)
class Shard:
    """The samples of a shard in their order, and members of none: what lies ``beside``, and what may be a video."""

    samples: list[Sample]
    beside: list[str]
    lost: list[str]


def read_shard(shard: Path, root: Path) -> Shard:
    """What is in a shard, from the offset index under ``root`` where that is of this very file.

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
                return Shard([Sample(*sample) for sample in stored["samples"]], stored["beside"], stored["lost"])
    found = _read(shard)
    content = {
        "version": _VERSION,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "samples": [astuple(sample) for sample in found.samples],
        "beside": found.beside,
        "lost": found.lost,
    }
    for place in places:
        with contextlib.suppress(OSError):  # an index is read faster than a shard, and not needed
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, json.dumps(content))
            break
    return found


def _index_files(shard: Path, root: Path) -> list[Path]:
    """Beside the data, then in the user's cache folder."""
    name = os.path.relpath(shard, root).replace(os.sep, "__") + ".json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    return [root / ".aim-fast" / "shards" / name, cache / "aim-fast" / "index" / key / "shards" / name]


def _read(shard: Path) -> Shard:
    """What the tar itself says."""
    members: dict[str, tarfile.TarInfo] = {}  # by name, where their bytes are
    kinds: dict[str, Kind] = {}
    texts: dict[str, str] = {}
    passed = []
    try:
        with os.fdopen(open_archive(shard), "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = member.name
                if member.isdir() or any(hidden(part) for part in name.split("/") if part not in (".", "..")):
                    continue
                target = _bytes_of(member, members)
                if target is None:
                    passed.append(f"{name} (a {'sparse file' if member.issparse() else 'link to nothing in the tar'})")
                    continue
                kind = file_kind(name, functools.partial(_content, archive, target, HEAD))
                text = None
                if name.lower().endswith(LABELS):
                    text = _text(shard, name, _content(archive, target))
                if name in members and (kind == "video" or texts.get(name) != text):
                    what = "videos" if kind == "video" else "labels"
                    raise DataError(f"{shard}: sample {stem(name)} has two {what}, both called {name}; {REPAIR}")
                members[name], kinds[name] = target, kind
                if text is not None:
                    texts[name] = text
            if os.fstat(file.fileno()).st_size < archive.offset + _BLOCK:
                raise tarfile.ReadError("no end-of-archive block")
    except tarfile.TarError as error:
        found = sum(kind == "video" for kind in kinds.values())
        raise DataError(
            f"{shard} is cut off or no plain tar ({error}) behind {found} videos; copy or write it again "
            "(compressed tars cannot be read at random: unpack them to .tar)"
        ) from None
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from None
    videos: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind == "video" and (other := videos.setdefault(stem(name), name)) != name:
            raise DataError(f"{shard}: sample {stem(name)} has two videos, {other} and {name}; {REPAIR}")
    own, keys = group(shard, videos, texts)
    apart = [name for name, kind in kinds.items() if kind != "video" and keys.isdisjoint(parts_of(name))]
    lost = [name for name in apart if kinds[name] == "unknown"]
    samples = [_sample(shard, key, name, members[name], own[key], texts) for key, name in videos.items()]
    return Shard(samples, [name for name in apart if kinds[name] != "unknown"], passed + lost)


def _bytes_of(member: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member itself or the earlier one that it links to; None where its bytes are not in one stretch."""
    if member.islnk():  # to a name as the tar has it; a symbolic link begins where it lies
        return members.get(member.linkname)
    if member.issym():
        place = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
        return members.get(place) or members.get(f"./{place}")
    return member if member.isfile() and not member.issparse() else None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, size: int = -1) -> bytes:
    file = archive.extractfile(member)
    return file.read(size) if file else b""


def _text(shard: Path, name: str, content: bytes) -> str:
    try:
        return decoded(content).strip()
    except UnicodeDecodeError:
        raise DataError(f"{shard}: {name} is not UTF-8 text; write the shard again") from None


def _sample(
    shard: Path, key: str, name: str, member: tarfile.TarInfo, own: Sequence[str], texts: Mapping[str, str]
) -> Sample:
    objects = {text: read_facts(shard, text, texts[text]) for text in own if text.lower().endswith(".json")}
    written = next((texts[text] for text in own if text not in objects and texts[text]), "")
    told = next((value for facts in objects.values() if (value := label_in(facts)) is not None), "")
    if isinstance(told, (bool, list, dict)) or "\n" in written:
        raise DataError(f"{shard}: sample {key} has label {written or told!r}; expected one class's number or name")
    label, number = written or str(told), class_number(told)
    if class_number(label) != number and None not in (class_number(label), number):
        raise DataError(f"{shard}: sample {key} has label {label} in its .cls and {told} in its .json; write it again")
    facts = next(iter(objects.values()), {})
    place = member.offset_data, member.size
    return Sample(key, name, *place, label, str(facts.get("id", key)), str(facts.get("class", "")))
