"""Two splits of one data set, which must have the same classes and no video in common.

A copy, a link, or a member of another shard is another path, so names are compared first: the last part of a clip's
name, without its extension. Of those that both splits have (hardly any where names are ids, many where every class
counts from 1) the sizes are compared, and only what agrees in both is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aim_fast.data.formats import Clip, read_dataset
from aim_fast.data.formats.annotation import composed
from aim_fast.data.video.source import file_state, same_bytes
from aim_fast.errors import DataError, abridged

__all__ = ["same_classes", "shared_videos"]


def same_classes(
    name: str, root: str | Path, first: str = "train", second: str = "validation", multi_label: bool = False
) -> list[str]:
    """The classes of two splits, which must be the same and have no video in common.

    Raises:
        DataError: as ``read_dataset``; splits of other classes, or with a video in both, which are named.
    """
    one, other = (read_dataset(name, root, split, multi_label) for split in (first, second))
    if one.classes != other.classes:
        odd = sorted(set(one.classes) ^ set(other.classes)) or ["the same names in another order"]
        raise DataError(
            f"{root}: {first} has {len(one.classes)} classes, {second} {len(other.classes)}; they differ in "
            f"{abridged(odd)}: give both splits the same classes"
        )
    shared = [clip.id for clip in shared_videos(one.clips, other.clips)]
    if shared:
        raise DataError(
            f"{root}: {len(shared)} of {len(other.clips)} {second} videos are in {first} as well: {abridged(shared)}; "
            "remove them from one of the two, or scores say nothing"
        )
    return one.classes


def shared_videos(one: Sequence[Clip], other: Sequence[Clip]) -> list[Clip]:
    """The clips of ``other`` whose video, by path or by name and content, is in ``one`` as well, in their order."""
    paths = {os.path.normpath(clip.path) for clip in one}
    names = {_name(clip) for clip in one} & {_name(clip) for clip in other}
    alike: dict[tuple[str, int], list[str]] = {}
    for clip in one:
        if _name(clip) in names:
            alike.setdefault((_name(clip), _size(clip)), []).append(clip.path)

    def copied(clip: Clip) -> bool:
        if _name(clip) not in names or _size(clip) <= 0:
            return False
        return any(same_bytes(path, clip.path) for path in alike.get((_name(clip), _size(clip)), ()))

    return [clip for clip in other if os.path.normpath(clip.path) in paths or copied(clip)]


def _name(clip: Clip) -> str:
    return composed(os.path.splitext(os.path.basename(clip.id))[0])


def _size(clip: Clip) -> int:
    """Bytes of a video that is a file; 0 for a folder of pictures, -1 for what is not there."""
    return 0 if os.path.isdir(clip.path) else file_state(clip.path)[0]
