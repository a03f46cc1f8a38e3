"""Real images in motion: crops of frames of real videos that slide, scale or turn, one class a direction.

    left, right      the crop's content moves by 0.3 to 0.6 of its side
    grow, shrink     by a factor of 1.5 to 2.2
    clockwise, counterclockwise      by 40 to 90 degrees

A clip of one class of a pair is a clip of the other played backwards, and begins at any place, size and angle: whatever
is read from frames one by one, and forgets their order, cannot tell the pair apart (top-1 of at most one half).
"""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from PIL import Image

PAIRS = (("left", "right"), ("grow", "shrink"), ("clockwise", "counterclockwise"))
SIDE, LENGTH = 64, 16  # pixels, frames


def write_moving_crops(folder: Path, videos: list[Path], train: int, validation: int, seed: int = 0) -> None:
    """``train`` and ``validation`` clips of each class below ``folder``, in folders of their splits and classes.

    Those of ``train`` are of the first half of each video's frames, those of ``validation`` of the second.
    """
    random = np.random.default_rng(seed)
    halves = [_halves(path) for path in videos]
    for half, (split, count) in enumerate((("train", train), ("val", validation))):
        images = [image for both in halves for image in both[half]]
        for pair in PAIRS:
            for backwards, name in enumerate(pair):
                (folder / split / name).mkdir(parents=True)
                for number in range(count):
                    frames = _clip(random, images[random.integers(len(images))], pair)
                    _write(folder / split / name / f"{number}.webm", frames[:: -1 if backwards else 1])


def _halves(path: Path, most: int = 24) -> tuple[list[Image.Image], list[Image.Image]]:
    """Frames of the first half of a video, and of the second, evenly spread."""
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    chosen = [frames[int(i)] for i in np.linspace(0, len(frames) - 1, min(most, len(frames)))]
    return chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]


def _clip(random: np.random.Generator, image: Image.Image, pair: tuple[str, str]) -> list[np.ndarray]:
    side = min(image.size) * random.uniform(0.22, 0.34)
    angle = random.uniform(-math.pi, math.pi)
    steps = np.linspace(-0.5, 0.5, LENGTH)
    slide, sides, angles = np.zeros(LENGTH), np.full(LENGTH, side), np.full(LENGTH, angle)
    if pair[0] == "left":  # the crop goes right over the image
        slide = steps * side * random.uniform(0.3, 0.6)
    elif pair[0] == "grow":
        sides = side * random.uniform(1.5, 2.2) ** -steps
    else:
        angles = angle - steps * math.radians(random.uniform(40, 90))
    reach = 0.71 * sides.max() + abs(slide).max()
    centre = [random.uniform(reach, size - reach) for size in image.size]
    return [_crop(image, centre, *pose) for pose in zip(slide, sides, angles)]


def _crop(image: Image.Image, centre: list[float], slide: float, side: float, angle: float) -> np.ndarray:
    """``SIDE`` pixels square of the image, about ``centre`` moved by ``slide`` along its own first axis."""
    cos, sin, scale = math.cos(angle), math.sin(angle), side / SIDE
    x, y = centre[0] + slide * cos, centre[1] + slide * sin
    a, b, d, e = scale * cos, -scale * sin, scale * sin, scale * cos
    matrix = (a, b, x - (a + b) * SIDE / 2, d, e, y - (d + e) * SIDE / 2)
    return np.asarray(image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def _write(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
