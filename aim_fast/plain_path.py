"""Paths for libraries in C++ and Rust that take text in UTF-8 alone: torch, safetensors, tensorboard, DALI."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path


def plain_path(path: str | Path) -> str:
    """An absolute path of valid UTF-8 to a file or folder that is there: where ``path`` is none, a link that lives
    as long as this process. What is to be made is made in ``plain_path`` of its folder."""
    whole = os.path.abspath(path)
    try:
        whole.encode()
    except UnicodeEncodeError:
        link = os.path.join(_links().name, hashlib.sha256(os.fsencode(whole)).hexdigest()[:16])
        if not os.path.lexists(link):
            os.symlink(whole, link)
        return link
    return whole


@functools.cache
def _links() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="aim-fast-")
