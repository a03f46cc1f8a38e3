"""Several labels behind a clip: ``3 17``, ``3,17``, ``run;jump``, ``"Push, slowly"|Pull``, ``[3, 17]``, or none.

Comma, semicolon and bar part labels, but within quotation marks. A text that is a known class, or whose parts at
semicolons and bars all are, is not parted further. Blanks part numbers, and words that are each a class or the label of
another clip.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from aim_fast.data.formats.annotation import class_name, unquoted

__all__ = ["part_labels"]

_OUTSIDE = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'  # of quotation marks
_NUMBER = re.compile(r"-?\d+(\.0*)?")
_NONE = frozenset({"", "nan", "none", "null"})


def part_labels(texts: Iterable[str], known: Collection[str]) -> list[list[str]]:
    """The labels of each text, each once; ``known`` are the names of a file of classes, if there is one."""
    parted = [_at_marks(text, known) for text in texts]
    names = set(known) or {label for labels in parted for label in labels if " " not in label}
    return [list(dict.fromkeys(word for label in labels for word in _at_blanks(label, names))) for labels in parted]


def _at_marks(text: str, known: Collection[str]) -> list[str]:
    text = text.strip()
    if re.fullmatch(r"\[.*\]|\{.*\}|\(\d.*\)", text):
        text = text[1:-1]
    if class_name(unquoted(text)) in known:
        return [class_name(unquoted(text))]
    for marks in (";|", ",;|"):
        labels = [class_name(unquoted(part)) for part in re.split(f"[{marks}]{_OUTSIDE}", text)]
        labels = [label for label in labels if label.lower() not in _NONE]
        if known and all(label in known for label in labels):
            break
    return labels


def _at_blanks(label: str, names: Collection[str]) -> list[str]:
    words = [class_name(unquoted(word)) for word in re.split(rf"\s+{_OUTSIDE}", label)]
    apart = len(words) > 1 and label not in names and all(_NUMBER.fullmatch(word) or word in names for word in words)
    return words if apart else [label]
