"""Names of classes and files as they can be printed: what is no text in them is replaced."""

from __future__ import annotations

import unicodedata


def printable(name: str) -> str:
    """``name`` in one line of valid Unicode: bytes that are no UTF-8 and control characters become "\ufffd"."""
    return "".join("\ufffd" if unicodedata.category(letter) in ("Cs", "Cc") else letter for letter in name)
