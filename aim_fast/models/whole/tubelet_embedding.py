"""The stem of ViViT, MTV and TokenLearner: tubelets of t frames × p × p pixels, and the arguments that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.record import argument, like
from aim_fast.models.trunk import Trunk
from aim_fast.models.tubelets import embed_tubelets
from aim_fast.models.whole.whole_model import Whole

# Pixels from -1 to 1.
CENTRED: tuple[float, ...] = (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class Tubelets(Whole):
    """Arguments of models that read tubelets of ``tubelet`` frames × ``patch_size`` × ``patch_size`` pixels."""

    num_frames: int = argument(32, alike=True)
    mean: Sequence[float] = like(Trunk, "mean", default=CENTRED)
    std: Sequence[float] = like(Trunk, "std", default=CENTRED)
    patch_size: int = like(Trunk, "patch_size")

    def check_tubelets(self, frames: int) -> None:
        """Raises ValueError where the clip is no whole number of tubelets of ``frames`` frames."""
        check_sizes(patch_size=self.patch_size, tubelet=frames)
        if self.num_frames % frames:
            raise ValueError(f"num_frames {self.num_frames} is no multiple of the {frames} frames of a tubelet")


class TubeletEmbedding(nn.Conv3d):
    """Clips to tokens ``[B, T / t, P, D]``. At the start it reads the central frame of each tubelet alone."""

    def __init__(self, frames: int, patch_size: int, dim: int) -> None:
        kernel = (frames, patch_size, patch_size)
        super().__init__(3, dim, kernel, kernel)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Truncated normal with the std of 1 / √(inputs) at the central frame, zero elsewhere."""
        weight, frames = self.weight, self.kernel_size[0]
        if weight.is_meta:
            return
        nn.init.trunc_normal_(weight, std=weight[0].numel() ** -0.5)
        weight.copy_(central_kernel(weight[:, :, frames // 2], frames))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # never without

    def forward(self, x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:  # type: ignore[override]
        return embed_tubelets(x, self.weight, self.bias, mean, std)  # type: ignore[arg-type]


def central_kernel(kernel: Tensor, frames: int) -> Tensor:
    """A kernel of pictures ``[D, 3, p, p]`` as one of tubelets that reads the central frame."""
    found = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    found[:, :, frames // 2] = kernel
    return found
