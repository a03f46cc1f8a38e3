"""A head over named classes: the texts that the trunk's own text tower makes of their names, and a scale.

Shapes: B clips, D the image tower's width, De the width that both towers share, C classes.

    text    the tower's feature of each class name, once for all clips (class_embeddings)          e [C, De]
    score   exp(logit_scale) · cos(v, e) + logit_bias, of video features v [B, De]                  [B, C]

The tower is frozen, and the head has no number of a class in its tensors: other names make a classifier for other
classes. :class:`JointSpace` has beside it what brings the trunk's features to the joint space, the image model's own.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.errors import WeightsError
from aim_fast.models.head import Head
from aim_fast.models.heads.class_texts import check_class_names
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.record import like

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed
    from aim_fast.models.weights.files import WeightsFile
    from aim_fast.models.weights.fit import Fit


def unit(features: Tensor) -> Tensor:
    """Features at length 1, in fp32 at least: a cosine times 100 has no room for the rounding of lower precisions."""
    import torch
    import torch.nn.functional as F

    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def count_in_row(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many of ``name``, with a number from 0 in its braces, there are among the names of tensors."""
    return next(number for number in itertools.count() if name.format(number) not in tensors)


_PROJECTION = ("proj", "projection_bias")  # the projection's names, where it has both


