"""A data set transcoded: the same clips, labels and annotation files in a new folder, in files that decode fast.

The new folder is read under the same data set name: annotation files are copied (lists are written anew for their new
file names), every video keeps its place and its name but for the extension, folders of pictures become videos, and the
index is carried over from the decode that checks each new file. What is done is written down file by file, so the same
command goes on after an interruption; other settings in the same folder are refused.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aim_fast.cores import default_workers
from aim_fast.data.copies.transcode_report import TranscodeReport
from aim_fast.data.formats import read_dataset
from aim_fast.data.formats.annotation import files_read
from aim_fast.data.formats.list import rewrite_list
from aim_fast.data.index.index_file import write_index
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.index.worker import Worker, WorkerLost, spread
from aim_fast.data.video.encode import CODECS, DISK_FULL, Encoding, encoder_available
from aim_fast.data.video.probe import MISSING, Probe, file_state
from aim_fast.data.video.source import tar_member
from aim_fast.errors import DataError, UsageError
from aim_fast.files import check_room, clear_unfinished, one_builder, replacing, write_whole

__all__ = ["REPORT", "transcode"]

REPORT = "transcode.json"
_SERVE = "from aim_fast.data.video.encode import serve; serve()"
_JOURNAL = Path(".aim-fast") / "transcode.jsonl"
_SAMPLE = 8  # files encoded first, from which the size of the rest is estimated
_MARGIN = 1.15  # on that estimate
_SECONDS_A_FILE = 300.0
_SECONDS_A_FRAME = 0.5


@dataclass(frozen=True, slots=True)
class _Job:
    row: Row
    target: str  # relative to the output


def transcode(
    dataset: str,
    root: Path,
    output: Path,
    encoding: Encoding,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    accept_gaps: bool = False,
) -> TranscodeReport:
    """Transcode all splits of a data set into ``output``.

    Args:
        workers: encoding processes, each on one core; None for one a core.
        progress: called with (videos done, all videos) after each.
        accept_gaps: as ``load_or_build_index``.

    Raises:
        UsageError: an encoder that is not here, folders within each other, an output of something else.
        DataError: as ``load_or_build_index``; too little disk, said after a sample of ``_SAMPLE`` files.
    """
    root, output = root.expanduser().absolute(), output.expanduser().absolute()
    _check(dataset, root, output, encoding)
    indices, annotations = _read(dataset, root, workers, accept_gaps)
    jobs = _jobs(indices, root, output, encoding)
    settings = {"dataset": dataset, "root": str(root), **asdict(encoding)}
    _begin(output, settings)
    with one_builder([output / _JOURNAL.with_suffix(".lock")], f"the data set {output}"):
        done = _begin(output, settings)
        for folder in {output, *((output / job.target).parent for job in jobs)}:
            clear_unfinished(folder)
        _copy_annotations(dataset, annotations, root, output, jobs, encoding)
        results, failed = _encoded(jobs, done, output, encoding, workers or default_workers(), progress)
        _carry_indices(dataset, indices, jobs, results, output, output if root.is_dir() else output / root.name)

    report = TranscodeReport(dataset, asdict(encoding), failed=failed)
    report.skipped = {row.path: row.error or "" for index in indices for row in (*index.missing, *index.broken)}
    report.notes = [f"{index.split}: {note}" for index in indices for note in index.notes]
    report.files, report.frames = len(results), sum(found.frames for found in results.values())
    report.bytes_before = sum(_bytes(path) for path in results)
    report.bytes_after = sum(found.size for found in results.values())
    made = [(job.row, str(output / job.target)) for job in jobs if job.row.path in results]
    report.measure(made)
    write_whole(output / REPORT, json.dumps(asdict(report), indent=2) + "\n")
    return report


def _check(dataset: str, root: Path, output: Path, encoding: Encoding) -> None:
    if dataset == "webdataset":
        raise UsageError("shards are not transcoded: transcode the data set that they were made from, then shard it")
    if not encoder_available(encoding.codec):
        others = " or ".join(name for name in CODECS if encoder_available(name))
        raise UsageError(f"PyAV's FFmpeg has no encoder for {encoding.codec} here; give --codec {others}")
    folder = root if root.is_dir() else root.parent
    if output == folder or folder in output.parents or output in folder.parents:
        raise UsageError(f"{output} and the data in {folder} lie within each other; give an --output elsewhere")


def _read(dataset: str, root: Path, workers: int | None, accept_gaps: bool) -> tuple[list[Index], list[Path]]:
    """The index of each split that is there, and the annotation files that were read for them."""
    indices = []
    with files_read() as files:
        for split in ("train", "validation", "test"):
            try:
                index = load_or_build_index(dataset, root, split, workers=workers, accept_gaps=accept_gaps)
                indices.append(index)
            except DataError:
                if split != "test":  # which few data sets have
                    raise
    return indices, list(files)


def _jobs(indices: Sequence[Index], root: Path, output: Path, encoding: Encoding) -> list[_Job]:
    """Every usable video once, and where it goes."""
    jobs: dict[str, _Job] = {}
    taken: set[str] = set()
    for index in indices:
        for number in index.healthy:
            row = index.rows[number]
            if row.path not in jobs:
                target = _target(index, row, root, encoding)
                if target in taken:  # a.mp4 beside a.webm
                    target = f"{os.path.splitext(target)[0]}{os.path.splitext(row.path)[1]}{encoding.extension}"
                taken.add(target)
                jobs[row.path] = _Job(row, target)
    return list(jobs.values())


def _target(index: Index, row: Row, root: Path, encoding: Encoding) -> str:
    path, folder = row.path, str(root if root.is_dir() else root.parent)
    inside = os.path.normpath(path).startswith(folder + os.sep)
    relative = os.path.relpath(path, folder) if inside else os.path.join("videos", os.path.abspath(path).lstrip(os.sep))
    if index.dataset == "folder" and relative == os.path.normpath(row.id):
        # Class folders without split folders are divided by file names: write the division down.
        relative = os.path.join("train" if index.split == "train" else "val", relative)
    stem = relative if _is_folder(path) else os.path.splitext(relative)[0]
    return stem + encoding.extension


def _is_folder(path: str) -> bool:
    """Whether a clip is a folder of pictures, whose name has no extension to lose."""
    return tar_member(path) is None and os.path.isdir(path)


def _begin(output: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of the journal by target, of a folder that is new or was begun with the same settings."""
    journal = output / _JOURNAL
    if not journal.exists():
        if output.exists() and any(output.iterdir()):
            raise UsageError(f"{output} is not empty and was not begun by aim-fast transcode; give another --output")
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
            write_whole(journal, json.dumps(settings) + "\n")
        except OSError as error:
            raise DataError(f"{output} cannot be written to ({error.strerror}); give another --output") from None
        return {}
    entries = []
    for line in journal.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # cut off by a kill in the middle of the line
            continue
    if not entries or entries[0] != settings:
        known = entries[0] if entries else {}
        odd = [
            f"{name}: {known.get(name)!r} -> {value!r}" for name, value in settings.items() if known.get(name) != value
        ]
        raise UsageError(f"{output} was begun with other settings ({', '.join(odd)}); give another --output")
    # a line that was cut off must not swallow the next
    with open(journal, "rb+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return {entry["target"]: entry for entry in entries[1:]}


def _copy_annotations(
    dataset: str, files: Sequence[Path], root: Path, output: Path, jobs: Sequence[_Job], encoding: Encoding
) -> None:
    """The files that were read, and those beside them of the same kinds, at their places or at the output's root."""
    folder = root if root.is_dir() else root.parent
    targets = {job.row.path: job.target for job in jobs}
    kinds = {(file.parent, file.suffix) for file in files}
    beside = (path for parent, suffix in sorted(kinds) for path in sorted(parent.glob(f"*{suffix}")) if path.is_file())
    for path in dict.fromkeys([*files, *beside]):
        absolute = path.absolute()
        place = output / (absolute.relative_to(folder) if folder in absolute.parents else absolute.name)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if dataset == "list" and path in files:
                write_whole(place, rewrite_list(path, root, targets, encoding.extension))
            elif not place.exists():
                with replacing(place) as temporary:
                    shutil.copyfile(path, temporary)
        except OSError as error:
            raise DataError(f"{place} cannot be written ({error.strerror}); give another --output") from None


def _encoded(
    jobs: Sequence[_Job],
    done: dict[str, dict[str, Any]],
    output: Path,
    encoding: Encoding,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Probe], dict[str, str]]:
    """What every source became, now or by an earlier run as the journal says, and why others could not be encoded."""
    results: dict[str, Probe] = {}
    failed: dict[str, str] = {}
    pending = []
    for job in jobs:
        earlier = done.get(job.target)
        if earlier and earlier["source"] == [job.row.path, job.row.size, job.row.mtime_ns]:
            found = Probe(**earlier["probe"])
            if file_state(str(output / job.target)) == (found.size, found.mtime_ns):
                results[job.row.path] = found
                continue
        pending.append(job)
    random.Random(0).shuffle(pending)  # so that the sample is of all classes, and the remaining time is told well

    with open(output / _JOURNAL, "a") as journal:

        def ready(job: _Job, answer: dict[str, Any]) -> None:
            if answer.get("error") == DISK_FULL:
                raise DataError(
                    f"{output}: the disk is full after {len(results)} of {len(jobs)} videos; free space and run the "
                    "same command again, which goes on where it stopped"
                )
            if "error" in answer:
                failed[job.row.path] = answer["error"]
            else:
                size, mtime_ns = file_state(str(output / job.target))
                found = Probe(**{**answer["probe"], "size": size, "mtime_ns": mtime_ns})
                results[job.row.path] = found
                source = [job.row.path, job.row.size, job.row.mtime_ns]
                journal.write(json.dumps({"target": job.target, "source": source, "probe": asdict(found)}) + "\n")
                journal.flush()
            if progress is not None:
                progress(len(results) + len(failed), len(jobs))

        _encode_all(pending[:_SAMPLE], output, encoding, workers, ready)
        _check_space(output, pending, results)
        _encode_all(pending[_SAMPLE:], output, encoding, workers, ready)
    return results, failed


