"""Embeddings of class names by a frozen text tower: an ensemble of prompts, averaged.

Shapes: C classes, K templates, De the width that both towers share.

    e_c = norm( 1/K · Σ_k norm( text(template_k(name_c)) ) )                                            [C, De]

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_fast.models.headed import Headed
from aim_fast.models.heads.open_clip_text import OpenClipText
from aim_fast.models.heads.text_tower import TextTower
from aim_fast.models.heads.tokens import TextTokens, spoken

_TEXTS_AT_ONCE = 256


@torch.no_grad()
def read_texts(tower: TextTower | OpenClipText, texts: Sequence[str]) -> Tensor:
    """Features of texts ``[C, De]`` fp32 on the tower's device, not normalised.

    Raises UsageError, naming the text, for one that is longer than the tower's context.
    """
    chunks = [tower.tokenize(texts[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    return torch.cat([tower.encode_tokens(chunk) for chunk in chunks]).float()  # type: ignore[arg-type]


def embed_classes(tower: TextTower | OpenClipText, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit embeddings of classes, ``[C, De]`` fp32, on the tower's device; raises as :func:`read_texts`."""
    features = read_texts(tower, [template.replace("{}", spoken(name)) for name in names for template in templates])
    return F.normalize(F.normalize(features, dim=-1).unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


@torch.compiler.disable
def token_ids(model: Headed, templates: Sequence[str]) -> Tensor:
    """Token ids of the model's class names in each of ``templates``, ``[K·C, L]``, templates first, up to the longest.

    Raises UsageError, naming the text, for one that is longer than the tower's context.
    """
    model.text.tokenizer = model.tokenizer
    texts = [template.replace("{}", spoken(name)) for template in templates for name in model.class_names]
    found = model.text.tokenize(texts)
    ids = found.ids[:, : found.longest] if isinstance(found, TextTokens) else found
    return ids.to(model.text.logit_scale.device)


@torch.compiler.disable
def give_embeddings(model: Headed, embed: Callable[[Headed], Tensor]) -> None:
    """Makes the model's ``class_embeddings`` of its class names by ``embed``, where it has some."""
    if model.class_names:
        model.text.tokenizer = model.tokenizer
        with torch.inference_mode(False):  # training goes on with what a validation made
            model.class_embeddings = embed(model)
    model.stale = False
