"""CLIP's own head: video features scored against class names.

Shapes: B clips, T frames, D the image tower's width, De the width that CLIP's two towers share, C classes.

    video   feature of each frame [B, T, D] -> mean over T -> proj [D, De] -> norm                 v [B, De]
    text    embeddings of the class names by the frozen text tower (class_embeddings)              e [C, De]
    logits  exp(logit_scale) · v·e                                                                  [B, C]

``proj``, the text tower and ``logit_scale`` are CLIP's and frozen, so the head has nothing of its own: other class
names make a classifier for other classes. Sources: Radford et al., ICML 2021; Yang et al., AIM, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import WeightsError
from aim_fast.models.head import Head, Headed
from aim_fast.models.heads.class_embeddings import check_class_names, embed_classes, read_templates
from aim_fast.models.heads.text_tower import TextTower, infer_text_architecture, text_tensors
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.state_dict import strip_prefixes


@dataclass(frozen=True)
class Text(Head):
    """CLIP's head over named classes.

    Args:
        class_names: of the classes; ``set_classes`` gives others. Without names, ``num_classes`` is for counting.
        templates: prompts with ``{}`` for the class, whose embeddings are averaged; the shipped ones if not given.
        output_dim: De. context_length, vocab_size, text_width, text_depth: the text tower; its heads have 64 channels.

    Raises UsageError for classes without names, ValueError for sizes that cannot be.
    """

    name: ClassVar[str] = "text"
    line: ClassVar[str] = "class names scored by the text tower that the trunk was trained with"
    takes_class_names: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("proj", "text.")
    trained: ClassVar[bool] = False

    head: Literal["text"] = "text"
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()
    output_dim: int = 512
    context_length: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_depth: int = 12

    def __post_init__(self) -> None:
        if self.text_width % 64:
            raise ValueError(f"text_width {self.text_width} is no multiple of 64")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "templates", tuple(self.templates) or read_templates())
        if self.class_names:
            check_class_names(self.class_names)
            object.__setattr__(self, "num_classes", len(self.class_names))

    def make(self, model: Headed) -> None:
        model.proj = nn.Parameter(torch.empty(model.feature_dim, self.output_dim))
        model.text = TextTower(
            self.context_length,
            self.vocab_size,
            self.text_width,
            self.text_depth,
            self.text_width // 64,
            self.output_dim,
            activation=model.activation,
        )
        model.register_buffer("class_embeddings", torch.zeros(model.num_classes, self.output_dim), persistent=False)
        model.stale = True
        model.register_load_state_dict_post_hook(lambda module, _: module.weights_loaded())

    def reset(self, model: Headed) -> None:
        nn.init.normal_(model.proj, std=model.feature_dim**-0.5)

    def weights_loaded(self, model: Headed) -> None:
        """What follows from the text tower is computed again."""
        model.stale = True

    def set_activation(self, model: Headed) -> None:
        model.text.activation = model.activation

    def set_classes(self, model: Headed, names: Sequence[str]) -> None:
        """Score these classes from now on. Raises UsageError where they have no names, or one too long."""
        check_class_names(names)
        model.class_names = tuple(names)
        model.num_classes = len(names)
        _embed(model, self.templates)

    def of_trunk(self, file: WeightsFile) -> WeightsFile:
        return file._replace(tensors={n: t for n, t in file.tensors.items() if not n.startswith("text.")})

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        """A whole CLIP, both towers; or a model with this head that was written as one file.

        Raises WeightsError for an image tower alone.
        """
        tensors = strip_prefixes(file.tensors, source)
        text = text_tensors(tensors, source)
        proj = tensors.get("visual.proj", tensors.get("proj"))
        if proj is None:
            raise WeightsError(f"{source} has no projection of its image tower (visual.proj): take a whole CLIP file")
        theirs = infer_text_architecture(text, source) | {"output_dim": proj.shape[1]}
        ours = {key: getattr(model.text, key) for key in theirs}
        if odd := [f"{key} {size}, not {ours[key]}" for key, size in theirs.items() if size != ours[key]]:
            raise WeightsError(f"{source} has a text tower of another architecture than the model: {'; '.join(odd)}")
        own = {"proj": proj} | {f"text.{name}": tensor for name, tensor in text.items()}
        return replace(fit, tensors=fit.tensors | own)

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        if model.stale and not model.proj.is_meta:
            _embed(model, self.templates)
        # in fp32 at least: a cosine times 100 has no room for the rounding of lower precisions
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            video = F.normalize(features.mean(1).to(dtype) @ model.proj.to(dtype), dim=-1)
            return model.text.logit_scale.exp().to(dtype) * video @ model.class_embeddings.to(dtype).T


@torch.compiler.disable
def _embed(model: Headed, templates: Sequence[str]) -> None:
    if model.class_names:
        with torch.inference_mode(False):  # training goes on with what a validation made
            model.class_embeddings = embed_classes(model.text, model.class_names, templates)
    model.stale = False
