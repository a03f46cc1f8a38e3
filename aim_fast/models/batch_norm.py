"""Batch norm over channels that come last, of one batch in all processes together.

    y = (x − mean)·rstd·weight + bias,  rstd = 1/√(var + eps),  over all axes of x [..., C] but the last

In training of the clips of all processes, each of which has as many; their mean and unbiased variance move the running
ones by a tenth, and those are taken otherwise. A block that runs again for backward moves nothing. Running statistics
are part of what a run saves. Source: Ioffe and Szegedy, Batch Normalization, 2015; torch's ``SyncBatchNorm``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aim_kernels.memory import running_again

_MOVED = 0.1


class BatchNorm(nn.Module):
    """``y`` [..., C] in the dtype of x; parameters and buffers named as torch's."""

    affine = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for one, zero in ((self.weight, self.bias), (self.running_var, self.running_mean)):
            nn.init.ones_(one)
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return (x * scale + (self.bias - self.running_mean * scale)).to(x.dtype)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        count = x.shape[:-1].numel() * world
        mean, var = _moments(x.detach(), world)
        if not running_again():
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), _MOVED)
                self.running_var.lerp_((var * (count / max(count - 1, 1))).to(self.running_var.dtype), _MOVED)
        # cast out here: of a function that ends in a cast to its own dtype a compiler makes gradients of zero
        return _Normalised.apply(x, self.weight, self.bias, mean, (var + self.eps).rsqrt(), count, world).to(x.dtype)


def _moments(x: Tensor, world: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C], float32 at least, over all processes."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)
    var, mean = torch.var_mean(wide, 0, correction=0)
    if world == 1:
        return mean, var
    sums = torch.stack([mean, var + mean.square()]).double() / world
    dist.all_reduce(sums)
    return sums[0].to(wide.dtype), (sums[1] - sums[0].square()).to(wide.dtype)


class _Normalised(torch.autograd.Function):
    """``y`` for a mean and a deviation that are x's own, through which its gradient goes too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, count: int, world: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.count, ctx.world = count, world
        scale = weight * rstd
        return x * scale + (bias - mean * scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        wide, normal = g.to(mean.dtype), (x - mean) * rstd
        sums = dbias, dweight = wide.flatten(0, -2).sum(0), (wide * normal).flatten(0, -2).sum(0)
        if ctx.world > 1:
            together = torch.stack(sums)
            dist.all_reduce(together)
            sums = together[0], together[1]
        dx = (weight * rstd * (wide - sums[0] / ctx.count - normal * (sums[1] / ctx.count))).to(x.dtype)
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None, None, None, None
