"""The demo set: objects whose class is how they move, in Something-Something-v2's own on-disk layout.

An object has a shape, a colour, a place, a size and an angle, in front of a soft background. In a clip exactly one of
x, y and size changes steadily through a part of its range, one way, or there and back; which one and which way is the
class. Opposite ways are drawn from one distribution of frames, in opposite order, so that no single frame, and no
average over frames, tells them apart. With a ``scene_bias`` a share of the clips does give their class away by the
scene: the background has a hue of the class's own. An image model that looks at the scene then does better than chance,
as on real data sets, and one that sees motion better still.

``render_clip`` gives frames, ``write_demo_set`` a folder that the ``ssv2`` data set reads, ``render_stills`` images of
single objects with their shape as label, for training an image model that has never seen motion.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from aim_fast.files import write_whole

# template as in labels.json, the quantity that changes, the sign of its change (y grows downward), there and back?
MOTIONS = (
    ("Moving [something] from left to right", "x", 1, False),
    ("Moving [something] from right to left", "x", -1, False),
    ("Moving [something] down", "y", 1, False),
    ("Moving [something] up", "y", -1, False),
    ("Moving [something] towards the camera", "size", 1, False),
    ("Moving [something] away from the camera", "size", -1, False),
    ("Lifting [something] up, then letting it drop down", "y", -1, True),
    ("Lowering [something], then lifting it back up", "y", 1, True),
)
SHAPES = ("an arrow", "a hook", "a hammer", "a wedge", "a half-moon", "a key", "a flag", "a spoon")
COLOURS = ((214, 66, 58), (62, 132, 214), (70, 168, 84), (232, 178, 50), (150, 86, 190), (40, 170, 170))
TILT = 0.5  # radians that an object leans at most
TINT = 24.0  # levels, of a scene that gives its class away
HEIGHT, WIDTH = 72, 96
FRAMES = 16
FRAMES_PER_SECOND = 12


def _box(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.maximum(np.maximum(x0 - x, x - x1), np.maximum(y0 - y, y - y1))


def _disc(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - radius


def _distance(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to a shape of about unit radius, x to the right and y downward."""
    if shape == 0:
        head = np.maximum(0.2 - x, 0.75 * x + 0.66 * np.abs(y) - 0.75)
        return np.minimum(_box(x, y, -1.0, -0.22, 0.25, 0.22), head)
    if shape == 1:
        return np.minimum(_box(x, y, -0.7, -1.0, -0.2, 1.0), _box(x, y, -0.7, 0.5, 0.75, 1.0))
    if shape == 2:
        return np.minimum(_box(x, y, -0.9, -1.0, 0.9, -0.5), _box(x, y, -0.22, -0.6, 0.22, 1.0))
    if shape == 3:
        return np.maximum(y - 0.7, 0.89 * np.abs(x) - 0.45 * (y + 1.0))
    if shape == 4:
        return np.maximum(_disc(x, y, 0.0, 0.0, 0.95), -x - 0.05)
    if shape == 5:
        ring = np.abs(_disc(x, y, -0.55, 0.0, 0.34)) - 0.13
        return np.minimum(ring, np.minimum(_box(x, y, -0.2, -0.13, 1.0, 0.13), _box(x, y, 0.6, 0.0, 0.85, 0.5)))
    if shape == 6:
        return np.minimum(_box(x, y, -0.65, -1.0, -0.4, 1.0), _box(x, y, -0.5, -1.0, 0.8, -0.1))
    return np.minimum(_disc(x, y, 0.0, -0.6, 0.42), _box(x, y, -0.13, -0.5, 0.13, 1.0))


