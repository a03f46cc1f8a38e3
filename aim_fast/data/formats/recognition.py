"""Which data set a folder or a file is, where nobody says: the first format that reads it."""

from __future__ import annotations

import importlib
from pathlib import Path

from aim_fast.data.formats import FORMATS, dataset_layout, read_dataset
from aim_fast.data.formats.layout import DataRoot
from aim_fast.errors import DataError

__all__ = ["recognised"]

_TOOLS = ("labelstudio", "cvat", "fiftyone")  # told by what their files hold
_LAST = ("list", "folder")  # take nearly everything


def recognised(root: str | Path) -> str:
    """The name of the data set at ``root``. Raises DataError where no format reads it."""
    path = Path(root).expanduser()
    if tool := next((name for name in _TOOLS if _holds_export(name, path)), None):
        return tool
    for name in (*(name for name in FORMATS if name not in _TOOLS + _LAST), *_LAST):
        try:
            read_dataset(name, path, "train", multi_label=dataset_layout(name).labels == "several")
        except DataError as error:
            last = error
        else:
            return name
    raise DataError(f"{path} is no data set that is known here: give --dataset NAME ({last})")


def _holds_export(name: str, path: Path) -> bool:
    module = importlib.import_module(f"aim_fast.data.formats.{name}")
    try:
        return module.holds_export(DataRoot(path, "train", module.LAYOUT))
    except DataError:
        return False
