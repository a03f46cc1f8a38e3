"""Which blocks of a Transformer have adapters: all, a half, every other one, or a list of their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from aim_fast.errors import nearest

WORDS = ("all", "bottom", "top", "alternate")


def resolve_layers(layers: str | Sequence[int | str], depth: int) -> tuple[int, ...]:
    """Numbers of blocks, ascending and counted from 0, of ``depth`` blocks.

    ``layers`` is "all", "bottom" or "top" (a half, depth // 2: the published bottom 6 and top 6 of 12), "alternate"
    (every other block, the second of each pair, so that the last has adapters), or numbers. Raises ValueError for an
    unknown word and for numbers that are no block or stand twice.
    """
    words = [layers] if isinstance(layers, str) else list(layers)
    if len(words) == 1 and words[0] in WORDS:
        numbers = {
            "all": range(depth),
            "bottom": range(depth // 2),
            "top": range(depth - depth // 2, depth),
            "alternate": range(1, depth, 2),
        }[words[0]]
        if not numbers:
            raise ValueError(f"adapter_layers {words[0]!r} of {depth} block has none: use all")
        return tuple(numbers)
    found = []
    for word in words:
        text = str(word).strip()
        if not text.isdecimal():
            raise ValueError(f"adapter_layers {word!r} is no number of a block: {nearest(text, WORDS)}")
        if int(text) >= depth:
            raise ValueError(f"adapter_layers: there is no block {text}, they are numbered from 0 to {depth - 1}")
        found.append(int(text))
    if len(set(found)) != len(found):
        raise ValueError(f"adapter_layers {', '.join(map(str, found))}: name each block once")
    return tuple(sorted(found))
