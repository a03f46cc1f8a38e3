"""Embeddings of class names by a frozen text tower: an ensemble of prompts, averaged.

Shapes: C classes, K templates, De the width that both towers share.

    e_c = norm( 1/K · Σ_k norm( text(template_k(name_c)) ) )                                            [C, De]

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_fast.errors import UsageError
from aim_fast.models.heads.open_clip_text import OpenClipText
from aim_fast.models.heads.text_tower import TextTower
from aim_fast.models.heads.tokens import spoken

DEFAULT_TEMPLATES = Path(__file__).parent / "action_templates.txt"
_TEXTS_AT_ONCE = 256


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


@torch.no_grad()
def embed_classes(tower: TextTower | OpenClipText, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit embeddings of classes, ``[C, De]`` fp32, on the tower's device.

    Raises UsageError, naming the text, where a prompt is longer than the tower's context.
    """
    texts = [template.replace("{}", spoken(name)) for name in names for template in templates]
    chunks = [tower.tokenize(texts[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    parts = [tower.encode_tokens(chunk) for chunk in chunks]  # type: ignore[arg-type]
    features = F.normalize(torch.cat(parts).float(), dim=-1)
    return F.normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)
