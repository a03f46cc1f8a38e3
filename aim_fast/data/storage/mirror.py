"""A local folder that stands for one in object storage: its small files, and in the place of each tar what says where
that is. The rest of the data path reads it as any folder of shards, in the same order.

The folder is made again at each start of a process, which asks the storage for its names. Names come from a listing,
or where the server gives none from the ``shards.json`` of ``aim-fast shard``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from aim_fast.data.storage.address import joined, shown
from aim_fast.data.storage.cache import RemoteShard, storage_folder, tar_folder
from aim_fast.data.storage.transfer import file_system, retried
from aim_fast.errors import DataError
from aim_fast.files import one_builder, write_whole

__all__ = ["mirror"]

_TEXTS = ("classes.txt", "shards.json")
_AT_ONCE = 16
_VERSION_OF = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


@functools.cache
def mirror(address: str) -> Path:
    """The folder for an address.

    Raises UsageError for packages that are missing, DataError where the storage cannot be asked or has no tar there.
    """
    parts = urlsplit(address)
    system = file_system(address)
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.netloc.rpartition('@')[2]}{parts.path}").strip("-")[-60:]
    folder = storage_folder() / f"{readable}-{hashlib.sha256(shown(address).encode()).hexdigest()[:8]}"
    texts = {name: content for name in _TEXTS if (content := _text(system, joined(address, name))) is not None}
    names = sorted(set(_names(system, address, texts)))
    if not names:
        raise DataError(
            f"{shown(address)}: no tar is there, or its server lists none; give the folder of the shards, with the "
            "shards.json that aim-fast shard wrote"
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        facts = list(pool.map(lambda name: _facts(system, joined(address, name)), names))
    tars = str(tar_folder().absolute())
    shards = {name: RemoteShard(joined(address, name), *fact, tars) for name, fact in zip(names, facts)}
    with one_builder([folder.with_suffix(".lock")], f"a mirror of {shown(address)}"):
        _write(folder, texts, shards)
    return folder


def _write(folder: Path, texts: dict[str, bytes], shards: dict[str, RemoteShard]) -> None:
    """Writes what is new or changed and removes what is no longer there."""
    contents = texts | {name: shard.to_bytes() for name, shard in shards.items()}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # addresses may have secrets in them
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if name not in contents and not name.startswith("."):
            path.unlink()
    for name, content in contents.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
            if name in shards:  # a time that tells versions apart and nothing else
                version = hashlib.sha256(f"{shards[name].size}\0{shards[name].version}".encode()).hexdigest()
                os.utime(path, (0, int(version[:7], 16)))


def _text(system: Any, address: str) -> bytes | None:
    """A small file; None where there is none."""

    def ask() -> bytes | None:
        try:
            return system.cat_file(address)
        except FileNotFoundError:
            return None

    return retried(address, "the file", ask)


def _names(system: Any, address: str, texts: dict[str, bytes]) -> Iterator[str]:
    """Names of tars below an address, one folder down at most."""
    try:
        for split in json.loads(texts.get("shards.json", b"{}"))["shards"].values():
            yield from map(str, split)
        return
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    for name, is_folder in _listed(system, address):
        if not is_folder:
            yield name
            continue
        yield from (f"{name}/{inner}" for inner, deeper in _listed(system, joined(address, name)) if not deeper)


def _listed(system: Any, address: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of the tars and folders that are below an address."""
    ask: Callable[[], list[tuple[str, bool]]]
    if urlsplit(address).scheme in ("http", "https"):  # links of a page, which may have no query of their own
        page = joined(address, "")
        base = shown(page)

        def ask() -> list[tuple[str, bool]]:
            links = re.findall(rb"""href=["']([^"'?#]+)""", system.cat_file(page))
            places = [shown(urljoin(base, link.decode(errors="replace"))) for link in links]
            names = [unquote(place.removeprefix(base)) for place in places if place.startswith(base)]
            return [(name.rstrip("/"), name.endswith("/")) for name in names]
    else:

        def ask() -> list[tuple[str, bool]]:
            entries = system.ls(address, detail=True)
            return [(posixpath.basename(e["name"].rstrip("/")), e["type"] == "directory") for e in entries]

    found = retried(address, "its listing", ask)
    return [(name, is_folder) for name, is_folder in found if _wanted(name, is_folder)]


def _wanted(name: str, is_folder: bool) -> bool:
    if not name or name[0] == "." or "/" in name:
        return False
    return is_folder or ".tar" in name.lower() or name.lower().endswith((".tgz", ".txz", ".tbz"))


def _facts(system: Any, address: str) -> tuple[int, str]:
    """Bytes of a file, and what tells its versions apart."""
    info = retried(address, "its size", lambda: system.info(address))
    if not isinstance(info.get("size"), int):
        raise DataError(f"{shown(address)}: its server does not say its size, by which a whole transfer is told")
    return info["size"], " ".join(str(info[key]) for key in _VERSION_OF if key in info)
