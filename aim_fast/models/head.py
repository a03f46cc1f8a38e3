"""What is asked of a head: what it makes of a model, and logits out of features.

A head is a record of its arguments with the behaviour beside them; its modules and parameters are the model's own, so
that they are named as published (``fc_cls.weight``). Its file imports no torch, but where a model is made, for its
record is what ``--help`` is made of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.errors import UsageError
from aim_fast.models.record import Record, argument

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed
    from aim_fast.models.weights.files import WeightsFile
    from aim_fast.models.weights.fit import Fit


@dataclass(frozen=True)
class Head(Record, ABC):
    """Features of clips to logits ``[B, num_classes]``."""

    name: ClassVar[str] = ""
    line: ClassVar[str] = ""  # what it is, for a list
    reads_tokens: ClassVar[bool] = False  # all tokens of the last block, [B, T, N, D], not one feature a frame
    normed: ClassVar[bool] = True  # whether the tokens it reads went through the trunk's last norm
    takes_class_names: ClassVar[bool] = False
    pairs_clips: ClassVar[bool] = False  # whether its loss compares the clips of a batch with each other
    own: ClassVar[tuple[str, ...]] = ("fc_cls.",)  # what the names of its tensors begin with
    trained: ClassVar[bool] = True  # whether they train; what is not trained belongs to the image model
    alike: ClassVar[bool] = True

    num_classes: int = 400

    def adds(self, name: str) -> bool:
        """Whether a tensor of :attr:`own` is what adaptation added; else it is the image model's."""
        return self.trained

    def trains(self, name: str) -> bool:
        """Whether a parameter of :attr:`own` trains."""
        return self.adds(name)

    @abstractmethod
    def make(self, model: Headed) -> None:
        """Gives the model the head's modules and parameters."""

    def reset(self, model: Headed) -> None:
        """Initialises them."""

    @abstractmethod
    def logits(self, model: Headed, features: Tensor) -> Tensor:
        """Features ``[B, T, D]``, or ``[B, T, N, D]``, to logits ``[B, num_classes]``."""

    def step_inputs(self, model: Headed, labels: Tensor, draws: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`logits` takes beside features in a training step, see ``VideoModel.step_inputs``."""
        return ()

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss of each clip ``[B]``, weighted, of a head that ``pairs_clips``."""
        raise NotImplementedError

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        """What a file gives the model beside its trunk and what was put on it, which ``fit`` has."""
        return fit

    @classmethod
    def told(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
        """The arguments of which a checkpoint's tensors, bare or as its authors name them, tell. Raises WeightsError
        where what it reads is not there."""
        return {}

    def of_trunk(self, file: WeightsFile) -> WeightsFile:
        """The file without what belongs to the head and would be taken for the trunk's."""
        return file

    def weights_loaded(self, model: Headed) -> None:
        """Called when tensors were loaded."""

    def set_activation(self, model: Headed) -> None:
        """Called when the activation of the trunk's MLPs was set."""

    def set_classes(self, model: Headed, names: Sequence[str]) -> None:
        """Score these classes from now on. Raises UsageError where the head reads no names."""
        raise UsageError(
            f"{type(model).__name__} has a classifier of {model.num_classes} classes and reads no names: leave class "
            "names out, or train a model that reads them (PromptCLIP, --head text)"
        )


@dataclass(frozen=True)
class Classifier(Head):
    """A head that ends in dropout and a classifier of ``num_classes``, ``model.classify``."""

    head_dropout: float = argument(0.5, "dropout before the classifier", shared=True, structure=False, ge=0, lt=1)

    def make(self, model: Headed) -> None:
        model.make_classifier(model.feature_dim, self.num_classes, self.head_dropout)

    def reset(self, model: Headed) -> None:
        model.reset_classifier()
