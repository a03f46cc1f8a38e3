"""Writing a data set as tar shards, for disks and file systems that do not like many small files.

Clips are dealt to shards in one shuffled order, so that every shard holds every class; a sample is the video's own
bytes with ``.cls`` (the class's number) and ``.json`` (id, class, label) behind it. Shards are written to a temporary
name, synced and renamed; one that is there is whole, so the same command goes on after an interruption. The index of
the data set is carried over: the shards need no scan.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from aim_fast.data.formats.extensions import VIDEO_EXTENSIONS
from aim_fast.data.formats.shard_index import read_shard
from aim_fast.data.formats.webdataset import MANIFEST
from aim_fast.data.index.index_file import write_index
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.plan.clip_plan import epoch_order
from aim_fast.data.video.frame_folder import CODEC
from aim_fast.data.video.source import file_state, open_source
from aim_fast.errors import DataError, UsageError
from aim_fast.files import check_room, clear_unfinished, one_builder, replacing, write_whole

__all__ = ["ShardReport", "write_shards"]

_PREFIX = {"train": "train", "validation": "val", "test": "test"}
_OVERHEAD = 4096  # bytes of headers, label and padding a sample, at most

_Job = tuple[Index, Path, list[int]]  # a shard, and the rows that go into it


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What was written: shards and clips by split, bytes, and clips left out because they are of no use."""

    shards: dict[str, int]
    clips: dict[str, int]
    bytes: int
    left_out: list[Row]


def write_shards(
    indices: Sequence[Index],
    output: Path,
    *,
    shard_bytes: int = 2**30,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> ShardReport:
    """Write the usable clips of every split's index as shards of about ``shard_bytes`` into ``output``.

    Args:
        progress: called with (clips in shards that are there, all clips) after each shard.

    Raises:
        UsageError: clips that are folders of pictures; an output that holds shards of something else.
        DataError: too little disk for what is still to be written, or a disk that cannot be written to.
    """
    if pictures := next((row for index in indices for row in index.rows if row.codec == CODEC), None):
        raise UsageError(f"{pictures.path} is a folder of pictures: make videos of them by aim-fast transcode first")
    plans = {index.split: _dealt(index, shard_bytes) for index in indices}
    _begin(output, indices, plans)
    jobs = [
        (index, output / _name(index.split, number), rows)
        for index in indices
        for number, rows in enumerate(plans[index.split])
    ]
    with one_builder([output / ".aim-fast" / "shards.lock"], f"the shards {output}"):
        _write_all(output, jobs, workers, progress)
        for index in indices:
            _carry_index(index, output, plans[index.split])
    left_out = [row for index in indices for row in (*index.missing, *index.broken)]
    return ShardReport(
        {split: len(shards) for split, shards in plans.items()},
        {split: sum(map(len, shards)) for split, shards in plans.items()},
        sum(path.stat().st_size for _, path, _ in jobs),
        left_out,
    )


def _write_all(output: Path, jobs: Sequence[_Job], workers: int, progress: Callable[[int, int], None] | None) -> None:
    """Write the shards that are not there."""
    clear_unfinished(output)
    missing = (index.rows[i] for index, path, rows in jobs if not path.exists() for i in rows)
    needed = sum(row.size + _OVERHEAD for row in missing)
    check_room(output, needed, "the shards need", "give an --output on a larger disk")
    there, total, lock = 0, sum(len(rows) for _, _, rows in jobs), threading.Lock()

    def work(job: _Job) -> None:
        nonlocal there
        index, path, rows = job
        if not path.exists():
            _write_shard(path, index, rows)
        with lock:
            there += len(rows)
            if progress is not None:
                progress(there, total)

    try:
        with ThreadPoolExecutor(max(1, min(workers, len(jobs)))) as pool:
            for done in [pool.submit(work, job) for job in jobs]:
                try:
                    done.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    except OSError as error:
        raise DataError(
            f"{output}: cannot write the shards ({error.strerror or error}); free space and run the command again, "
            "which goes on where it stopped"
        ) from None


def _dealt(index: Index, shard_bytes: int) -> list[list[int]]:
    """Row numbers of every shard."""
    healthy = index.healthy
    total = sum(index.rows[i].size + _OVERHEAD for i in healthy)
    count = max(1, min(round(total / shard_bytes), len(healthy)))
    order = healthy[epoch_order(len(healthy), 0, 0)].tolist()
    return [order[i * len(order) // count : (i + 1) * len(order) // count] for i in range(count)]


def _name(split: str, number: int) -> str:
    return f"{_PREFIX[split]}-{number:06d}.tar"


def _begin(output: Path, indices: Sequence[Index], plans: dict[str, list[list[int]]]) -> None:
    """Make the folder, its class names and its manifest, or find that they are of the same clips."""
    facts = [
        [index.dataset, index.split, [[row.id, row.label, row.size, row.error] for row in index.rows]]
        for index in indices
    ]
    manifest = {
        "fingerprint": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "shards": {split: [_name(split, i) for i in range(len(shards))] for split, shards in plans.items()},
    }
    place = output / MANIFEST
    if output.exists():
        try:
            known = json.loads(place.read_text()) if place.exists() else None
        except (OSError, ValueError):
            known = {}
        if known != manifest and (known is not None or any(output.iterdir())):
            raise UsageError(
                f"{output} holds shards of other clips or sizes, or something else: give another --output, or remove it"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("classes.txt", "\n".join(" ".join(name.split()) for name in indices[0].classes) + "\n"),
            (MANIFEST, json.dumps(manifest, indent=1) + "\n"),
        ):
            write_whole(output / name, content)
    except OSError as error:
        raise DataError(f"{output} cannot be written to ({error.strerror}); give another --output") from None


def _write_shard(path: Path, index: Index, rows: Sequence[int]) -> None:
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number in rows:
            row = index.rows[number]
            label = {
                "id": row.id,
                "label": row.label,
                "class": index.classes[row.label] if row.label >= 0 else None,
            }
            with open_source(row.path) as video:
                size = video.seek(0, os.SEEK_END)
                video.seek(0)
                if size != row.size:
                    raise DataError(f"{row.path} changed since it was indexed; run aim-fast index again")
                extension = os.path.splitext(row.path)[1].lower()
                if extension not in VIDEO_EXTENSIONS:  # of a list, which may name any file
                    extension = ".mp4"
                _add(archive, f"{number:08d}{extension}", size, video)
            for extension, text in (("cls", str(row.label)), ("json", json.dumps(label))):
                data = text.encode()
                _add(archive, f"{number:08d}.{extension}", len(data), io.BytesIO(data))


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)  # no times and no owners: the same clips give the same bytes
    member.size, member.mode = size, 0o644
    archive.addfile(member, content)


def _carry_index(index: Index, output: Path, plan: Sequence[Sequence[int]]) -> None:
    rows = []
    for number, numbers in enumerate(plan):
        shard = output / _name(index.split, number)
        samples = read_shard(shard, output).samples
        for i, sample in zip(numbers, samples, strict=True):
            path = sample.path(str(shard))
            size, mtime_ns = file_state(path)
            rows.append(replace(index.rows[i], path=path, size=size, mtime_ns=mtime_ns))
    classes = [" ".join(name.split()) for name in index.classes]
    write_index(Index("webdataset", index.split, str(output), classes, rows), output, complete=True)