def _background(rng: np.random.Generator, height: int, width: int, hue: float | None = None) -> np.ndarray:
    """A soft grey gradient with a tint and coarse texture, ``[height, width, 3]`` float32.

    ``hue``, an angle in radians, adds a tint of that colour to the one that is drawn.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(direction) * x + np.sin(direction) * y
    ends = (rng.uniform(60, 190, (2, 1, 1, 1)) + rng.normal(0, 8, (2, 1, 1, 3))).astype(np.float32)
    texture = rng.normal(0, 12, (height // 12 + 2, width // 12 + 2)).astype(np.float32)
    texture = np.kron(texture, np.ones((12, 12), np.float32))[:height, :width]
    scene = ends[0] + (ends[1] - ends[0]) * ramp[..., None] + texture[..., None]
    if hue is not None:
        scene += (TINT * np.cos(hue - 2 * np.pi / 3 * np.arange(3))).astype(np.float32)
    return scene


def _render(
    rng: np.random.Generator,
    shape: int,
    colour: int,
    place: np.ndarray,
    height: int,
    width: int,
    hue: float | None = None,
) -> np.ndarray:
    """Frames of one object, uint8 ``[T, H, W, 3]``; ``place`` ``[4, T]``: x, y and size in pixels, angle in radians."""
    x, y, size, angle = place
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    dx, dy = columns - x[:, None, None], rows - y[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    scale = size[:, None, None]
    distance = _distance(shape, (cos * dx + sin * dy) / scale, (cos * dy - sin * dx) / scale) * scale
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    paint = np.asarray(COLOURS[colour], np.float32) + rng.normal(0, 10, 3).astype(np.float32)
    frames = _background(rng, height, width, hue) * (1 - cover) + paint * cover
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def render_clip(
    motion: int,
    seed: int,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    scene_bias: float = 0.0,
) -> tuple[np.ndarray, int]:
    """One clip of class ``motion`` (row of MOTIONS): (uint8 ``[frames, height, width, 3]`` RGB, index into SHAPES).

    ``scene_bias`` is the probability that the clip's scene gives its class away.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    _, quantity, sign, back = MOTIONS[motion]
    shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    low = {"x": 0.22 * width, "y": 0.24 * height, "size": 0.15 * height, "angle": -TILT}
    high = {"x": 0.78 * width, "y": 0.76 * height, "size": 0.32 * height, "angle": TILT}
    span = {"x": (0.6, 1.0), "y": (0.6, 1.0), "size": (0.7, 1.0)}
    # every quantity sways a little, so that standing still is not what tells the others apart
    sway = {"x": 1.0, "y": 1.0, "size": 0.4, "angle": 0.05}
    time = np.linspace(0, 1, frames, dtype=np.float32)
    value = {}
    for name in ("x", "y", "size", "angle"):
        reach = high[name] - low[name]
        if name == quantity:
            part = rng.uniform(*span[name]) * reach
            start = low[name] + rng.uniform(0, reach - part)
            ease = time + rng.uniform(-0.12, 0.12) * np.sin(2 * np.pi * time)
            steady = start + part * (1 - np.abs(1 - 2 * ease) if back else ease)
            value[name] = steady if sign > 0 else 2 * start + part - steady
        else:
            value[name] = np.full(frames, low[name] + rng.uniform(0, reach), np.float32)
        phase, turns = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.0)
        value[name] = value[name] + sway[name] * np.sin(phase + 2 * np.pi * turns * time)
    place = np.stack([value[name] for name in ("x", "y", "size", "angle")]).astype(np.float32)
    hue = None
    scene = np.random.Generator(np.random.Philox(key=[seed, 3]))  # apart: a bias of 0 leaves every clip as it was
    if scene.random() < scene_bias:
        hue = 2 * np.pi * (motion + scene.uniform(-0.25, 0.25)) / len(MOTIONS)
    return _render(rng, shape, colour, place, height, width, hue), shape


def render_stills(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` square images of one object each, and what a caption would say of them.

    Returns uint8 ``[count, size, size, 3]`` and float32 ``[count, 5]``: row of SHAPES, row of COLOURS, and x, y and
    size scaled to about unit variance. The object's angle is free.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    images = np.empty((count, size, size, 3), np.uint8)
    answers = np.empty((count, 5), np.float32)
    for i in range(count):
        shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
        (x, y), part, angle = rng.uniform(0.15, 0.85, 2), rng.uniform(0.17, 0.4), rng.uniform(-TILT, TILT)
        place = np.array([[x * size], [y * size], [part * size], [angle]], np.float32)
        images[i] = _render(rng, shape, colour, place, size, size)[0]
        answers[i] = shape, colour, 4 * (x - 0.5), 4 * (y - 0.5), 15 * (part - 0.285)
    return images, answers


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes uint8 ``[T, H, W, 3]`` RGB frames as VP9 in WebM."""
    import av

    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "row-mt": "0", "threads": "1"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))


def _write_clips(videos: Path, jobs: list[tuple[int, int, int]], scene_bias: float) -> list[int]:
    shapes = []
    for number, motion, seed in jobs:
        frames, shape = render_clip(motion, seed, scene_bias=scene_bias)
        write_clip(videos / f"{number}.webm", frames)
        shapes.append(shape)
    return shapes


def write_demo_set(
    root: Path,
    train: int,
    validation: int,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
    scene_bias: float = 0.0,
) -> None:
    """Writes the demo set below ``root``: ``labels.json``, a JSON file a split, and ``.webm`` clips.

    ``train`` and ``validation`` are numbers of clips, rounded down to a multiple of the eight classes. ``progress``, if
    given, is called with the number of clips written since its last call. ``scene_bias`` as in ``render_clip``.
    """
    videos = root / "20bn-something-something-v2"
    videos.mkdir(parents=True, exist_ok=True)
    counts = {"train": train // len(MOTIONS), "validation": validation // len(MOTIONS)}
    jobs: list[tuple[int, int, int]] = []
    splits: list[str] = []
    for split, each in counts.items():
        for motion in range(len(MOTIONS)):
            for _ in range(each):
                jobs.append((len(jobs) + 1, motion, (seed << 32) + len(jobs)))
                splits.append(split)
    chunks = [jobs[i : i + 32] for i in range(0, len(jobs), 32)]
    shapes: list[int] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done in pool.map(_write_clips, [videos] * len(chunks), chunks, [scene_bias] * len(chunks)):
            shapes += done
            if progress:
                progress(len(done))
    entries: dict[str, list[dict]] = {split: [] for split in counts}
    for (number, motion, _), split, shape in zip(jobs, splits, shapes):
        template = MOTIONS[motion][0]
        thing = SHAPES[shape]
        label = template.replace("[something]", thing)
        entries[split].append({"id": str(number), "label": label, "template": template, "placeholders": [thing]})
    labels = {template.replace("[something]", "something"): str(i) for i, (template, *_) in enumerate(MOTIONS)}
    files: dict[str, Any] = {"labels.json": labels}
    files |= {f"{split}.json": rows for split, rows in entries.items()}
    files |= {"test.json": []}
    for name, content in files.items():
        write_whole(root / name, json.dumps(content, indent=1))
