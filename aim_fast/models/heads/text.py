"""The head that a trunk was trained with against texts, CLIP's: video features scored against class names.

Shapes: B clips, T frames, D the image tower's width, De the width that both towers share, C classes.

    video   feature of each frame [B, T, D] -> mean over T -> proj [D, De], a bias -> norm         v [B, De]
    text    embeddings of the class names by the frozen text tower (class_embeddings)              e [C, De]
    logits  exp(logit_scale) · v·e + logit_bias                                                     [B, C]

A bias of the projection, and ``logit_bias``, are where the model has them (SigLIP was trained on the sigmoid of these
logits); where its pooling ends in the joint space there is no projection. All of this is the image model's and frozen,
so the head has nothing of its own: other class names make a classifier for other classes. Sources: Radford et al., ICML
2021; Zhai et al., SigLIP, ICCV 2023; Yang et al., AIM, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from aim_fast.errors import WeightsError
from aim_fast.models.head import Head
from aim_fast.models.heads.class_texts import check_class_names, read_templates
from aim_fast.models.record import argument

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed
    from aim_fast.models.weights.files import WeightsFile
    from aim_fast.models.weights.fit import Fit

_OWN = ("proj", "projection_bias")  # the projection's names, where it has both


@dataclass(frozen=True)
class Text(Head):
    """The head over named classes.

    Args:
        class_names: of the classes; ``set_classes`` gives others. Without names, ``num_classes`` is for counting.
        templates: prompts with ``{}`` for the class, whose embeddings are averaged; the shipped ones if not given.
        output_dim: De. context_length, vocab_size, text_width, text_depth: the text tower.
        text_model: open_clip's name of the model whose text tower it is, with its tokenizer, temperature and
            projection; without a name CLIP's own, whose heads have 64 channels.

    Raises UsageError for classes without names, ValueError for sizes that cannot be.
    """

    name: ClassVar[str] = "text"
    line: ClassVar[str] = "class names scored by the text tower that the trunk was trained with"
    takes_class_names: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("proj", "text.")
    trained: ClassVar[bool] = False

    heading: ClassVar[str] = "Text head"

    class_names: Sequence[str] = ()
    templates: Sequence[str] = argument(
        (),
        "text head: file of prompts, one a line, {} for the class; ours if not given",
        unset=True,
        written=str,
    )
    output_dim: int = 512
    context_length: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_depth: int = 12
    text_model: str = ""

    def __post_init__(self) -> None:
        if self.text_width % 64 and not self.text_model:
            raise ValueError(f"text_width {self.text_width} is no multiple of 64")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "templates", tuple(self.templates) or read_templates())
        if self.class_names:
            check_class_names(self.class_names)
            object.__setattr__(self, "num_classes", len(self.class_names))

    def make(self, model: Headed) -> None:
        import torch
        from torch import nn

        from aim_fast.models.heads.open_clip_text import OpenClipText
        from aim_fast.models.heads.text_tower import TextTower

        sizes = (self.context_length, self.vocab_size, self.text_width, self.text_depth)
        if self.text_model:
            model.text = OpenClipText(self.text_model, *sizes, self.output_dim)
        else:
            model.text = TextTower(*sizes, self.text_width // 64, self.output_dim, activation=model.activation)
        parts = self._projection()
        if not parts and model.feature_dim != self.output_dim:
            raise ValueError(f"the joint space is the trunk's own, of width {model.feature_dim}, not {self.output_dim}")
        shapes = ((model.feature_dim, self.output_dim), (self.output_dim,))
        model.proj, model.projection_bias = (
            nn.Parameter(torch.empty(shape)) if number < len(parts) else None for number, shape in enumerate(shapes)
        )
        model.register_buffer("class_embeddings", torch.zeros(model.num_classes, self.output_dim), persistent=False)
        model.stale = True
        model.register_load_state_dict_post_hook(lambda module, _: module.weights_loaded())

    def _projection(self) -> tuple[str, ...]:
        """Names in a file of what stands in ``_OWN``."""
        from aim_fast.models.heads.open_clip_text import projection

        return projection(self.text_model) if self.text_model else ("visual.proj",)

    def reset(self, model: Headed) -> None:
        from torch import nn

        if model.proj is not None:
            nn.init.normal_(model.proj, std=model.feature_dim**-0.5)
        if model.projection_bias is not None:
            nn.init.zeros_(model.projection_bias)

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
        self._embed(model)

    def of_trunk(self, file: WeightsFile) -> WeightsFile:
        return file._replace(
            tensors={n: t for n, t in file.tensors.items() if not n.startswith("text.") and n not in _OWN}
        )

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        """A whole CLIP, both towers; or a model with this head that was written as one file.

        Raises WeightsError for an image tower alone.
        """
        from aim_fast.models.heads.open_clip_text import tokenizer_of
        from aim_fast.models.weights.state_dict import strip_prefixes

        tensors = strip_prefixes(file.tensors, source)
        text = model.text.fit(tensors, source)
        own = {f"text.{name}": tensor for name, tensor in text.items()}
        for ours, theirs in zip(_OWN, self._projection()):
            tensor = tensors.get(theirs, tensors.get(ours))
            if tensor is None:
                raise WeightsError(f"{source} has no projection of its image tower ({theirs}): take a whole CLIP file")
            own[ours] = tensor.T if theirs in tensors and theirs.endswith(".weight") else tensor
        return replace(fit, tensors=fit.tensors | own, tokenizer=tokenizer_of(source))

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        import torch
        import torch.nn.functional as F

        if model.stale and not model.text.logit_scale.is_meta:
            self._embed(model)
        # in fp32 at least: a cosine times 100 has no room for the rounding of lower precisions
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            video = features.mean(1).to(dtype)
            if model.proj is not None:
                video = video @ model.proj.to(dtype)
            if model.projection_bias is not None:
                video = video + model.projection_bias.to(dtype)
            scale, bias = model.text.logit_scale, model.text.logit_bias
            logits = scale.exp().to(dtype) * F.normalize(video, dim=-1) @ model.class_embeddings.to(dtype).T
            return logits if bias is None else logits + bias.to(dtype)

    def _embed(self, model: Headed) -> None:
        from aim_fast.models.heads.class_embeddings import give_embeddings

        give_embeddings(model, self.templates)
