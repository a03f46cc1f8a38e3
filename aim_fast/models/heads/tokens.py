"""Texts to token ids, by CLIP's byte-pair encoding: the vocabulary comes with open_clip, nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_fast.errors import UsageError


class TextTokens(NamedTuple):
    """Tokenised texts: ``ids`` int64 ``[C, L]``, zeros after the end of each; ``ends`` int64 ``[C]``, where the
    end-of-text token stands: the highest id of its row, which is what CLIP reads the feature at."""

    ids: Tensor
    ends: Tensor

    @property
    def longest(self) -> int:
        """Positions up to the last end."""
        return int(self.ends.max()) + 1


def tokenize(texts: Sequence[str], context_length: int = 77, vocab_size: int = 49408, spare: int = 0) -> TextTokens:
    """Token ids of each text between start- and end-of-text, ``[C, context_length]``.

    ``spare`` positions are to stay free, for a learned prompt around the text. Raises UsageError, naming the first
    text, where one does not fit into the context or says nothing, and where the vocabulary is not CLIP's.
    """
    encoder = _encoder()
    if encoder.vocab_size > vocab_size:
        raise UsageError(
            f"the text tower knows {vocab_size} tokens, CLIP's tokenizer makes {encoder.vocab_size}: take a CLIP file "
            "with OpenAI's vocabulary"
        )
    if not texts:
        raise UsageError("no texts to tokenise: a text tower needs the name of at least one class")
    ids = torch.zeros(len(texts), context_length, dtype=torch.int64, device="cpu")  # whatever the default device is
    ends = torch.empty(len(texts), dtype=torch.int64, device="cpu")
    for row, text in enumerate(texts):
        words = encoder.encode(text)
        if not words:
            raise UsageError(f"text {text!r} holds no word: a text tower needs a name for each class")
        if len(words) + 2 + spare > context_length:
            around = f" beside {spare} of the learned prompt" if spare else ""
            raise UsageError(
                f"prompt {text!r} is too long: {len(words)} tokens, and the text tower has room for "
                f"{max(context_length - 2 - spare, 0)}{around}: shorten it"
            )
        ids[row, : len(words) + 2] = torch.tensor([encoder.sot_token_id, *words, encoder.eot_token_id], device="cpu")
        ends[row] = len(words) + 1
    return TextTokens(ids, ends)


def spoken(name: str) -> str:
    """A class name as a text: "ApplyEyeMakeup" to "Apply Eye Makeup", "brush_hair" to "brush hair"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).strip()


@cache
def _encoder() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # imports timm and torchvision: seconds

    return SimpleTokenizer()
