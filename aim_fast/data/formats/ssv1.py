"""Something-Something v1 (see ``aim_fast.data.formats.twentybn``)."""

from __future__ import annotations

from aim_fast.data.formats.twentybn import PictureFolders

__all__ = ["LAYOUT", "SOURCE", "read"]

_DATA_SET = PictureFolders("something-something-v1", "20bn-something-something-v1")
LAYOUT = _DATA_SET.layout
SOURCE = "no longer offered officially; version 2 replaced it"
read = _DATA_SET.read
