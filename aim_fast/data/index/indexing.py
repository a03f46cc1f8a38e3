"""Scanning a split into its index, once.

Files whose size or modification time changed, and new ones, are scanned again; the others keep their rows. An
interrupted scan goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from aim_fast.data.formats import Clip, Listing, dataset_layout, read_dataset
from aim_fast.data.index.index_file import index_paths, outdated, stored_indices, write_index
from aim_fast.data.index.repeats import count_once
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.index.scan import scan
from aim_fast.data.video.probe import MISSING, Probe, file_state
from aim_fast.errors import DataError
from aim_fast.files import one_builder

__all__ = ["index_listing", "load_or_build_index"]

_SAVED_EVERY = 30.0  # seconds between saves of an unfinished scan
_NOT_SCANNED = "not scanned"


def load_or_build_index(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    workers: int | None = None,
    rebuild: bool = False,
    progress: bool | None = None,
    accept_gaps: bool = False,
    multi_label: bool = False,
) -> Index:
    """The index of a split, scanning what is new or changed since it was last written.

    Args:
        workers: scanning processes; None for one a core.
        rebuild: scan everything again.
        progress: show a bar; None for only on a terminal.
        accept_gaps: go on where a class, or a tenth of the files, is passed over.
        multi_label: clips may have several labels, or none.

    Raises:
        UsageError, DataError: as ``read_dataset``; a class or a tenth of the files that is passed over; an index file
            that is no index; no clip that can be used.
    """
    listing = read_dataset(dataset, root, split, multi_label)
    root = Path(root).expanduser()
    gaps = listing.gaps()
    if not accept_gaps and (refusal := gaps.refusal(len(listing.clips))):
        raise DataError(f"{root}: {refusal}")
    listing = replace(listing, notes=(*listing.notes, *gaps.lines))
    expected = dataset_layout(dataset).text
    return count_once(index_listing(listing, dataset, root, split, expected, workers, rebuild, progress))


def index_listing(
    listing: Listing,
    dataset: str,
    root: Path,
    split: str,
    expected: str,
    workers: int | None = None,
    rebuild: bool = False,
    progress: bool | None = None,
) -> Index:
    """The index of any clips, kept under ``root`` as that of a split of a data set; ``expected`` says which clips in
    the error where none of them can be used. Other arguments and errors as of :func:`load_or_build_index`."""

    def remembered() -> tuple[list[Probe | None], bool]:
        return _remembered(listing, [] if rebuild else stored_indices(dataset, root, split))

    def assembled() -> Index:
        return _assemble(dataset, root, split, listing, probes)

    probes, current = remembered()
    scanning: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if None in probes:
        locks = [path.with_suffix(".lock") for path in index_paths(dataset, root, split)]
        scanning = one_builder(locks, f"the index of {dataset} {split}")
    if not rebuild and outdated(dataset, root, split):
        print(f"the index of {root} was made by an earlier version: its videos are scanned again", file=sys.stderr)
    with scanning:
        if None in probes:
            probes, current = remembered()  # another process may have scanned meanwhile
            _scan_into(probes, listing, workers, progress, lambda: write_index(assembled(), root, complete=False))
        index = _finished(assembled(), expected)
        if not current:
            write_index(index, root, complete=True)
    return index


def _remembered(listing: Listing, stored: Iterable[tuple[Index, bool]]) -> tuple[list[Probe | None], bool]:
    """What the latest index knows of every clip, None where its file is new or changed; whether it says all this."""
    known: dict[str, Row] = {}
    current = False
    for old, complete in stored:
        known = {row.path: row for row in old.rows if row.error != _NOT_SCANNED}
        current = complete and old.classes == listing.classes and _clips(old.rows) == _clips(listing.clips)
        current = current and old.multi_label == listing.multi_label
        break
    probes: list[Probe | None] = []
    for clip in listing.clips:
        state, row = file_state(clip.path), known.get(clip.path)
        if row is not None and (row.size, row.mtime_ns) == state:
            probes.append(row.probe)
        else:
            probes.append(Probe(error=MISSING) if state[0] < 0 else None)
            current = False
    return probes, current


def _finished(index: Index, expected: str) -> Index:
    """The index itself; DataError where no clip of it can be used."""
    if len(index.healthy) == 0:
        row = index.rows[0]
        raise DataError(
            f"none of the {len(index)} {index.split} clips under {index.root} can be used ({len(index.missing)} "
            f"missing, {len(index.broken)} broken; the first: {row.path} {row.error}); expected {expected}"
        )
    return index


def _scan_into(
    probes: list[Probe | None],
    listing: Listing,
    workers: int | None,
    progress: bool | None,
    save: Callable[[], None],
) -> None:
    """Fill the gaps of ``probes``, saving from time to time and when interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    changed = [i for i, found in enumerate(probes) if found is None]
    if not changed:
        return
    shown = sys.stderr.isatty() if progress is None else progress
    last = time.monotonic()
    broken = 0

    with Progress(
        TextColumn("scanning videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[broken]} broken"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    ) as bar:
        task = bar.add_task("scan", total=len(changed), broken=0)

        def done(position: int, found: Probe) -> None:
            nonlocal last, broken
            probes[changed[position]] = found
            broken += found.error is not None
            bar.update(task, advance=1, broken=broken)
            if time.monotonic() - last > _SAVED_EVERY:
                save()
                last = time.monotonic()

        try:
            scan([listing.clips[i].path for i in changed], workers=workers, done=done)
        except BaseException:
            save()
            raise


def _assemble(dataset: str, root: Path, split: str, listing: Listing, probes: Iterable[Probe | None]) -> Index:
    unknown = Probe(error=_NOT_SCANNED)
    rows = [Row.of(clip, found or unknown) for clip, found in zip(listing.clips, probes)]
    return Index(dataset, split, str(root), listing.classes, rows, listing.notes, listing.multi_label)


def _clips(items: Iterable[Clip | Row]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(item.path, item.labels, item.id) for item in items]