@dataclass(frozen=True)
class NamedClasses(Head):
    """A text tower, and a text feature of every class.

    Args:
        class_names: of the classes; ``set_classes`` gives others. Without names, ``num_classes`` is for counting.
        output_dim: De. context_length, vocab_size, text_width, text_depth: the text tower.
        text_model: open_clip's name of the model whose text tower it is, with its tokenizer, temperature and
            projection; without a name CLIP's own, whose heads have 64 channels.

    Raises UsageError for classes without names, ValueError for sizes that cannot be.
    """

    takes_class_names: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("text.",)
    trained: ClassVar[bool] = False

    class_names: Sequence[str] = ()
    output_dim: int = like(Prompting, "output_dim")
    context_length: int = like(Prompting, "context_length")
    vocab_size: int = like(Prompting, "vocab_size")
    text_width: int = like(Prompting, "text_width")
    text_depth: int = like(Prompting, "text_depth")
    text_model: str = ""

    def __post_init__(self) -> None:
        if self.text_width % 64 and not self.text_model:
            raise ValueError(f"text_width {self.text_width} is no multiple of 64")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.class_names:
            check_class_names(self.class_names)
            object.__setattr__(self, "num_classes", len(self.class_names))

    def make(self, model: Headed) -> None:
        import torch

        from aim_fast.models.heads.open_clip_text import OpenClipText
        from aim_fast.models.heads.text_tower import TextTower

        sizes = (self.context_length, self.vocab_size, self.text_width, self.text_depth)
        if self.text_model:
            model.text = OpenClipText(self.text_model, *sizes, self.output_dim)
        else:
            model.text = TextTower(*sizes, self.text_width // 64, self.output_dim, activation=model.activation)
        model.register_buffer("class_embeddings", torch.zeros(model.num_classes, self.output_dim), persistent=False)
        model.stale = True
        model.register_load_state_dict_post_hook(lambda module, _: module.weights_loaded())

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
        return file._replace(tensors={n: t for n, t in file.tensors.items() if not n.startswith("text.")})

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        """A whole CLIP, both towers; or a model with this head that was written as one file.

        Raises WeightsError for an image tower alone.
        """
        from aim_fast.models.heads.open_clip_text import tokenizer_of
        from aim_fast.models.weights.state_dict import strip_prefixes

        text = model.text.fit(strip_prefixes(file.tensors, source), source)
        own = {f"text.{name}": tensor for name, tensor in text.items()}
        return replace(fit, tensors=fit.tensors | own, tokenizer=tokenizer_of(source))

    @classmethod
    def told(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
        from aim_fast.models.heads.text_tower import infer_text_architecture

        sizes = infer_text_architecture(tensors, where)
        ours = {"context_length": "context_length", "vocab_size": "vocab_size", "output_dim": "output_dim"}
        ours |= {"text_width": "width", "text_depth": "depth"}
        return {name: sizes[theirs] for name, theirs in ours.items()}

    def texts(self, model: Headed) -> Tensor:
        """The text features of the model's classes ``[C, De]`` fp32, not normalised; made again where need be."""
        if model.stale and not model.text.logit_scale.is_meta:
            self._embed(model)
        return model.class_embeddings

    def score(self, model: Headed, video: Tensor, texts: Tensor) -> Tensor:
        """Logits ``[B, C]``, fp32 at least, of video features ``[B, De]`` against texts of length 1, ``[C, De]`` or for
        each clip ``[B, C, De]``."""
        import torch

        with torch.autocast("cpu" if video.is_meta else video.device.type, enabled=False):
            video = unit(video)
            scale, bias, texts = model.text.logit_scale, model.text.logit_bias, texts.to(video.dtype)
            video = scale.exp().to(video.dtype) * video
            logits = video @ texts.T if texts.ndim == 2 else (texts @ video[..., None])[..., 0]
            return logits if bias is None else logits + bias.to(video.dtype)

    def embed(self, model: Headed) -> Tensor:
        """Text features of ``model.class_names``: here of the bare names."""
        from aim_fast.models.heads.class_embeddings import read_texts
        from aim_fast.models.heads.tokens import spoken

        return read_texts(model.text, [spoken(name) for name in model.class_names])

    def _embed(self, model: Headed) -> None:
        from aim_fast.models.heads.class_embeddings import give_embeddings

        give_embeddings(model, self.embed)


@dataclass(frozen=True)
class JointSpace(NamedClasses):
    """And the image model's projection to the joint space, with a bias where it has one (SigLIP); where its pooling
    ends in that space there is none."""

    own: ClassVar[tuple[str, ...]] = ("proj", "text.")

    def make(self, model: Headed) -> None:
        import torch
        from torch import nn

        super().make(model)
        parts = self._projection(model)
        if not parts and model.feature_dim != self.output_dim:
            raise ValueError(f"the joint space is the trunk's own, of width {model.feature_dim}, not {self.output_dim}")
        shapes = ((model.feature_dim, self.output_dim), (self.output_dim,))
        model.proj, model.projection_bias = (
            nn.Parameter(torch.empty(shape)) if number < len(parts) else None for number, shape in enumerate(shapes)
        )

    def _projection(self, model: Headed) -> tuple[str, ...]:
        """Names in a file of what stands in ``_PROJECTION``; none where a method ends in the joint space."""
        from aim_fast.models.heads.open_clip_text import projection

        if model.joint:
            return ()
        return projection(self.text_model) if self.text_model else ("visual.proj",)

    def reset(self, model: Headed) -> None:
        from torch import nn

        if model.proj is not None:
            nn.init.normal_(model.proj, std=model.feature_dim**-0.5)
        if model.projection_bias is not None:
            nn.init.zeros_(model.projection_bias)

    def of_trunk(self, file: WeightsFile) -> WeightsFile:
        file = super().of_trunk(file)
        return file._replace(tensors={n: t for n, t in file.tensors.items() if n not in _PROJECTION})

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        from aim_fast.models.weights.state_dict import strip_prefixes

        fit, tensors = super().fit(model, fit, file, source), strip_prefixes(file.tensors, source)
        own = {}
        for ours, theirs in zip(_PROJECTION, self._projection(model)):
            tensor = tensors.get(theirs, tensors.get(ours))
            if tensor is None:
                raise WeightsError(f"{source} has no projection of its image tower ({theirs}): take a whole CLIP file")
            own[ours] = tensor.T if theirs in tensors and theirs.endswith(".weight") else tensor
        return replace(fit, tensors=fit.tensors | own)

    @abstractmethod
    def video(self, model: Headed, features: Tensor) -> Tensor:
        """What the trunk made of clips to video features ``[B, De]``, not normalised."""

    def project(self, model: Headed, features: Tensor) -> Tensor:
        """The trunk's features ``[..., D]`` in the joint space, ``[..., De]``, in their dtype."""
        if model.proj is not None:
            features = features @ model.proj.to(features.dtype)
        return features if model.projection_bias is None else features + model.projection_bias.to(features.dtype)
