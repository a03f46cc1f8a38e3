"""Videos that are folders of pictures, ``00001.jpg``, ``00002.jpg`` …, as in Something-Something v1 and Jester.

Frame i is the i-th picture by number. Pictures are decoded by Pillow, whose libjpeg-turbo needs no other part of this
project, to RGB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from PIL import Image, UnidentifiedImageError

from aim_fast.errors import DataError

__all__ = ["CODEC", "decode_pictures", "numbering_gap", "picture_names", "picture_size"]

CODEC = "pictures"
_EXTENSIONS = (".jpg", ".jpeg", ".png")


def picture_names(folder: str) -> list[str]:
    """Names of the pictures in a folder, by number."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(_EXTENSIONS) and name[0] != "."]
    return sorted(names, key=lambda name: (_number(name), name))


def numbering_gap(names: Sequence[str]) -> str | None:
    """The first picture that is missing between others, by its name; None where the numbers are without a gap."""
    for before, after in pairwise(names):
        number = _number(before)
        if number >= 0 and _number(after) > number + 1:
            digits = re.findall(r"\d+", before)[-1]
            head, _, tail = before.rpartition(digits)
            return f"{head}{number + 1:0{len(digits)}d}{tail}"
    return None


def decode_pictures(folder: str, frames: Sequence[int], *, threads: int = 1) -> np.ndarray:
    """uint8 [len(frames), H, W, 3] RGB: the numbered pictures of a folder.

    Raises:
        DataError: no such picture, one that cannot be decoded, or of another size than the first.
    """
    try:
        names = picture_names(folder)
        if frames[-1] >= len(names):
            raise DataError(f"{folder} has no frame {frames[-1]}; index the data set again")
        paths = [os.path.join(folder, names[frame]) for frame in frames]
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                pictures = list(pool.map(_picture, paths))
        else:
            pictures = [_picture(path) for path in paths]
        return np.stack(pictures)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be decoded: {error}") from None


def picture_size(path: str) -> tuple[int, int]:
    """(height, width) of a picture that is decoded whole; OSError where it cannot be."""
    return _picture(path).shape[:2]


def _picture(path: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise OSError(f"{os.path.basename(path)} is no picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{os.path.basename(path)}: {error}") from None


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else -1