def _encode_all(
    jobs: Sequence[_Job],
    output: Path,
    encoding: Encoding,
    workers: int,
    ready: Callable[[_Job, dict[str, Any]], None],
) -> None:
    def work(worker: Worker, position: int) -> dict[str, Any]:
        job = jobs[position]
        message = {
            "source": job.row.path,
            "target": str(output / job.target),
            "encoding": asdict(encoding),
            "frames": job.row.frames,
        }
        try:
            return worker.ask(message, _SECONDS_A_FILE + _SECONDS_A_FRAME * job.row.frames)
        except TimeoutError:
            return {"error": f"{job.row.path} hangs the encoder"}
        except WorkerLost as lost:
            return {"error": f"{job.row.path} crashes the encoder (exit status {lost.status})"}

    if jobs:
        spread(len(jobs), workers, lambda: Worker(_SERVE), work, lambda at, answer: ready(jobs[at], answer))


def _check_space(output: Path, pending: Sequence[_Job], results: dict[str, Probe]) -> None:
    """Refuse where what is left, at the sample's bytes a pixel, does not fit."""
    sample = [results[job.row.path] for job in pending[:_SAMPLE] if job.row.path in results]
    if not sample or len(pending) <= _SAMPLE:
        return
    pixels = sum(found.frames * found.height * found.width for found in sample)
    shrunk = pixels / sum(
        job.row.frames * job.row.height * job.row.width for job in pending[:_SAMPLE] if job.row.path in results
    )
    left = sum(job.row.frames * job.row.height * job.row.width for job in pending[_SAMPLE:]) * shrunk
    needed = int(sum(found.size for found in sample) / pixels * left * _MARGIN)
    advice = (
        "free space and run the same command again, or take another --output, on a larger disk or with a smaller "
        "--short-side"
    )
    check_room(output, needed, f"the other {len(pending) - _SAMPLE} videos need about", advice)


