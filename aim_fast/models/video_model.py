"""What the engine asks of a model: clips in, class logits out, a trunk with image weights, and a set of what trains.

A model derives from :class:`VideoModel` and gives ``forward_features``, ``forward_head``, ``freeze`` and
``fit_weights``. Training, evaluation, checkpoints and the command line know no more of a model than is written here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aim_fast.errors import UsageError
from aim_fast.models.batch_norm import BatchNorm
from aim_fast.models.record import Record
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.choices import Activation

PARTS = ("trunk", "head", "method")


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
    # Whether ``losses`` compare the clips of a batch with each other: they are those of what is on a device at a time.
    pairs_clips: bool = False
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

    def trained_statistics(self) -> dict[str, Tensor]:
        """The running means and variances of batch norms that train, by name: trained too, though no parameters."""
        norms = [(name, module) for name, module in self.named_modules() if isinstance(module, (_BatchNorm, BatchNorm))]
        trained = [(name, norm) for name, norm in norms if norm.affine and norm.weight.requires_grad]
        found = {f"{name}.{kind}": getattr(n, kind) for name, n in trained for kind in ("running_mean", "running_var")}
        return {name: statistic for name, statistic in found.items() if statistic is not None}

    def trained_tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: what a checkpoint keeps."""
        return {**dict(self.trainable_parameters()), **self.trained_statistics()}

    def part_of(self, name: str) -> str:
        """Which of ``PARTS`` a parameter is of: what was adapted, what reads it, or what adaptation added."""
        if name.startswith("fc_cls."):
            return "head"
        return "method" if self.is_adaptation(name) else "trunk"

    @property
    def decayed_layers(self) -> Iterable[nn.Module]:
        """The trunk's blocks, in the one row that clips go through. Raises UsageError for a trunk that is none."""
        lists = [(name, found) for name, found in self.named_modules() if isinstance(found, nn.ModuleList)]
        rows = {name: row for name, row in lists if len(row) > 1 and len(set(map(type, row))) == 1}
        outer = [row for name, row in rows.items() if not any(name.startswith(f"{other}.") for other in rows)]
        if len(outer) != 1:
            raise UsageError(f"{type(self).__name__} has no one row of blocks: leave layer_decay out, or at 1")
        return outer[0]

    def layer_numbers(self) -> dict[str, int]:
        """How deep each parameter is, by name: 0 in the stem, i + 1 in block i, the blocks' number + 1 after them."""
        blocks = list(self.decayed_layers)
        inside = {id(p): number for number, block in enumerate(blocks, 1) for p in block.parameters()}
        numbers, outside = {}, 0
        for name, parameter in self.named_parameters():
            if number := inside.get(id(parameter)):
                outside = len(blocks) + 1
            numbers[name] = number or (outside if self.part_of(name) == "trunk" else len(blocks) + 1)
        return numbers

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Factors on the learning rate that the method's authors have, by patterns of names."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names that take no weight decay in the published recipes: all norms and the class's ``undecayed``.

        Adapter biases and ``temporal_embedding`` ARE decayed.
        """
        return self.norm_parameters() | self.undecayed

    def norm_parameters(self) -> set[str]:
        """Names of the weights and biases of all norms."""
        norms = {name for name, module in self.named_modules() if _is_norm(module)}
        return {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}

    def embedding_parameters(self) -> set[str]:
        """Names of what is added to tokens or is one: embeddings of positions and time, class tokens, tables."""
        tables = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        leaves = {name for name, _ in self.named_parameters() if re.search(r"embed|token", name.rpartition(".")[2])}
        return tables | leaves | self.undecayed

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

    def step_inputs(self, labels: Tensor, draws: Tensor) -> tuple[Tensor, ...]:
        """What ``forward`` takes after the clips in a training step, where all classes are candidates; here nothing.

        ``draws`` int64 [B], on the CPU, are random numbers from 0 on, a function of seed, epoch and clip alone.
        """
        return ()

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        """The loss of each clip ``[B]`` of a training step: here cross-entropy.

        ``labels`` are classes [B], or shares of them [B, num_classes]; ``weights`` [B] are 0 for clips that only fill a
        batch up, and factors of the losses.
        """
        loss = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
        return loss * weights

    def frozen_features(self, x: Tensor) -> Tensor:
        """What nothing trained comes before, ``[B, ...]``: can be stored, and given to ``forward`` in place of clips.

        Raises UsageError where the model trains from its first layer on.
        """
        raise UsageError(f"{type(self).__name__} has no frozen features to store: it trains from its first layer on")

    def store_layers(self, which: Literal["lower", "all"]) -> None:
        """Of a network beside a trunk, what :meth:`frozen_features` give from now on: the input of the lowest block
        that it reads, or all that it reads. Raises UsageError for a model without one."""
        raise UsageError(
            f"--cache-layers is of networks beside a trunk, and {type(self).__name__} has none: leave it out"
        )

    def normalize(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 clips ``[B, T, H, W, 3]`` to normalised ones ``[B, 3, T, H, W]`` of ``dtype``."""
        # filled on the device, which a copy from the host would wait for
        fill = [[frames.new_full((), v, dtype=dtype) for v in values] for values in (self.mean, self.std)]
        mean, std = (torch.stack(values) for values in fill)
        return ((frames.to(dtype) - mean) / std).permute(0, 4, 1, 2, 3)

    def check_clips(self, x: Tensor, frames: int | None = None) -> int:
        """The batch size; raises ValueError for a clip batch of another layout or size, or number of ``frames``."""
        t, side = frames or self.num_frames, self.img_size
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
