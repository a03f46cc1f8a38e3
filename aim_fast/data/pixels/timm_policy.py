"""timm's RandAugment and AutoAugment on clips: its own operations, drawn once and applied to every frame alike.

A policy is named as timm names it: ``rand-m9-mstd0.5-inc1``, ``original-mstd0.5``, ``v0``, ``3a``. timm draws from
Python's global generator while it works on an image. Here its operations first get a list in place of an image, onto
which each writes its function and arguments, with the generator seeded for the clip; the list then is applied to each
frame. What a clip gets is a function of its seed alone.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from aim_fast.errors import UsageError

__all__ = ["TimmPolicy", "check_policy"]

Step = tuple[Callable[..., Image.Image], tuple[Any, ...], dict[str, Any]]

_GENERATOR = threading.Lock()  # held while Python's global generator is seeded for a clip


def check_policy(spec: str) -> None:
    """Raises UsageError for a text that names no policy."""
    TimmPolicy(spec, 224, (124, 116, 104))


class TimmPolicy:
    """One policy at one image size.

    Args:
        spec: as timm spells it. img_size: side of the frames, pixels. fill: RGB of what warps leave empty.

    Raises:
        UsageError: a spec that timm does not know.
    """

    def __init__(self, spec: str, img_size: int, fill: tuple[int, int, int]) -> None:
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        self.spec = spec
        make = rand_augment_transform if spec.split("-")[0] == "rand" else auto_augment_transform
        options = {
            "translate_const": int(img_size * 0.45),  # as timm's own transforms have it
            "img_mean": fill,
            "interpolation": Image.Resampling.BILINEAR,
        }
        try:
            self._transform: Any = make(spec, options)
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"augmentation timm:{spec} is none of timm's ({str(error) or type(error).__name__}): "
                "write for example timm:rand-m9-mstd0.5-inc1 or timm:original-mstd0.5"
            ) from None
        for operation in self._operations():
            operation.aug_fn = functools.partial(_noted, operation.aug_fn)

    def draw(self, seed: int) -> list[Step]:
        """The functions, with their arguments, that the clip of this seed gets, in order."""
        with _seeded(seed):
            if hasattr(self._transform, "policy"):
                return list(self._transform([]))
            # timm's RandAugment chooses by NumPy's global generator, which others of this process seed and draw from
            transform = self._transform
            chosen = np.random.Generator(np.random.Philox(key=seed)).choice(
                len(transform.ops),
                transform.num_layers,
                replace=transform.choice_weights is None,
                p=transform.choice_weights,
            )
            steps: list[Step] = []
            for number in chosen:
                steps = transform.ops[number](steps)
            return steps

    def __call__(self, frames: np.ndarray, seed: int) -> np.ndarray:
        """uint8 [U, S, S, 3] of frames uint8 [U, S, S, 3]; the same for every frame."""
        steps = self.draw(seed)
        return np.stack([_applied(steps, frame, seed) for frame in frames]) if steps else frames

    def _operations(self) -> list[Any]:
        """timm's operations; those of AutoAugment are in policies of several."""
        if hasattr(self._transform, "policy"):
            return [operation for policy in self._transform.policy for operation in policy]
        return self._transform.ops


def _noted(function: Callable[..., Image.Image], steps: list[Step], *arguments: Any, **options: Any) -> list[Step]:
    return [*steps, (function, arguments, options)]


def _applied(steps: list[Step], frame: np.ndarray, seed: int) -> np.ndarray:
    image = Image.fromarray(frame)
    for number, (function, arguments, options) in enumerate(steps):
        if function.__name__.endswith("_rand"):  # draws its strength while it works
            with _seeded(seed + number):
                image = function(image, *arguments, **options)
        else:
            image = function(image, *arguments, **options)
    return np.asarray(image)


class _seeded:
    """A block in which Python's global generator starts at ``seed``; it goes on from where it was after it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        _GENERATOR.acquire()
        self.state = random.getstate()
        random.seed(self.seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self.state)
        _GENERATOR.release()
