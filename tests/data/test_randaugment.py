"""RandAugment: the published list and magnitudes, and each operation in the pipeline against Pillow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from aim_fast.data.plan.randaugment import OPERATIONS, Kind, operation_parameters, plan_randaugment

SIZE = 64
ANGLE = math.radians(7)
SHEAR = math.tan(0.07)


def parameters_of(name: str, sign: int = 1, m: float = 7, size: int = 224) -> tuple[Kind, np.ndarray]:
    out = np.zeros(36, np.float32)
    kind = operation_parameters(name, m / 30, size, [0.25 if sign > 0 else 0.75, 0.5, 0.5], out)
    return kind, out


def test_the_published_list_is_complete():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 18


def test_magnitude_7_gives_the_published_parameters():
    _, rotate = parameters_of("Rotate")
    assert math.degrees(math.atan2(rotate[1], rotate[0])) == pytest.approx(7, abs=1e-4)
    assert math.degrees(math.atan(parameters_of("ShearX")[1][1])) == pytest.approx(4, abs=0.02)
    assert math.degrees(math.atan(parameters_of("ShearY", -1)[1][3])) == pytest.approx(-4, abs=0.02)
    assert parameters_of("TranslateX")[1][2] == pytest.approx(0.077 * 224, rel=1e-5)
    assert parameters_of("TranslateY", -1)[1][5] == pytest.approx(-0.077 * 224, rel=1e-5)
    assert parameters_of("Posterize")[1][31] == 0b11111110
    assert parameters_of("Solarize")[1][31] == 197
    for name in ("Color", "Contrast", "Brightness"):
        assert parameters_of(name)[1][31] == pytest.approx(1.21)
        assert parameters_of(name, -1)[1][31] == pytest.approx(0.79)
    assert parameters_of("Cutout")[1][34] == pytest.approx(0.146 * 224, abs=1)


def test_a_clip_gets_distinct_operations_in_every_order():
    random = np.random.default_rng(0)
    firsts = set()
    for _ in range(600):
        draws = random.random(72).tolist()
        kinds, parameters = plan_randaugment(18, 7, 224, draws)
        assert sorted(kinds) == sorted(parameters_of(name)[0] for name in OPERATIONS)  # each of the 18 once
        assert parameters.shape == (18, 36)
        kinds, _ = plan_randaugment(4, 7, 224, draws)
        firsts.add(min(range(18), key=draws.__getitem__))
    assert firsts == set(range(18))


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))


def rotated(image: Image.Image, angle: float) -> Image.Image:
    c, s, m = math.cos(angle), math.sin(angle), SIZE / 2
    return affine(image, (c, s, m - c * m - s * m, -s, c, m + s * m - c * m))


def cut_out(image: Image.Image) -> Image.Image:
    side = 0.625 * 7 / 30 * SIZE
    start, end = round(SIZE / 2 - side / 2), round(SIZE / 2 + side / 2)
    image = image.copy()
    image.paste((128, 128, 128), (start, start, end, end))
    return image


def pillow(name: str, sign: int, image: Image.Image) -> Image.Image:
    factor, shift = 1 + sign * 0.21, sign * 0.077 * SIZE
    return {
        "Identity": lambda: image,
        "Autocontrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: rotated(image, sign * ANGLE),
        "Posterize": lambda: ImageOps.posterize(image, 7),
        "Solarize": lambda: ImageOps.solarize(image, 197),
        "Color": lambda: ImageEnhance.Color(image).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: affine(image, (1, sign * SHEAR, 0, 0, 1, 0)),
        "ShearY": lambda: affine(image, (1, 0, 0, sign * SHEAR, 1, 0)),
        "TranslateX": lambda: affine(image, (1, 0, shift, 0, 1, 0)),
        "TranslateY": lambda: affine(image, (1, 0, 0, 0, 1, shift)),
        "Cutout": lambda: cut_out(image),
        "FilterBlur": lambda: image.filter(ImageFilter.BLUR),
        "FilterSmooth": lambda: image.filter(ImageFilter.SMOOTH),
    }[name]()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """uint8 [3, S, S, 3]: three frames of unlike brightness, smooth and textured, none using the full range."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    smooth = np.stack([y, x, (x + y) / 2], axis=-1)
    out = [30 + 150 * smooth, 20 + 80 * smooth**2, 90 + 110 * (1 - smooth)]
    noise = random.normal(0, 12, (3, SIZE, SIZE, 3))
    return np.clip(np.stack(out) + noise, 8, 240).astype(np.uint8)


@pytest.fixture(scope="module")
def augmented(frames):
    """(name, sign) -> what the pipeline makes of ``frames``; all in one batch of one pipeline."""
    pytest.importorskip("nvidia.dali")
    from aim_fast.data.pixels.clip_input import ClipInput
    from aim_fast.data.pixels.dali_pipelines import augment_inputs, augmenting
    from aim_fast.data.plan.augmentation import Augmentation
    from aim_fast.data.plan.clip_plan import ClipPlan

    keys = [(name, sign) for name in OPERATIONS for sign in (1, -1)]
    whole = np.arange(3, dtype=np.int32)
    clips = []
    for name, sign in keys:
        kind, parameters = parameters_of(name, sign, size=SIZE)
        plan = ClipPlan(whole, whole, (0, 0, 1, 1), randaug=(np.array([kind], np.int32), parameters[None]))
        clips.append(ClipInput(plan, "", frames))
    augmentation = Augmentation(randaug=(1, 7))
    pipeline = augmenting(SIZE, augmentation, batch_size=len(clips), threads=2)
    pipeline.start(augment_inputs(clips, [clip.pixels for clip in clips], augmentation))
    out = torch.from_dlpack(pipeline.wait().as_tensor()).clone().numpy()
    return dict(zip(keys, out))


# Levels that a pixel may be apart: rounding where Pillow truncates, and twice where it does so twice. Equalize has
# another formula for its table, the further apart the fewer pixels there are. Nearest-neighbour warps may take the
# neighbour where a source position falls on an edge.
_APART = {"Equalize": 12, "Color": 2, "Contrast": 2}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows_on_every_frame(name, sign, frames, augmented):
    found = augmented[name, sign].astype(int)
    expected = np.stack([np.asarray(pillow(name, sign, Image.fromarray(frame))) for frame in frames]).astype(int)
    apart = np.abs(found - expected)
    if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        assert (apart > 0).mean() < 0.01
    else:
        assert apart.max() <= _APART.get(name, 1)
        assert apart.mean() < (2 if name == "Equalize" else 0.8)
    if name != "Identity":
        assert (found != frames).mean() > 0.01
