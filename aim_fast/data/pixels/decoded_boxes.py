"""The boxes of a video's frames, resized while it is decoded: no more whole frames are held than a few megabytes.

In: a file and the plans of its clips. Out: uint8 [U, S, S, 3] of each plan, to the bit what ``resize_box`` makes of all
whole frames at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aim_fast.data.pixels.resize import box_slices, resize_whole
from aim_fast.data.plan.clip_plan import ClipPlan
from aim_fast.data.video.decode import each_frame

__all__ = ["decoded_boxes"]

_HELD = 16 * 2**20  # bytes of boxes before they are resized: a clip of 240p at once, 4K frame by frame


def decoded_boxes(
    path: str, plans: Sequence[ClipPlan], img_size: int, *, threads: int = 1, seek: bool = True
) -> list[np.ndarray]:
    """uint8 [U, S, S, 3] of each plan: its box of each of its U frames, upright, resized, mirrored as it says.

    ``threads`` and ``seek`` are those of ``each_frame``, and so are the errors.
    """
    frames = sorted({int(number) for plan in plans for number in plan.frames})
    boxes = [_Boxes(plan, img_size, max(_HELD // len(plans), 1)) for plan in plans]
    for place, pixels in each_frame(path, frames, rotate=True, threads=threads, seek=seek):
        for box in boxes:
            box.put(frames[place], pixels)
        del pixels  # before the next is made
    return [box.finished() for box in boxes]


class _Boxes:
    """One plan's boxes, resized a block at a time."""

    def __init__(self, plan: ClipPlan, img_size: int, held: int) -> None:
        self.plan, self.img_size, self.held = plan, img_size, held
        self.places = {int(number): place for place, number in enumerate(plan.frames)}
        self.out = np.empty((len(plan.frames), img_size, img_size, 3), np.uint8)
        self.block = np.empty((0, 1, 1, 3), np.uint8)
        self.waiting: list[int] = []  # places of what is in the block

    def put(self, number: int, pixels: np.ndarray) -> None:
        place = self.places.get(number)
        if place is None:
            return
        rows, columns = box_slices(self.plan, *pixels.shape[:2])
        box = pixels[rows, columns]
        if not len(self.block):
            self.block = np.empty((min(max(self.held // box.nbytes, 1), len(self.places)), *box.shape), np.uint8)
        self.block[len(self.waiting)] = box
        self.waiting.append(place)
        if len(self.waiting) == len(self.block):
            self._resize()

    def finished(self) -> np.ndarray:
        if self.waiting:
            self._resize()
        return self.out

    def _resize(self) -> None:
        self.out[self.waiting] = resize_whole(self.block[: len(self.waiting)], self.plan.flip, self.img_size)
        self.waiting = []
