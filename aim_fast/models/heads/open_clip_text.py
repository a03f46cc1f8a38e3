"""A text tower that open_clip builds, frozen, with the tokenizer that it was trained with.

Shapes: C texts, L = context_length positions, De = output_dim.

    texts -> ids int64 [C, L] (its own tokenizer) -> open_clip's TextTransformer -> [C, De]

Parameter names are open_clip's below ``tower``, and ``logit_scale``, ``logit_bias`` beside it. A tokenizer of the hub
is read from the folder of the weights, or the hub's cache; it is fetched only where the weights are a tag.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.heads.text_tower import check_architecture, what_instead
from aim_fast.models.heads.tokens import tokenize
from aim_fast.models.weights.open_clip_tags import TAG_PREFIX
from aim_kernels.choices import Activation

HUB = "hub"  # where a tokenizer is that comes with weights by tag
# What a folder with a tokenizer holds, the one or the other.
_BESIDE = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")  # and may hold beside it
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_PARTS = ("token_embedding.", "positional_embedding", "cls_emb", "transformer.", "ln_final.", "text_projection")


class OpenClipText(nn.Module):
    """The text tower of open_clip's model ``name``, in these sizes; heads as wide as open_clip has them.

    Raises ValueError for sizes that cannot be.
    """

    tower: Any
    logit_bias: nn.Parameter | None

    def __init__(
        self, name: str, context_length: int, vocab_size: int, width: int, depth: int, output_dim: int
    ) -> None:
        from open_clip.model import CLIPTextCfg, _build_text_tower

        super().__init__()
        config = model_config(name)
        usual = CLIPTextCfg(**config["text_cfg"])
        heads = max(width * usual.heads // usual.width, 1)
        if width % heads:
            raise ValueError(f"text_width {width} is no multiple of its {heads} heads")
        sizes = {"context_length": context_length, "vocab_size": vocab_size, "width": width, "layers": depth}
        self.name, self.config, self.tokenizer = name, usual, ""
        self.context_length, self.vocab_size = context_length, vocab_size
        self.width, self.depth, self.output_dim = width, depth, output_dim
        quick = bool(config.get("quick_gelu"))
        self.tower = _build_text_tower(output_dim, {**config["text_cfg"], **sizes, "heads": heads}, quick)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        bias = config.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        # open_clip gives both towers one activation, but timm's and those that name theirs
        self._follows = "timm_model_name" not in config["vision_cfg"] and usual.act_kwargs is None
        self.requires_grad_(False)

    @property
    def activation(self) -> Activation:
        """Of its MLPs; assigning sets it where the two towers share one."""
        known = self.tower.transformer.resblocks[0].mlp.gelu
        if not isinstance(known, nn.GELU):
            return "quick_gelu"
        return "gelu_tanh" if known.approximate == "tanh" else "gelu"

    @activation.setter
    def activation(self, activation: Activation) -> None:
        from open_clip.transformer import QuickGELU

        if self._follows:
            for block in self.tower.transformer.resblocks:
                exact = nn.GELU("tanh" if activation == "gelu_tanh" else "none")
                block.mlp.gelu = QuickGELU() if activation == "quick_gelu" else exact

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 ``[C, L]`` to text features ``[C, De]`` (not normalised)."""
        found = self.tower(tokens.to(self.logit_scale.device))
        return found[0] if isinstance(found, tuple) else found

    encode_tokens = forward

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids of each text, ``[C, L]``.

        Raises UsageError, naming the text, for one that does not fit into the context, and where the tokenizer's files
        are not at hand.
        """
        if self.config.hf_tokenizer_name is None:
            return tokenize(texts, self.context_length, self.vocab_size).ids
        reader = self._reader()
        for text in texts:
            if (count := len(reader.tokenizer(reader.clean_fn(text)).input_ids)) > self.context_length:
                raise UsageError(
                    f"prompt {text!r} is too long: {count} tokens, and the text tower has room for "
                    f"{self.context_length}: shorten it"
                )
        ids = reader(list(texts), self.context_length)
        if int(ids.max()) >= self.vocab_size:
            raise UsageError(
                f"the text tower knows {self.vocab_size} tokens, the tokenizer in {self.tokenizer or 'the cache'} "
                f"makes number {int(ids.max())}: take the tokenizer of {self.config.hf_tokenizer_name}"
            )
        return ids

    def _reader(self) -> Any:
        known = self.config.hf_tokenizer_name
        place = known if self.tokenizer in ("", HUB) else self.tokenizer
        options = {"tokenizer_mode": self.config.tokenizer_mode, **(self.config.tokenizer_kwargs or {})}
        try:
            return _hugging_face(place, self.tokenizer != HUB, tuple(options.items()))
        except ImportError:
            raise UsageError(
                f"the text tower of {self.name} reads texts by the tokenizer {known}, for which transformers is "
                "missing: pip install transformers"
            ) from None
        except Exception as error:  # of any kind: the hub's client, the files' formats
            tag = f"give the weights by tag ({TAG_PREFIX}{self.name}/…) where there is a network"
            raise UsageError(
                f"the text tower of {self.name} reads texts by the tokenizer {known}, which cannot be had from {place} "
                f"({type(error).__name__}): put its files (tokenizer.json, tokenizer_config.json) beside the weights, "
                f"or {tag}"
            ) from None

    def fit(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The tensors of a whole model of open_clip's, or of this project's, that are the text tower's, in its names.

        Raises WeightsError for a file without one, and for one of another architecture, saying in what.
        """
        below = {name.removeprefix("text."): t for name, t in tensors.items() if name.startswith("text.")}
        text = {name.removeprefix("tower."): tensor for name, tensor in (below or tensors).items()}
        found = {name: tensor for name, tensor in text.items() if name.startswith(_PARTS)}
        blocks = [match for match in map(_BLOCK.match, found) if match]
        if "token_embedding.weight" not in found or "positional_embedding" not in found or not blocks:
            raise WeightsError(f"{source} holds no text tower: {what_instead(tensors)}")
        vocab_size, width = found["token_embedding.weight"].shape
        theirs = {"vocab_size": vocab_size, "width": width, "context_length": len(found["positional_embedding"])}
        theirs["depth"] = 1 + max(int(match[1]) for match in blocks)
        if self.tower.cls_emb is not None:
            theirs["context_length"] -= 1
        check_architecture(self, theirs, source)
        named = {f"tower.{name}": tensor for name, tensor in found.items()}
        for name in ("logit_scale", "logit_bias"):
            if (value := text.get(name, tensors.get(name))) is not None:
                named[name] = value.reshape(())
        return named


