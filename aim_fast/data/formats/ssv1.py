"""Something-Something v1 (see ``aim_fast.data.formats.twentybn``)."""

from aim_fast.data.formats.twentybn import picture_folders, read

__all__ = ["LAYOUT", "read"]

LAYOUT = picture_folders("something-something-v1", 174, "no longer offered officially; version 2 replaced it")
