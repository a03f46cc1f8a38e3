"""What models that are trained whole share: their arguments, what trains, and weights in their own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aim_fast.errors import WeightsError, abridged
from aim_fast.models.adapting import Adapting
from aim_fast.models.argument_checks import check_normalisation, check_sizes
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.record import Clips, Record, argument, like
from aim_fast.models.trunk import Trunk
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions
from aim_kernels.choices import BlockBackend, Memory

HEAD = "fc_cls."
_COUNT = ".num_batches_tracked"  # of batch norms, which old files lack


@dataclass(frozen=True)
class Whole(Record):
    """Arguments of every model that is trained whole.

    Args:
        img_size, num_frames, num_classes: of the clips.
        drop_path: droppath rate of the last block, a clip at a time; rates grow linearly from 0 at the first.
        mean, std: of the R, G and B channel, on the scale of 0 to 255.
        backend, memory: of the blocks of attention, see :class:`aim_fast.models.record.Clips`.
    """

    img_size: int = like(Trunk, "img_size")
    num_frames: int = argument(16, alike=True)
    num_classes: int = argument(400, alike=True)
    drop_path: float = like(Adapting, "drop_path", default=0.0)
    mean: Sequence[float] = like(Trunk, "mean", default=IMAGENET_MEAN)
    std: Sequence[float] = like(Trunk, "std", default=IMAGENET_STD)
    backend: BlockBackend = like(Clips, "backend")
    memory: Memory = like(Clips, "memory")

    def __post_init__(self) -> None:
        check_sizes(img_size=self.img_size, num_frames=self.num_frames, num_classes=self.num_classes)
        mean, std = check_normalisation(self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def rates(self, depth: int) -> list[float]:
        """Of droppath, for ``depth`` blocks in a row."""
        return [self.drop_path * number / max(depth - 1, 1) for number in range(depth)]


class WholeModel(VideoModel):
    """Everything trains; the classifier alone, ``fc_cls``, is of one data set."""

    record: ClassVar[type[Whole]] = Whole
    fc_cls: nn.Linear

    def freeze(self) -> None:
        """Nothing is frozen."""
        self.requires_grad_(True)

    def is_adaptation(self, name: str) -> bool:
        return name.startswith(HEAD)

    def zero_classifier(self) -> None:
        """A classifier that starts at zero, as in the models of JAX."""
        nn.init.zeros_(self.fc_cls.weight)
        nn.init.zeros_(self.fc_cls.bias)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc_cls(features)

    def published_name(self, name: str) -> str:
        return name

    def no_weight_decay(self) -> set[str]:
        """Biases, norms and whatever else is one number a channel."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def from_image(self, tensors: Mapping[str, Tensor], source: str) -> Start | None:
        """What an image model's tensors are in this model; None for those of a video model."""
        return None

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors of the model's own kind brought to its sizes, where they can be, with lines that say so."""
        return tensors, []

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        """The model's own tensors, or those of the image model that it starts from.

        A classifier of other classes is left out.
        """
        start = self.from_image(file.tensors, source)
        tensors, lines = self.resized(file.tensors if start is None else start.tensors)
        own, left = self.state_dict(), set() if start is None else set(start.left)
        left |= {name for name in own if name.startswith(HEAD) and not _fits(name, tensors, own)}
        counts = {name for name in own if name.endswith(_COUNT) and name not in tensors}  # which nothing is read of
        tensors = {name: tensor for name, tensor in tensors.items() if name in own.keys() - left or name not in own}
        if odd := [
            name for name in sorted((own.keys() - left - counts) | tensors.keys()) if not _fits(name, tensors, own)
        ]:
            raise WeightsError(
                f"{source} is of another model than this {type(self).__name__}: {abridged(odd, 3)} missing, unexpected "
                "or of another shape"
            )
        if start is not None:
            lines = [*start.lines, *lines]
        elif left:
            lines.append(f"{source} has another classifier: that of the model's {self.num_classes} classes starts anew")
        return Fit(tensors, left | counts, "timm" if left else "aim", lines)


class Start(NamedTuple):
    """Tensors of an image model in a video model's names; ``left``: names that it has nothing for."""

    tensors: dict[str, Tensor]
    left: set[str]
    lines: list[str]


def _fits(name: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in tensors and name in own and tensors[name].shape == own[name].shape


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are below ``prefix``."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def resized_positions(
    model: WholeModel, tensors: dict[str, Tensor], over_space: Sequence[str], over_time: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Positions ``[1, 1 + N, D]`` of another grid or number of steps interpolated, class token first, with lines."""
    own, found, lines = model.state_dict(), dict(tensors), []
    for name in (*over_space, *over_time):
        tensor, tokens = tensors.get(name), own[name].shape[1]
        if tensor is None or tensor.shape[1] == tokens or tensor.shape[2:] != own[name].shape[2:]:
            continue
        if name in over_space:
            found[name] = interpolate_positions(tensor[0], tokens)[None]
        else:
            found[name] = torch.cat([tensor[:, :1].float(), interpolate_frames(tensor[:, 1:], tokens - 1)], 1)
        lines.append(f"{name} interpolated from {tensor.shape[1] - 1} to {tokens - 1} positions")
    return found, lines
