"""Embeddings of class names by a frozen text tower: an ensemble of prompts, averaged.

Shapes: C classes, K templates, De the width that both towers share.

    e_c = norm( 1/K · Σ_k norm( text(template_k(name_c)) ) )                                            [C, De]

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_fast.models.headed import Headed
from aim_fast.models.heads.open_clip_text import OpenClipText
from aim_fast.models.heads.text_tower import TextTower
from aim_fast.models.heads.tokens import spoken

_TEXTS_AT_ONCE = 256


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


@torch.compiler.disable
def give_embeddings(model: Headed, templates: Sequence[str]) -> None:
    """Makes the model's ``class_embeddings`` of its class names, where it has some."""
    if model.class_names:
        model.text.tokenizer = model.tokenizer
        with torch.inference_mode(False):  # training goes on with what a validation made
            model.class_embeddings = embed_classes(model.text, model.class_names, templates)
    model.stale = False
