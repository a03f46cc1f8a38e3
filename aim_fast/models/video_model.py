"""What the engine asks of a model: clips in, class logits out, a trunk with image weights, and a set of what trains.

A model derives from :class:`VideoModel` and gives ``forward_features``, ``forward_head``, ``freeze`` and
``fit_weights``. Training, evaluation, checkpoints and the command line know no more of a model than is written here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.record import Record
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.choices import Activation


class VideoModel(nn.Module, ABC):
    """A model of clips.

    Input: uint8 ``[B, T, H, W, 3]`` RGB (normalised inside), or floating ``[B, 3, T, H, W]`` already normalised with
    ``mean`` and ``std`` (of the R, G and B channel, on the scale of 0 to 255); T = num_frames, H = W = img_size.
    Output: logits ``[B, num_classes]``. What trains is what requires a gradient, set at construction by ``freeze``.
    """

    img_size: int
    num_frames: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: Activation  # of the MLPs
    class_names: tuple[str, ...]  # of a model that takes them, empty before they are given
    tokenizer: str = ""  # where that is which came with the weights of a text tower: a folder, or "hub"

    # Whether the logits come from class names, given as ``class_names`` or by ``set_classes``: any classes then.
    takes_class_names: ClassVar[bool] = False
    # Which of the model's values ``frozen_features`` gives: features stored of another part do not fit.
    frozen_part: str = "frame features"
    # Tensors beside layer norms that take no weight decay.
    undecayed: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *records: Record) -> None:
        """The fields of ``records`` become attributes of the model, where it has no property of the name."""
        super().__init__()
        self.records = records
        for name, value in ((name, getattr(record, name)) for record in records for name in record.names()):
            if not isinstance(getattr(type(self), name, None), property):
                setattr(self, name, value)

    @property
    def config(self) -> dict[str, Any]:
        """What of ``create_model``'s arguments makes this model again (plain numbers, strings and lists)."""
        values = {name: getattr(self, name) for record in self.records for name in record.names(running=False)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def fresh(self) -> Self:
        """The same model newly initialised."""
        return type(self)(*(type(record).of(self.config) for record in self.records))

    @abstractmethod
    def freeze(self) -> None:
        """Set ``requires_grad`` as published: called at construction, undone by ``requires_grad_``."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise everything, trunk, adapters and head."""

    @abstractmethod
    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        """What a weights file, read from ``source``, gives this model; changes nothing.

        Raises WeightsError for a file of another architecture, saying which.
        """

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to features; their shape is the model's own."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Features to logits ``[B, num_classes]``."""

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        """Constructor arguments of which a trained model's tensors (bare published names) tell; None for another model.

        Numbers of heads are guessed from widths, as usual for the trunk.
        """
        return None

    def published_name(self, name: str) -> str:
        """A tensor's name in a published checkpoint: below ``cls_head.`` the classifier, ``backbone.`` the rest."""
        return f"{'cls_head' if name.startswith('fc_cls.') else 'backbone'}.{name}"

    def is_adaptation(self, name: str) -> bool:
        """Whether a tensor is what adaptation added to the image trunk: adapters, temporal parts, head."""
        return "_Adapter" in name or name == "temporal_embedding" or name.startswith("fc_cls.")

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The (published name, parameter) pairs that require a gradient."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def no_weight_decay(self) -> set[str]:
        """Names that take no weight decay in the published recipes: all norms and the class's ``undecayed``.

        Adapter biases and ``temporal_embedding`` ARE decayed.
        """
        norms = {name for name, module in self.named_modules() if _is_norm(module)}
        affine = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
        return affine | self.undecayed

    def forward(self, x: Tensor) -> Tensor:
        """Clips to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def trunk_loaded(self) -> list[str]:
        """Called when an image trunk's weights alone were loaded: what starts as a copy of them. Lines for a reader."""
        return []

    def weights_loaded(self) -> None:
        """Called when tensors were loaded: what the model keeps that follows from them is out of date."""

    def set_classes(self, names: Sequence[str]) -> None:
        """Score these classes from now on, where the model ``takes_class_names``."""
        raise UsageError(
            f"{type(self).__name__} has a classifier of {self.num_classes} classes and reads no names: leave class "
            "names out, or train a model that reads them (PromptCLIP, --head text)"
        )

    def candidates(self, labels: Tensor, seed: int) -> Tensor | None:
        """The classes that a training step scores, ids ascending ``[K]``; None, as here, for all.

        ``forward`` takes them as its second argument and then gives logits ``[B, K]``.
        """
        return None

    def frozen_features(self, x: Tensor) -> Tensor:
        """What nothing trained comes before, ``[B, ...]``: can be stored, and given to ``forward`` in place of clips.

        Raises UsageError where the model trains from its first layer on.
        """
        raise UsageError(f"{type(self).__name__} has no frozen features to store: it trains from its first layer on")

    def normalize(self, frames: Tensor) -> Tensor:
        """uint8 clips ``[B, T, H, W, 3]`` to normalised fp32 ``[B, 3, T, H, W]``."""
        # filled on the device, which a copy from the host would wait for
        fill = [[frames.new_full((), v, dtype=torch.float32) for v in values] for values in (self.mean, self.std)]
        mean, std = (torch.stack(values) for values in fill)
        return ((frames.float() - mean) / std).permute(0, 4, 1, 2, 3)

    def check_clips(self, x: Tensor) -> int:
        """The batch size; raises ValueError for a clip batch of another layout or size."""
        t, side = self.num_frames, self.img_size
        if x.dtype == torch.uint8:
            layout, right = f"uint8 [B, {t}, {side}, {side}, 3]", x.shape[1:] == (t, side, side, 3)
        else:
            layout, right = f"floating [B, 3, {t}, {side}, {side}]", x.shape[1:] == (3, t, side, side)
            right = right and x.is_floating_point()
        if not right:
            raise ValueError(f"expected a clip batch {layout}, got {x.dtype} {list(x.shape)}")
        return x.shape[0]


def _is_norm(module: nn.Module) -> bool:
    """Of any library: what has one factor a channel and nothing else has."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1
