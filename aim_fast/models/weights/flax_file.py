"""Checkpoints that flax wrote, one msgpack object: the parameters by name, names joined by dots.

An array is an extension of type 1, itself msgpack of [shape, dtype, bytes]; one of over 2³⁰ bytes is a mapping of
chunks. Parameters lie below ``optimizer.target``, ``target``, ``params`` or at the top. Nothing of it is code. Source:
flax.serialization. Needs msgpack (``pip install "aim-fast[peers]"``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_fast.errors import WeightsError

_PLACES = (("optimizer", "target"), ("target",), ("params",))
_ARRAY, _SCALAR = 1, 3  # types of extensions
_LARGEST = 2**40  # bytes of one array


def is_msgpack(head: bytes) -> bool:
    """Whether a file that begins so is a msgpack mapping of at least one name."""
    counted = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], len(head))  # bytes before the name
    return any(0xA1 <= byte <= 0xBF or byte == 0xD9 for byte in head[counted : counted + 1])


def read_flax(path: Path) -> dict[str, Tensor]:
    """The parameters. Raises WeightsError where the file is damaged, holds none, or msgpack is not installed."""
    try:
        import msgpack
    except ImportError:
        raise WeightsError(
            f'weights file {path} is a checkpoint of flax and needs msgpack: pip install "aim-fast[peers]"'
        ) from None

    def array(kind: int, data: bytes) -> Any:
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"extension {kind}")
        shape, dtype, content = msgpack.unpackb(data, raw=True)
        return _tensor(shape, dtype.decode(), content)

    try:
        found = msgpack.unpackb(
            path.read_bytes(), ext_hook=array, raw=False, strict_map_key=False, max_ext_len=_LARGEST
        )
        for place in _PLACES:
            below: Any = found
            for name in place:
                below = below.get(name) if isinstance(below, Mapping) else None
            if isinstance(below, Mapping):
                found = below
        tensors = dict(_flat(found))
    except Exception as error:  # of any kind: msgpack and NumPy have their own
        raise WeightsError(f"weights file {path} is a truncated or damaged checkpoint of flax: get it again") from error
    if not tensors:
        raise WeightsError(f"weights file {path} holds no parameters of a flax model")
    return tensors


def _tensor(shape: list[int], dtype: str, content: bytes) -> Tensor:
    if dtype == "bfloat16":  # which NumPy does not know
        return torch.from_numpy(np.frombuffer(content, np.int16).reshape(shape).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.frombuffer(content, np.dtype(dtype)).reshape(shape).copy())


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping) and "__msgpack_chunked_array__" in tree:
        shape, chunks = ([part[str(i)] for i in range(len(part))] for part in (tree["shape"], tree["chunks"]))
        whole = torch.cat([chunk.flatten() for chunk in chunks])
        if len(whole) != math.prod(shape):
            raise ValueError("chunks")
        yield name, whole.reshape(shape)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}".lstrip("."))
