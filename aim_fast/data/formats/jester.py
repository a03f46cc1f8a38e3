"""Jester, hand gestures (see ``aim_fast.data.formats.twentybn``)."""

from __future__ import annotations

from aim_fast.data.formats.twentybn import PictureFolders

__all__ = ["LAYOUT", "SOURCE", "read"]

_DATA_SET = PictureFolders("jester-v1", "20bn-jester-v1")
LAYOUT = _DATA_SET.layout
SOURCE = "https://www.qualcomm.com/developer/software/jester-dataset (free account)"
read = _DATA_SET.read
