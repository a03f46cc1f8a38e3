"""What ties a branch to the residual stream: the add with droppath.

    residual_add:  x + branch · factor,  or  x + branch + factor · bias     x, branch [M, D]; factor [M]; bias [D]

The stream may be float32 while the branch is bfloat16: on a CPU torch would first write a float32 copy of the branch.
It is a part of functions whose backward is written out and has no gradient of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.layer_norm_triton import add_branch
from aim_kernels.optional_triton import tl, triton
from aim_kernels.precision import in_dtype
from aim_kernels.registration import operator, ops
from aim_kernels.rows_triton import MAX_WIDTH, launch, row_tile


def residual_add(x: Tensor, branch: Tensor, factor: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """``x`` of any shape [..., D] plus ``branch`` of M rows of D; the result has the shape and dtype of ``x``."""
    rows = ops.residual_add(x.reshape(-1, x.shape[-1]), branch.reshape(-1, x.shape[-1]), factor, bias)
    return rows.view(x.shape)


def row_factor(drop: Tensor | None, x: Tensor) -> Tensor | None:
    """Droppath's factor of every token of ``x`` [B, T, N, D] as [B·T·N] float32 (float64 with a float64 stream)."""
    if drop is None:
        return None
    drop, lead = in_dtype(drop, torch.promote_types(x.dtype, torch.float32)), x.shape[:-1]
    return (drop if drop.shape[:-1] == lead else drop.expand(*lead, 1)).reshape(-1).contiguous()


def residual_add_reference(x: Tensor, branch: Tensor, factor: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formulas above in plain torch, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    added = branch if bias is None else bias  # what droppath's factor is of
    added = added if factor is None else added * factor[:, None]
    return (wide + (added if bias is None else branch + added)).to(x.dtype)


@triton.jit
def residual_add_kernel(
    x_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, o_column, m_row, m_column, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_x = tl.load(x_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    b_out = add_branch(
        b_x, branch_ptr, factor_ptr, bias_ptr, o_row, o_column, m_row, m_column, o_tile, m_tile, FACTOR, BIAS
    )
    tl.store(out_ptr + o_tile, b_out.to(out_ptr.dtype.element_ty), mask=m_tile)


def _add_triton(x: Tensor, branch: Tensor, factor: Tensor | None, bias: Tensor | None) -> Tensor:
    x, branch = x.contiguous(), branch.contiguous()
    out = x.new_empty(x.shape)
    launch(
        residual_add_kernel,
        x,
        x_ptr=x,
        branch_ptr=branch,
        factor_ptr=x if factor is None else factor.float().contiguous(),
        bias_ptr=x if bias is None else bias.contiguous(),
        out_ptr=out,
        FACTOR=factor is not None,
        BIAS=bias is not None,
    )
    return out


def _add_cpp(x: Tensor, branch: Tensor, factor: Tensor | None, bias: Tensor | None) -> Tensor:
    factor, bias = (None if v is None else v.float().contiguous() for v in (factor, bias))
    return torch.ops.aim_cpu.residual(x.contiguous(), branch.contiguous(), factor, bias)


def _add_fake(x: Tensor, branch: Tensor, factor: Tensor | None, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


operator(
    "residual_add",
    "(Tensor x, Tensor branch, Tensor? factor, Tensor? bias) -> Tensor",
    reference=residual_add_reference,
    triton=_add_triton,
    cpp=_add_cpp,
    fits=lambda x, *_: x.shape[1] <= MAX_WIDTH,
    fake=_add_fake,
)
