"""Files that are one video by links, or by content, in one split.

Links to one file, hard or symbolic, count once. Copies under one name, which folders of classes often hold by mistake,
are counted and named, and stay: whether they are meant is not known. Only files that agree in size and name, or in size
and time, are looked at.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace

from aim_fast.data.formats.annotation import composed
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.video.source import same_bytes, tar_member
from aim_fast.errors import DataError, abridged

__all__ = ["count_once"]


def count_once(index: Index) -> Index:
    """The index without links to files that it has already, which its notes name, as they do copies.

    Raises DataError for links to one file under two labels, but where clips may have several: then it has them all.
    """
    times: dict[tuple[int, int], list[Row]] = defaultdict(list)
    names: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in index.rows:
        if row.healthy and not tar_member(row.path):
            times[row.size, row.mtime_ns].append(row)
            names[row.size, composed(os.path.splitext(os.path.basename(row.path))[0])].append(row)
    linked: dict[str, tuple[Row, Row]] = {}  # by path, the link and what it links to
    for rows in times.values():
        first: dict[tuple[int, int], Row] = {}
        for row in rows if len(rows) > 1 else ():
            state = os.stat(row.path)
            if (known := first.setdefault((state.st_dev, state.st_ino), row)) is not row:
                if os.path.realpath(known.path) != os.path.abspath(known.path):  # the link came first
                    first[state.st_dev, state.st_ino], known, row = row, row, known
                linked[row.path] = row, known
    if index.multi_label and linked:
        return _merged(index, linked)
    for row, known in linked.values():
        if row.label != known.label:
            classes = " and ".join(repr(index.classes[number]) for number in (known.label, row.label))
            raise DataError(f"{row.path} is a link to {known.path}, of another class ({classes}); remove one of them")
    copied = [
        f"{row.path} ({rows[0].path})" + ", in two classes" * (row.label != rows[0].label)
        for rows in names.values()
        for row in rows[1:]
        if row.path not in linked and same_bytes(rows[0].path, row.path)
    ]
    notes = list(index.notes)
    if linked:
        again = [f"{row.path} ({known.path})" for row, known in linked.values()]
        notes.append(f"links to one file, counted once: {len(linked)} of {len(index)} entries, {abridged(again, 3)}")
    if copied:
        notes.append(f"copies of one video under one name: {len(copied)} of {len(index)}, {abridged(copied, 3)}")
    if len(notes) == len(index.notes):
        return index
    return replace(index, rows=[row for row in index.rows if row.path not in linked], notes=tuple(notes))


def _merged(index: Index, linked: dict[str, tuple[Row, Row]]) -> Index:
    """The index without its links, each file with the labels of its links as well."""
    labels: dict[str, set[int]] = defaultdict(set)
    for row, known in linked.values():
        labels[known.path].update(row.labels)
    kept = [row for row in index.rows if row.path not in linked]
    return replace(index, rows=[row.labelled({*row.labels, *labels[row.path]}) for row in kept])