def _bytes(path: str) -> int:
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return max(file_state(path)[0], 0)


def _carry_indices(
    dataset: str,
    indices: Sequence[Index],
    jobs: Sequence[_Job],
    results: dict[str, Probe],
    output: Path,
    new_root: Path,
) -> None:
    """Read the new folder as a user will, check that it is the same data set, and write its index without a scan."""
    made = {str(output / job.target): results[job.row.path] for job in jobs if job.row.path in results}
    targets = {job.row.path: str(output / job.target) for job in jobs}
    for index in indices:
        if dataset == "folder" and index.split == "test" and not (output / "test").is_dir():
            continue  # the validation clips of class folders that had no split folders
        listing = read_dataset(dataset, new_root, index.split)
        expected = {(targets[row.path], index.classes[row.label] if row.label >= 0 else None)
                    for row in index.rows if row.path in results}  # fmt: skip
        found = {(clip.path, listing.classes[clip.label] if clip.label >= 0 else None)
                 for clip in listing.clips if clip.path in made}  # fmt: skip
        if lost := expected - found:
            raise DataError(
                f"{output}: {len(lost)} {index.split} videos are not found again under their class, the first is "
                f"{min(path for path, _ in lost)}; were files of another data set put into the folder?"
            )
        rows = [Row.of(clip, made.get(clip.path) or Probe(error=MISSING)) for clip in listing.clips]
        write_index(Index(dataset, index.split, str(new_root), listing.classes, rows), new_root, complete=True)
