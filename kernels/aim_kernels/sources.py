"""The sources of the C++ part, csrc/: what a build was made of is written into it, and found there when it is loaded.

setup.py and aim_kernels.extension both ask here. Imports no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "csrc"  # beside a checkout's package; an installed one has no sources


def mark() -> bytes | None:
    """What a build of today's sources carries: a digest of their names and bytes. None where there are no sources."""
    digest = hashlib.sha256()
    files = sorted([*FOLDER.rglob("*.cpp"), *FOLDER.rglob("*.h")])
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(FOLDER).as_posix()} {len(content)}\n".encode() + content)
    return f"aim_kernels of {digest.hexdigest()}".encode() if files else None
