"""Droppath's factor of a residual branch, in the forms that published code and papers give it."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from aim_kernels.choices import DropPathMode


class DropPath(nn.Module):
    """Draws the droppath factor of a residual branch on ``x`` [B, T, N, D]: None when nothing can be dropped, else a
    tensor of zeros (probability ``rate``) and 1/(1 − rate) that broadcasts to ``x``, drawn

    - ``"position"``: once per token position, shared by all clips and frames, [1, 1, N, 1]: what the published ViT-CLIP
      code does, whose tensor is laid out [N, B·T, D];
    - ``"clip"``: once per clip, [B, 1, 1, 1]: what the paper describes;
    - ``"frame"``: once per frame, [B, T, 1, 1]: what the published ViT-ImageNet code does.
    """

    def __init__(self, rate: float = 0.0, mode: DropPathMode = "position") -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path {rate} is not in [0, 1)")
        if mode not in get_args(DropPathMode):
            raise ValueError(f"drop_path_mode {mode!r} is none of {', '.join(get_args(DropPathMode))}")
        self.rate = float(rate)
        self.mode = mode
        self.lent: list[Tensor] = []  # the next ones, where :func:`formed_together` drew them

    @property
    def drops(self) -> bool:
        """Whether anything can be dropped."""
        return self.training and self.rate != 0.0

    def forward(self, x: Tensor) -> Tensor | None:
        if not self.drops:
            return None
        return self.lent.pop(0) if self.lent else self.kept(x).div_(1.0 - self.rate)

    def kept(self, x: Tensor) -> Tensor:
        """1 where the branch is kept, before it is scaled."""
        return x.new_empty(self.shape(x)).bernoulli_(1.0 - self.rate)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Of the factor."""
        b, t, n, _ = x.shape
        return {"position": (1, 1, n, 1), "clip": (b, 1, 1, 1), "frame": (b, t, 1, 1)}[self.mode]

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, mode={self.mode!r}"
