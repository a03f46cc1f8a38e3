"""The plan of a clip: which frames, which box, which augmentation. A pure function of (seed, epoch, index, view).

Every clip has a generator of its own, Philox with key (seed) and counter (stream, view, index, epoch), so its plan
does not depend on what was planned before it: resuming, and any number of processes, give the same clips. The uniform
numbers are drawn in one fixed layout (``aim_fast.data.plan.draws``), whatever is switched on.

Boxes are fractions (y0, x0, y1, x1) of the frame. The published views first resize the short side and then crop in
whole pixels; the same box is taken here from the source frame, resized once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.draws import Draws
from aim_fast.data.plan.jitter import plan_grayscale, plan_jitter
from aim_fast.data.plan.randaugment import RandAugmentPlan, plan_randaugment
from aim_fast.data.plan.sampling import Sampling, frame_indices

__all__ = [
    "ClipPlan",
    "epoch_order",
    "order_generator",
    "plan_clip",
    "replacement_draw",
    "stored_view_draw",
    "view_box",
]

Box = tuple[float, float, float, float]

_CLIP, _ORDER, _REPLACEMENT, _VIEW, _STORED = 0, 1, 2, 3, 4  # streams of a seed
# Places of a multi-scale crop, y and x in quarters of the room that it leaves: corners, centre, sides, between.
_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (0, 2), (4, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
_EIGENVALUES = np.array([55.4625, 4.7940, 1.1475])  # of RGB over ImageNet (Krizhevsky et al., 2012)
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """All that decoding and augmentation need for one view of one video.

    Attributes:
        frames: int32 [U], the different frames to decode, ascending.
        order: int32 [T], position in ``frames`` of each frame of the clip.
        box: (y0, x0, y1, x1) as fractions of the frame, resized to the square image.
        flip: mirror left and right.
        randaug: kinds [n] and parameters [n, 36] of RandAugment's operations and colour jitter, in order, or None.
        light: float32 [3], levels added to R, G, B, or None.
        erase: float32 [4], (y, x, height, width) in pixels of the square image, zeros for nothing, or None.
        policy_seed: what the augmentation's policy is drawn from, or None.
    """

    frames: np.ndarray
    order: np.ndarray
    box: Box
    flip: bool = False
    randaug: RandAugmentPlan | None = None
    light: np.ndarray | None = None
    erase: np.ndarray | None = None
    policy_seed: int | None = None


def plan_clip(
    num_frames: int,
    height: int,
    width: int,
    *,
    sampling: Sampling,
    augmentation: Augmentation | None,
    img_size: int,
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
    view: int = 0,
) -> ClipPlan:
    """Plan one clip of a video of ``num_frames`` frames of ``height`` × ``width`` pixels (as displayed).

    With ``augmentation`` the clip is a training clip, drawn from (seed, epoch, index, view); its views are samples of
    the same frames. With None it is evaluation view ``view`` of ``sampling``, the same whatever the epoch, and the seed
    unless the sampling is random.
    """
    if augmentation is None or augmentation.none:
        clip, crop = divmod(view, sampling.crops)
        drawn = None
        if sampling.random:  # the crops of one clip show the same frames
            drawn = _uniform_numbers(seed, _VIEW, clip, index, 0, sampling.num_frames).tolist()
        indices = frame_indices(sampling, num_frames, clip=clip, draws=drawn)
        short_side = sampling.short_side or img_size
        return ClipPlan(*_unique(indices), view_box(height, width, img_size, short_side, crop, sampling.crops))

    length = sampling.num_frames
    draws = _uniform_numbers(seed, _CLIP, view, index, epoch, length + Draws.count).tolist()
    first = _uniform_numbers(seed, _CLIP, 0, index, epoch, length).tolist() if view else draws[:length]
    indices = frame_indices(sampling, num_frames, draws=first)
    draws = draws[length:]
    box = _crop_box(height, width, augmentation, draws[Draws.box])
    if augmentation.pre_crop:
        box = _shrunk(box, augmentation.pre_crop / 224, draws[Draws.shrink])
    light = erase = None
    if augmentation.color_jitter:
        light = _lighting(augmentation.color_jitter, draws[Draws.light])
    if augmentation.erasing:
        hit = draws[Draws.erase_chance] < augmentation.erasing
        erase = _erase_box(img_size, augmentation, draws[Draws.erase]) if hit else np.zeros(4, np.float32)
    policy_seed = int(draws[Draws.policy] * 2**53) if augmentation.policy else None
    flip, layers = draws[Draws.flip] < augmentation.flip, _layers(augmentation, img_size, draws)
    return ClipPlan(*_unique(indices), box, flip, layers, light, erase, policy_seed)


def view_box(height: int, width: int, img_size: int, short_side: int, crop: int = 0, crops: int = 1) -> Box:
    """Evaluation crop of img_size² after the short side has become ``short_side`` pixels.

    One crop: the centre. Three: left, right, middle, or top, bottom, middle of a portrait, as published.
    """
    short = min(height, width)
    rows, columns = (int(side * short_side / short + 0.5) for side in (height, width))
    top, left = max(rows - img_size, 0) // 2, max(columns - img_size, 0) // 2
    if crops == 3:
        place = (0, 2, 1)[crop]
        if columns >= rows:
            left = place * left
        else:
            top = place * top
    side_y, side_x = min(img_size, rows), min(img_size, columns)
    return top / rows, left / columns, (top + side_y) / rows, (left + side_x) / columns


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """What the order of an epoch is drawn from."""
    return np.random.Generator(_philox(seed, _ORDER, 0, 0, epoch))


def epoch_order(num_clips: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_clips]: the training order of an epoch, a permutation drawn from (seed, epoch)."""
    return order_generator(seed, epoch).permutation(num_clips)


