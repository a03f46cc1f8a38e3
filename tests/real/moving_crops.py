"""Real images in motion: a crop of one video's frame moves over the soft colours of another's, one class a direction.

    left, right      it slides by 0.4 to 0.5 of the picture's side, at any height
    grow, shrink     its side goes from 0.25 to between 0.6 and 0.8 of the picture's
    clockwise, counterclockwise      it turns by 60 to 120 degrees, from any angle

A clip of one class of a pair is a clip of the other played backwards: whatever is read from frames one by one, and
forgets their order, cannot tell the pair apart (top-1 of at most one half).
"""

from __future__ import annotations

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
                    image, behind = (images[i] for i in random.choice(len(images), 2, replace=False))
                    frames = _clip(random, image, behind, pair)
                    _write(folder / split / name / f"{number}.webm", frames[:: -1 if backwards else 1])


def _halves(path: Path, most: int = 24) -> tuple[list[Image.Image], list[Image.Image]]:
    """Frames of the first half of a video, and of the second, evenly spread."""
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    chosen = [frames[int(i)] for i in np.linspace(0, len(frames) - 1, min(most, len(frames)))]
    return chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]


def _clip(
    random: np.random.Generator, image: Image.Image, behind: Image.Image, pair: tuple[str, str]
) -> list[np.ndarray]:
    """Frames of a clip of the pair's first class; places and sides are in shares of the picture's side."""
    steps = np.linspace(0, 1, LENGTH)
    x, y = random.uniform(0.35, 0.65, size=2)
    xs, sides, angles = np.full(LENGTH, x), np.full(LENGTH, random.uniform(0.4, 0.5)), np.zeros(LENGTH)
    if pair[0] == "left":
        far = random.uniform(0.4, 0.5)
        xs = 0.5 + far * (0.5 - steps)
    elif pair[0] == "grow":
        sides = 0.25 * (random.uniform(0.6, 0.8) / 0.25) ** steps
    else:
        angles = random.uniform(0, 360) - steps * random.uniform(60, 120)
    still = _square(random, behind, 0.8).resize((2, 2)).resize((SIDE, SIDE))  # a picture as sharp hides the crop
    crop = _square(random, image, 0.3)
    return [_over(still, crop, x, y, side, angle) for x, side, angle in zip(xs, sides, angles, strict=True)]


def _square(random: np.random.Generator, image: Image.Image, share: float) -> Image.Image:
    """A square of the image, ``share`` of its shorter side, from anywhere."""
    side = int(share * min(image.size))
    left, top = (int(random.integers(size - side + 1)) for size in image.size)
    return image.crop((left, top, left + side, top + side))


def _over(still: Image.Image, crop: Image.Image, x: float, y: float, side: float, angle: float) -> np.ndarray:
    frame, size = still.copy(), max(2, round(side * SIDE))
    turned = crop.resize((size, size), Image.Resampling.BICUBIC).convert("RGBA")
    turned = turned.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    frame.paste(turned, (round(x * SIDE - turned.width / 2), round(y * SIDE - turned.height / 2)), turned)
    return np.asarray(frame)


def _write(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
