"""Pictures come last, of figures that are kept as numbers too: one that fails costs itself alone."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def drawing(path: Path) -> Iterator[None]:
    """A block that draws the picture at ``path``; where it fails, that is said on stderr and the work goes on.

    Text in it is plain: a class or a file with dollar signs in its name is no formula. Letters that the font has not
    are drawn as boxes, which is not said for each of them.
    """
    try:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            yield
    except Exception as error:  # of any kind: disks, fonts and sizes each have their own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        print(f"aim-fast: {path}: not drawn ({' '.join(reason.split())[:160]})", file=sys.stderr)
