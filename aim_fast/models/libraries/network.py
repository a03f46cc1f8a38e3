"""What is asked of a video network of another library: its arguments, how its library builds it, and its tables.

A network is a record with the behaviour beside it, as methods and heads are; its library is imported where it is built.
What runs is the library's own code: only clips are laid out as it takes them, and tables of positions resized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.argument_checks import check_normalisation, check_sizes
from aim_fast.models.head import Classifier, Head
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.record import Record, like
from aim_fast.models.trunk import Trunk

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Network(Record):
    """Clips of ``num_frames`` frames of ``img_size`` pixels, normalised with ``mean`` and ``std`` (of 0 to 255)."""

    library: ClassVar[str] = ""  # that builds it
    channels_first: ClassVar[bool] = True  # whether it takes [B, 3, T, H, W], rather than [B, T, 3, H, W]
    multiple: ClassVar[int] = 2  # of which the number of frames is one
    classifier: ClassVar[str] = ""  # the name of its classifier in the network
    under_head: ClassVar[bool] = False  # whether it is frozen, and a head reads its tokens
    unread: ClassVar[str] = ""  # why no weights are read into it
    beside: ClassVar[tuple[str, ...]] = ()  # what the names of tensors begin with that files have beside the network
    lacked: ClassVar[tuple[str, ...]] = ()  # and of those that files of pre-training lack

    num_frames: int = 16
    img_size: int = like(Trunk, "img_size")
    mean: Sequence[float] = like(Trunk, "mean", default=IMAGENET_MEAN)
    std: Sequence[float] = like(Trunk, "std", default=IMAGENET_STD)

    def __post_init__(self) -> None:
        check_sizes(num_frames=self.num_frames, img_size=self.img_size)
        if self.num_frames % self.multiple:
            raise ValueError(f"num_frames {self.num_frames} is not a multiple of {self.multiple}")
        for name, value in zip(("mean", "std"), check_normalisation(self.mean, self.std)):
            object.__setattr__(self, name, value)

    @classmethod
    def takes_frames(cls, frames: int) -> bool:
        """Whether it can be made for clips of so many frames."""
        return frames % cls.multiple == 0

    def build(self) -> nn.Module:
        """The network as its library initialises it."""
        raise NotImplementedError

    def run(self, network: Any, clips: Tensor) -> Tensor:
        """Clips, laid out as it takes them, to logits, or to tokens [B, T', N, D] where a head reads them."""
        return network(clips)

    def resized(self, name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        """A table of positions of a file, brought to ``shape``; None for any other tensor."""
        return None

    def check_configuration(self, told: Mapping[str, Any], source: str) -> None:
        """Raises WeightsError where the configuration beside a file is of another network than this."""

    def undecayed(self, name: str, dimensions: int) -> bool:
        """Whether a parameter takes no weight decay in the published recipe: here those of one dimension."""
        return dimensions <= 1


@dataclass(frozen=True)
class Classifying(Network):
    """A network that ends in a classifier of ``num_classes``, with ``head_dropout`` before it; all of it trains."""

    num_classes: int = like(Head, "num_classes")
    head_dropout: float = like(Classifier, "head_dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(num_classes=self.num_classes)
