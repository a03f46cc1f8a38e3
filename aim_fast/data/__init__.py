"""Video data, from annotation files to batches of uint8 frames, in the order that a clip takes.

    formats   a data set's own files on disk         -> clips with labels
    index     clips with labels                      -> rows that a full decode of each file has checked
    plan      a row, (seed, epoch, view)             -> which frames, which box, which augmentation
    video     one file, folder of pictures or tar member -> its frames, or what is wrong with it
    pixels    planned clips                          -> uint8 tensors, by DALI or PyTorch, on CPU or GPU
    copies    a data set                             -> the same one in files that are read faster
    features  a data set and a frozen model          -> features on disk, and batches of them
    loader    an index                               -> batches for training and evaluation; ``views`` and ``windows``
                                                        do it for single files

Names are imported when first used, so that ``import aim_fast.data`` needs neither torch, DALI nor PyAV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_fast.data.formats import DATASETS, SPLITS, Clip, Listing, read_dataset
    from aim_fast.data.index.indexing import load_or_build_index
    from aim_fast.data.index.rows import Index, Row
    from aim_fast.data.loader import Batch, ClipLoader
    from aim_fast.data.plan.augmentation import Augmentation
    from aim_fast.data.plan.sampling import Sampling
    from aim_fast.data.views import load_views

_HOME = {
    **dict.fromkeys(("DATASETS", "SPLITS", "Clip", "Listing", "read_dataset"), "formats"),
    **dict.fromkeys(("Index", "Row"), "index.rows"),
    **dict.fromkeys(("Batch", "ClipLoader"), "loader"),
    "load_or_build_index": "index.indexing",
    "Augmentation": "plan.augmentation",
    "Sampling": "plan.sampling",
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
    "load_or_build_index",
    "load_views",
    "read_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
