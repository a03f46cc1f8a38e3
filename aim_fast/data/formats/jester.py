"""Jester, hand gestures (see ``aim_fast.data.formats.twentybn``)."""

from aim_fast.data.formats.twentybn import picture_folders, read

__all__ = ["LAYOUT", "read"]

LAYOUT = picture_folders("jester-v1", 27, "https://www.qualcomm.com/developer/software/jester-dataset (free account)")
