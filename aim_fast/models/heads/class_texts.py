"""Texts of which class names are made: prompts from a file, and names that say something. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aim_fast.errors import UsageError

DEFAULT_TEMPLATES = Path(__file__).parent / "action_templates.txt"


def read_templates(path: str | Path | None = None) -> tuple[str, ...]:
    """The prompts of a file, one a line, with ``{}`` for the class; lines that begin with # are passed over.

    Without a path, the shipped ones for actions. Raises UsageError, naming the line, for one without its place.
    """
    path = Path(path or DEFAULT_TEMPLATES)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"templates {path}: cannot be read ({error}); give a text file, one prompt a line") from None
    found = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = [(number, line) for number, line in found if line and not line.startswith("#")]
    for number, line in found:
        if line.count("{}") != 1:
            raise UsageError(f"templates {path}, line {number}: {line!r} must hold {{}} once, where the class goes")
    if not found:
        raise UsageError(f"templates {path}: holds no prompt; write one a line, such as: a video of a person {{}}.")
    return tuple(line for _, line in found)


def check_class_names(names: Sequence[str]) -> None:
    """Raises UsageError where classes have numbers for names, of which a text tower knows nothing."""
    numbers = [name for name in names if not any(letter.isalpha() for letter in name)]
    placeholders = [name for name in names if name.startswith("class ") and name[6:].isdecimal()]
    if odd := numbers or placeholders:
        raise UsageError(
            f"a text head reads the names of classes, and {len(odd)} of {len(names)} have none: {', '.join(odd[:5])}; "
            "give the data set's class names, or train with --head linear"
        )
