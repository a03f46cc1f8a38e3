"""Video data: formats · index · plan · decode · loader, from annotation files to batches of uint8 frames.

Names are imported when first used, so that ``import aim_fast.data`` needs neither torch, DALI nor PyAV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_fast.data.formats import DATASETS, SPLITS, Clip, Listing, read_dataset
    from aim_fast.data.index import Index, Row
    from aim_fast.data.indexing import build_index, load_index, load_or_build_index
    from aim_fast.data.loader import Batch, ClipLoader
    from aim_fast.data.plan import Augmentation
    from aim_fast.data.sampling import Sampling
    from aim_fast.data.views import load_views

_HOME = {
    **dict.fromkeys(("DATASETS", "SPLITS", "Clip", "Listing", "read_dataset"), "formats"),
    **dict.fromkeys(("Index", "Row"), "index"),
    **dict.fromkeys(("build_index", "load_index", "load_or_build_index"), "indexing"),
    **dict.fromkeys(("Batch", "ClipLoader"), "loader"),
    "Augmentation": "plan",
    "Sampling": "sampling",
    "load_views": "views",
}

__all__ = [
    "DATASETS",
    "SPLITS",
    "Augmentation",
    "Batch",
    "Clip",
    "ClipLoader",
    "Index",
    "Listing",
    "Row",
    "Sampling",
    "build_index",
    "load_index",
    "load_or_build_index",
    "load_views",
    "read_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
