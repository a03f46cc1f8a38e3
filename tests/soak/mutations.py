"""Ways in which a file arrives damaged: bytes flipped, cut, doubled, zeroed or swapped, by a seeded generator."""

from __future__ import annotations

import numpy as np


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A copy of ``data`` with one to four kinds of damage; never equal to it."""
    out = bytearray(data)
    while bytes(out) == data or not out:
        out = bytearray(data)
        for _ in range(random.integers(1, 5)):
            _KINDS[random.integers(len(_KINDS))](out, random)
            if not out:
                return b""
    return bytes(out)


def _span(out: bytearray, random: np.random.Generator, longest: int = 256) -> slice:
    start = int(random.integers(len(out)))
    return slice(start, start + int(random.integers(1, longest)))


def _flip(out: bytearray, random: np.random.Generator) -> None:
    for position in random.integers(len(out), size=random.integers(1, 64)):
        out[position] ^= 1 << random.integers(8)


def _flip_header(out: bytearray, random: np.random.Generator) -> None:
    for position in random.integers(min(len(out), 512), size=random.integers(1, 8)):
        out[position] = random.integers(256)


def _cut(out: bytearray, random: np.random.Generator) -> None:
    del out[int(random.integers(len(out))) :]


def _remove(out: bytearray, random: np.random.Generator) -> None:
    del out[_span(out, random)]


def _double(out: bytearray, random: np.random.Generator) -> None:
    span = _span(out, random)
    out[span.start : span.start] = out[span]


def _zero(out: bytearray, random: np.random.Generator) -> None:
    span = _span(out, random, 4096)
    out[span] = bytes(len(out[span]))


def _noise(out: bytearray, random: np.random.Generator) -> None:
    span = _span(out, random, 4096)
    out[span] = random.bytes(len(out[span]))


_KINDS = (_flip, _flip_header, _cut, _remove, _double, _zero, _noise)