def replacement_draw(num_choices: int, *, seed: int, epoch: int, index: int, attempt: int = 0) -> int:
    """Which of ``num_choices`` healthy clips stands in for broken clip ``index`` in this epoch."""
    return int(_uniform_numbers(seed, _REPLACEMENT, attempt, index, epoch, 1)[0] * num_choices)


def stored_view_draw(num_views: int, *, seed: int, epoch: int, index: int, time: int = 0) -> int:
    """Which of the ``num_views`` stored views of clip ``index`` is trained on at its ``time``, from 0, in an epoch."""
    return int(_uniform_numbers(seed, _STORED, time, index, epoch, 1)[0] * num_views)


def _unique(indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    frames = sorted(set(indices))
    position = {frame: i for i, frame in enumerate(frames)}
    return np.array(frames, np.int32), np.array([position[frame] for frame in indices], np.int32)


def _layers(augmentation: Augmentation, img_size: int, draws: Sequence[float]) -> RandAugmentPlan | None:
    """RandAugment's operations, then colour jitter and grey."""
    parts = []
    if augmentation.randaug is not None:
        parts.append(plan_randaugment(*augmentation.randaug, img_size, draws[Draws.randaug]))
    if augmentation.jitter:
        parts.append(plan_jitter(augmentation.jitter, augmentation.jitter_prob, draws[Draws.jitter]))
    if augmentation.grayscale:
        parts.append(plan_grayscale(augmentation.grayscale, draws[Draws.grayscale]))
    if not parts:
        return None
    kinds, parameters = zip(*parts)
    return np.concatenate(kinds), np.concatenate(parameters)


def _crop_box(height: int, width: int, augmentation: Augmentation, draws: Sequence[float]) -> Box:
    """Published order: the short side becomes 256 pixels, then a box of whole pixels is drawn on that frame.

    With ``short_sides`` it becomes a drawn number of pixels, and the box is a square of 224 anywhere. With
    ``crop_scales`` its sides are two neighbouring shares of the short side, at one of 13 places (Wang et al., TSN,
    ECCV 2016).
    """
    short, becomes = min(height, width), 256
    if augmentation.short_sides:
        least, most = augmentation.short_sides
        becomes = least + int(draws[0] * (most - least + 1))
    rows, columns = (int(side * becomes / short + 0.5) for side in (height, width))
    if augmentation.short_sides:
        y, x = int(draws[2] * (rows - 223)), int(draws[3] * (columns - 223))
        return y / rows, x / columns, (y + 224) / rows, (x + 224) / columns
    if augmentation.crop_scales:
        sides = list(enumerate(int(256 * scale) for scale in augmentation.crop_scales))
        pairs = [(h, w) for i, h in sides for j, w in sides if abs(i - j) <= 1]
        h, w = pairs[int(draws[0] * len(pairs))]
        down, right = _PLACES[int(draws[1] * len(_PLACES))]
        y, x = down * ((rows - h) // 4), right * ((columns - w) // 4)
        return y / rows, x / columns, (y + h) / rows, (x + w) / columns
    if augmentation.random_resized_crop:
        (low, high), (narrow, wide) = augmentation.scale, augmentation.ratio
        log_narrow, log_wide = math.log(narrow), math.log(wide)
        for i in range(0, len(draws), 4):
            area = (low + draws[i] * (high - low)) * rows * columns
            aspect = math.exp(log_narrow + draws[i + 1] * (log_wide - log_narrow))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= columns and 0 < h <= rows:
                y, x = int(draws[i + 2] * (rows - h + 1)), int(draws[i + 3] * (columns - w + 1))
                return y / rows, x / columns, (y + h) / rows, (x + w) / columns
    side = min(rows, columns)
    y, x = (rows - side) // 2, (columns - side) // 2
    return y / rows, x / columns, (y + side) / rows, (x + side) / columns


def _shrunk(box: Box, most: float, draws: Sequence[float]) -> Box:
    y0, x0, y1, x1 = box
    h, w = y1 - y0, x1 - x0
    top, left, bottom, right = (most * draw for draw in draws)
    return y0 + top * h, x0 + left * w, y1 - bottom * h, x1 - right * w


def _erase_box(size: int, augmentation: Augmentation, draws: Sequence[float]) -> np.ndarray:
    (low, high), (narrow, wide) = augmentation.erasing_scale, augmentation.erasing_ratio
    for i in range(0, len(draws), 4):
        area = (low + draws[i] * (high - low)) * size * size
        aspect = math.exp(math.log(narrow) + draws[i + 1] * (math.log(wide) - math.log(narrow)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < size and 0 < w < size:
            y, x = int(draws[i + 2] * (size - h + 1)), int(draws[i + 3] * (size - w + 1))
            return np.array([y, x, h, w], np.float32)
    return np.zeros(4, np.float32)


def _lighting(std: float, draws: Sequence[float]) -> np.ndarray:
    """Normal weights by Box and Muller from uniform draws."""
    r1, r2 = (std * math.sqrt(-2 * math.log(1 - draw)) for draw in draws[0:2])
    a1, a2 = (2 * math.pi * draw for draw in draws[2:4])
    weights = np.array([r1 * math.cos(a1), r1 * math.sin(a1), r2 * math.cos(a2)])
    return (_EIGENVECTORS @ (weights * _EIGENVALUES)).astype(np.float32)


_THREAD = threading.local()
_EMPTY = np.zeros(4, np.uint64)
_MASK = 2**64 - 1


def _philox(seed: int, stream: int, view: int, index: int, epoch: int) -> np.random.Philox:
    """This thread's Philox at the start of its stream; a new one would ask the system for entropy first."""
    if not hasattr(_THREAD, "philox"):
        _THREAD.philox = np.random.Philox(key=0)
    _THREAD.philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, view, index, epoch], np.uint64),
            "key": np.array([seed & _MASK, stream], np.uint64),
        },
        "buffer": _EMPTY,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _THREAD.philox


def _uniform_numbers(seed: int, stream: int, view: int, index: int, epoch: int, count: int) -> np.ndarray:
    philox = _philox(seed, stream, view, index, epoch)
    if not hasattr(_THREAD, "generator"):
        _THREAD.generator = np.random.Generator(philox)
    return _THREAD.generator.random(count)
