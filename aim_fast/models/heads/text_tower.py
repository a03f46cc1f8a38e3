"""CLIP's text tower, frozen: token ids, or embeddings in their place, to one feature a text.

Shapes: C texts, L ≤ context_length positions, W = width, De = output_dim.

    tokens [C, L] -> token_embedding (or given embeddings [C, L, W]) -> + positional_embedding[:L]
    -> depth × (x + attn(ln_1(x)), causal; x + mlp(ln_2(x))) -> ln_final at the end-of-text position [C, W]
    -> text_projection [W, De] -> [C, De]

Attention is causal, so nothing after the end-of-text position reaches the feature: texts are cut to the longest; and a
beginning that all texts share, such as a learned prompt, is computed once.
Parameter names are CLIP's: ``token_embedding.weight, positional_embedding, transformer.resblocks.N.{ln_1, attn, ln_2,
mlp}.*, ln_final.*, text_projection, logit_scale``. Source: Radford et al., Learning Transferable Visual Models From
Natural Language Supervision, ICML 2021.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import WeightsError
from aim_fast.models.heads.tokens import TextTokens, tokenize
from aim_fast.models.weights.state_dict import strip_prefixes
from aim_kernels.adaptation import activate
from aim_kernels.choices import Activation
from aim_kernels.modules import MLP, TemporalAttention

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_HEAD_WIDTH = 64  # of every CLIP text tower


class TextTower(nn.Module):
    """A frozen CLIP text tower.

    ``logit_scale`` is CLIP's learned log of 1/temperature. Gradients pass to input embeddings, never to the tower.
    Raises ValueError for sizes that cannot be.
    """

    logit_bias = None  # of sigmoid models alone

    def __init__(
        self,
        context_length: int = 77,
        vocab_size: int = 49408,
        width: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        output_dim: int = 512,
        *,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation {activation!r} is none of {', '.join(get_args(Activation))}")
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.output_dim = output_dim
        self.activation: Activation = activation
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = _Transformer(width, depth, num_heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, output_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()
        self.requires_grad_(False)

    def reset_parameters(self) -> None:
        """CLIP's initialisation."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.transformer.resblocks:
            block.reset_parameters(self.depth)
        self.ln_final.reset_parameters()
        nn.init.normal_(self.text_projection, std=self.width**-0.5)
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 ``[C, L]`` to text features ``[C, De]`` (not normalised); the end is the highest id."""
        return self.encode(self.token_embedding(tokens), tokens.argmax(dim=-1))

    def tokenize(self, texts: Sequence[str]) -> TextTokens:
        """Raises UsageError, naming the text, for one that does not fit into the context."""
        return tokenize(texts, self.context_length, self.vocab_size)

    def encode_tokens(self, texts: TextTokens) -> Tensor:
        """What :meth:`forward` gives for tokenised texts, without the positions after the longest."""
        tokens = texts.ids[:, : texts.longest].to(self.positional_embedding.device)
        return self.encode(self.token_embedding(tokens), texts.ends.to(tokens.device))

    def encode(self, embeddings: Tensor, ends: Tensor, shared: int = 0) -> Tensor:
        """Input embeddings ``[C, L, W]``, before positions are added, to features ``[C, De]`` read at ``ends`` [C].

        ``shared`` first positions hold the same in every text, and none of them is an end: attention is causal, so they
        go through the tower once for all.
        """
        texts, width = embeddings.shape[0], embeddings.shape[2]
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]
        tokens = torch.cat([x[0, :shared], x[:, shared:].reshape(-1, width)])  # [shared + C·(L - shared), W]
        for block in self.transformer.resblocks:
            tokens = block(tokens, texts, shared, self.activation)
        x = tokens[shared:].unflatten(0, (texts, -1))[torch.arange(texts, device=x.device), ends - shared]
        return self.ln_final(x) @ self.text_projection.to(x.dtype)

    def fit(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The text tower's tensors of a whole CLIP; WeightsError for none, and for one of another architecture."""
        text = text_tensors(tensors, source)
        check_architecture(self, infer_text_architecture(text, source), source)
        return text

    def extra_repr(self) -> str:
        return f"context_length={self.context_length}, num_heads={self.num_heads}, activation={self.activation!r}"


def check_architecture(tower: nn.Module, theirs: Mapping[str, int], source: str) -> None:
    """Raises WeightsError where the sizes of a file's text tower are not the tower's of the same names."""
    ours = {key: getattr(tower, key) for key in theirs}
    if odd := [f"{key} {size}, not {ours[key]}" for key, size in theirs.items() if size != ours[key]]:
        raise WeightsError(f"{source} has a text tower of another architecture than the model: {'; '.join(odd)}")