def model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model; ValueError for a name that it has not."""
    import open_clip  # imports timm and torchvision

    if (config := open_clip.get_model_config(name)) is None:
        raise ValueError(f"open_clip has no model {name!r}")
    return config


def projection(name: str) -> tuple[str, ...]:
    """open_clip's names of what brings the image tower of ``name`` to the joint space: none, a weight, a bias too.

    Raises ValueError for what is no linear map.
    """
    from open_clip.model import CLIPVisionCfg

    vision = CLIPVisionCfg(**model_config(name)["vision_cfg"])
    if not vision.timm_model_name:
        return ("visual.proj",)
    if vision.timm_proj not in ("none", "linear", None, ""):
        raise ValueError(f"its image tower ends in a projection of its own ({vision.timm_proj})")
    if vision.timm_proj == "none":
        return ()
    if vision.timm_proj == "linear":
        linear = ("visual.head.proj.weight", "visual.head.proj.bias")
        return linear if vision.timm_proj_bias else linear[:1]
    return ("visual.trunk.head.weight", "visual.trunk.head.bias")


def tokenizer_of(source: str) -> str:
    """Where the tokenizer is that weights came with: "hub" for a tag's, a folder, or "" for nowhere."""
    if source.startswith(TAG_PREFIX):
        return HUB
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    return str(folder) if any((folder / name).is_file() for name in _TOKENIZERS) else ""


def tokenizer_files(model: Any) -> list[Path]:
    """The files by which a model's text head reads texts, where they came with its weights."""
    text, place = getattr(model, "text", None), Path(model.tokenizer)
    if not isinstance(text, OpenClipText) or text.config.hf_tokenizer_name is None or model.tokenizer in ("", HUB):
        return []
    return [place / name for name in (*_TOKENIZERS, *_BESIDE) if (place / name).is_file()]


@functools.cache
def _hugging_face(place: str, local: bool, options: tuple[tuple[str, Any], ...]) -> Any:
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(place, local_files_only=local, **dict(options))
