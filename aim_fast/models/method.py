"""What is asked of a method: what it puts on a frozen trunk's blocks, how a block then runs, and what trains.

A method is a record of its arguments with the behaviour beside them. It keeps nothing: what it adds are modules of the
blocks, so that parameters are named as published, ``…blocks.N.S_Adapter.D_fc1.weight``. Its file imports no torch, for
its record is what ``--help`` is made of. Shapes: x [B, T, N, D].

    block_arguments   adapters that the operators' own block makes: before, after and beside its sub-blocks
    extend            modules of the method's own, added to a block
    run               the block's forward; the pieces of a frozen block are ``block.attend`` and ``block.expand``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import aim_kernels
from aim_fast.models.record import Record

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Method(Record):
    """The trunk as it is, frame by frame: what every method starts from."""

    name: ClassVar[str] = ""
    line: ClassVar[str] = ""  # what it is, for a list
    over_time: ClassVar[bool] = False  # whether a temporal embedding is part of it
    mean_first: ClassVar[bool] = False  # whether frames are averaged before the last norm instead of after it
    merges: ClassVar[Mapping[str, Any]] = {}  # the arguments with which the trunk with all merged into it is made
    lr_factors: ClassVar[Mapping[str, float]] = {}  # on the learning rate, by patterns of names, as published
    classifier_std: ClassVar[float | None] = 0.01  # of the classifier's initial weights; None for torch's own
    beside: ClassVar[bool] = False  # whether it is a network beside the trunk, which leaves a head no tokens
    blocks_alike: ClassVar[bool] = True  # whether every block of the trunk adds the same to a model's costs
    frame_step: ClassVar[int] = 1  # of a clip's frames the trunk sees each that many, from the first on
    renamed: ClassVar[Mapping[str, str]] = {}  # how names of its authors' tensors begin, and what for it stands here
    pixels: ClassVar[tuple[Sequence[float], Sequence[float]] | None] = None  # mean, std of its authors' files
    decays_all: ClassVar[bool] = False  # whether everything that trains takes weight decay, norms too

    def fitted(self, depth: int) -> Self:
        """The record as it is for a trunk of ``depth`` blocks. Raises ValueError for what cannot be."""
        return self

    def block_arguments(self, number: int, depth: int) -> dict[str, Any]:
        """Arguments of :class:`aim_kernels.AIMBlock` for block ``number``."""
        return {"adapters": ()}

    def extend(self, block: Any, number: int, depth: int) -> None:
        """Adds modules to a frozen block."""

    def network(self, model: Any) -> Any:
        """The :class:`aim_fast.models.side.SideNetwork` beside the trunk of ``model``; None, as here, for none."""
        return None

    def reset(self, block: Any) -> None:
        """Initialises what :meth:`extend` added, after the block's own parameters."""

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        """``block`` on x, or with ``cls_only`` what it makes of the first token of each frame, [B, T, 1, D]."""
        return aim_kernels.AIMBlock.forward(block, x, cls_only)

    def trains(self, name: str, last_norm: str) -> bool:
        """Whether a parameter of the trunk, or of what the method added, trains; the head says so of its own.

        ``last_norm``: what the names of the norm before the head begin with.
        """
        return False

    def lowest(self, depth: int) -> int:
        """Number of the lowest block in or below which something trains; ``depth`` where only the tail does."""
        return depth

    def moves_time(self, depth: int) -> bool:
        """Whether the temporal embedding is added to the input of block :meth:`lowest` instead of by the stem."""
        return False

    def is_own(self, name: str) -> bool:
        """Whether a tensor of the model is what the method added."""
        return "_Adapter" in name or name == "temporal_embedding"

    def merge(self, block: Any) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of :func:`aim_fast.models.block.products` with what the method added merged into them."""
        raise NotImplementedError

    def undecayed(self, name: str) -> bool:
        """Whether a parameter that trains takes no weight decay, beside norms and what the trunk says."""
        return False

    def published_name(self, name: str) -> str | None:
        """A tensor's name in a checkpoint of the method's authors; None where it is as AIM's."""
        return None

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        """Whether the names of a checkpoint's tensors are those of a model under this method."""
        return False

    @classmethod
    def in_words(cls) -> str:
        """What a checkpoint of the method is, and what to do with it, for one who has a model of another."""
        return f"a checkpoint of method {cls.name}: take --method {cls.name}, or plain weights of the trunk"

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        """The arguments of which a checkpoint's tensors tell, by the number of their block and the name in it.

        Of a network beside the trunk the number is -1 and the name is whole.
        """
        return {}

    def trunk_loaded(self, blocks: Iterable[Any]) -> list[str]:
        """Called with the model's blocks when a trunk's weights alone were loaded: what starts as a copy of them.

        Gives lines for a reader.
        """
        return []