def text_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The text tower's tensors of a whole CLIP, under CLIP's bare names.

    Takes the names of OpenAI's files and of open_clip's, with the prefix ``text.`` that its newer models have, or
    without. Raises WeightsError where there is no such text tower, saying what is there instead.
    """
    tensors = strip_prefixes(tensors, where)
    if "text.token_embedding.weight" in tensors:
        scale = {"logit_scale": tensors["logit_scale"]} if "logit_scale" in tensors else {}
        tensors = {name.removeprefix("text."): t for name, t in tensors.items() if name.startswith("text.")} | scale
    if "token_embedding.weight" not in tensors or not any(map(_BLOCK.match, tensors)):
        raise WeightsError(f"{where} holds no CLIP text tower: {what_instead(tensors)}")
    if "text_projection.weight" in tensors:  # a linear layer in some of open_clip's models
        if "text_projection.bias" in tensors:
            raise WeightsError(f"{where}: its text projection has a bias (SigLIP?), which CLIP's text tower has not")
        tensors["text_projection"] = tensors.pop("text_projection.weight").T
    if "cls_emb" in tensors:
        raise WeightsError(f"{where}: its text tower has a class token (CoCa?), which CLIP's has not")
    own = ("token_embedding.", "transformer.", "ln_final.")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(own)}
    kept |= {name: tensors[name] for name in ("positional_embedding", "text_projection") if name in tensors}
    kept["logit_scale"] = tensors.get("logit_scale", torch.tensor(math.log(100.0))).reshape(())
    return kept


def infer_text_architecture(tensors: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, int]:
    """Sizes of :class:`TextTower` that fit a text tower's tensors; WeightsError where something is missing."""
    tensors = tensors if "text_projection" in tensors else text_tensors(tensors, where)
    missing = {"token_embedding.weight", "positional_embedding", "text_projection"} - tensors.keys()
    if missing:
        raise WeightsError(f"{where}: its text tower lacks {', '.join(sorted(missing))}")
    vocab_size, width = tensors["token_embedding.weight"].shape
    if width % _HEAD_WIDTH:
        raise WeightsError(f"{where}: its text tower has width {width}, no multiple of CLIP's {_HEAD_WIDTH} a head")
    return {
        "context_length": len(tensors["positional_embedding"]),
        "vocab_size": vocab_size,
        "width": width,
        "depth": 1 + max(int(match[1]) for match in map(_BLOCK.match, tensors) if match),
        "num_heads": width // _HEAD_WIDTH,
        "output_dim": tensors["text_projection"].shape[1],
    }


class _Transformer(nn.Module):
    resblocks: Sequence[_TextBlock]

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_TextBlock(width, num_heads) for _ in range(depth))  # type: ignore[assignment]


class _TextBlock(nn.Module):
    """Pre-norm block with causal attention over C texts whose first P positions are the same, ``[P + C·R, W]``."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = nn.LayerNorm(width)
        self.attn = TemporalAttention(width, num_heads)  # its parameters, which are nn.MultiheadAttention's
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def reset_parameters(self, depth: int) -> None:
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]
        for residual in (self.attn.out_proj, self.mlp.c_proj):
            nn.init.normal_(residual.weight, std=(2 * self.attn.dim * depth) ** -0.5)

    def forward(self, x: Tensor, texts: int, shared: int, activation: Activation) -> Tensor:
        qkv = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        x = x + self.attn.out_proj(self._attend(qkv, texts, shared))
        return x + self.mlp.c_proj(activate(self.mlp.c_fc(self.ln_2(x)), activation))

    def _attend(self, qkv: Tensor, texts: int, shared: int) -> Tensor:
        """Packed qkv ``[P + C·R, 3W]`` to ``[P + C·R, W]``: the rest of each text sees the shared part and itself."""
        packed = qkv.unflatten(-1, (3, self.num_heads, -1))
        q, k, v = packed[shared:].unflatten(0, (texts, -1)).permute(2, 0, 3, 1, 4)  # each [C, h, R, d]
        if not shared:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return attended.transpose(1, 2).flatten(0, 1).flatten(1)
        q0, k0, v0 = packed[:shared].permute(1, 2, 0, 3)[:, None]  # each [1, h, P, d]
        alone = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)[0]
        k, v = (torch.cat([s.expand(texts, -1, -1, -1), own], dim=2) for s, own in ((k0, k), (v0, v)))
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(shared)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return torch.cat([alone.transpose(0, 1).flatten(1), attended.transpose(1, 2).flatten(0, 1).flatten(1)])


def what_instead(names: Mapping[str, Any]) -> str:
    """What tensors are that are no text tower, by their names."""
    if any(name.startswith(("text_model.", "text.transformer.embeddings")) for name in names):
        return "its names are those of Hugging Face transformers: take the OpenAI or open_clip file"
    if "conv1.weight" in names:
        return "it is an image tower alone: take the whole CLIP file"
    if any("blocks." in name and ".attn." in name for name in names):
        towers = "an ImageNet trunk, or SigLIP's, EVA-CLIP's or PE's without the text tower"
        return f"it is an image tower alone ({towers}): take the whole file of both towers"
    return f"its first names are {', '.join(sorted(names)[:3])}"
