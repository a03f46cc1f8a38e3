"""Column sums, which are bias gradients: of a tensor as it lies, or in the pass that narrows the stream's gradient.

    column_sum:       Σ_m x[m, d] · f[m]                x [M, D], its rows apart by any stride; f [M] or None for 1
    branch_gradient:  branch = g · f in the products' dtype,   and Σ_m branch[m, d]
                      not dropped:  branch = g,                and Σ_m branch[m, d] · f[m]

``g`` [M, D] is the gradient of x + f · (branch + bias), under droppath; the second form is for a bias that is dropped
where its branch is not, as an adapter's beside an MLP. Sums are of the branch as it was rounded, in float32 at least.
On a GPU programs write the sums of chunks of rows, and these are added in a fixed order: no atomics, the same bits at
every run. These are parts of functions whose backward is written out and have no gradient of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.block_shapes import block_shape
from aim_kernels.optional_triton import cdiv, tl, triton
from aim_kernels.registration import architecture, operator, ops

SPAN = 4  # tiles of rows that a program adds before it writes: of 10⁴ rows and more there are programs for every card


def column_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of ``x`` [M, D] over M, accumulated in float32 at least, in ``dtype``: a bias gradient."""
    return ops.column_sum(x).to(dtype)


def branch_gradient(
    g: Tensor, dtype: torch.dtype, needs_bias: bool, factor: Tensor | None = None, dropped: bool = True
) -> tuple[Tensor, Tensor | None]:
    """From ``g`` [..., D] the gradient of the branch [M, D] in ``dtype``, and where ``needs_bias`` of its bias [D].

    ``factor`` [M]; unless ``dropped`` it multiplies the bias alone. The branch may be ``g`` itself.
    """
    rows = g.reshape(-1, g.shape[-1])
    scaled = factor if dropped else None
    if needs_bias and (rows.dtype != dtype or scaled is not None):
        return ops.branch_gradient(rows, factor, dtype, dropped)
    branch = (rows if scaled is None else rows * scaled[:, None].to(rows.dtype)).to(dtype)
    return branch, ops.column_sum(branch, factor) if needs_bias else None


def column_sum_reference(x: Tensor, factor: Tensor | None = None) -> Tensor:
    """The formula above in plain torch."""
    precise = torch.promote_types(x.dtype, torch.float32)
    return (x if factor is None else x.to(precise) * factor[:, None]).sum(0, dtype=precise)


def branch_gradient_reference(
    g: Tensor, factor: Tensor | None, dtype: torch.dtype, dropped: bool
) -> tuple[Tensor, Tensor]:
    """The formulas above in plain torch."""
    branch = _narrowed(g, factor if dropped else None, dtype)
    return branch, column_sum_reference(branch, None if dropped else factor)


@triton.jit
def _sum_chunk(
    x_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.tensor,
    stride: tl.tensor,
    FACTOR: tl.constexpr,
    BRANCH: tl.constexpr,
    DROPPED: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Writes the sums of a block of columns over a chunk of rows; with BRANCH, the rows as well."""
    blocks = tl.cdiv(D, COLUMNS)
    i_program = tl.program_id(0)
    i_chunk = (i_program // blocks).to(tl.int64)
    o_column = i_program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < D
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_step in range(SPAN):
        o_row = (i_chunk * SPAN + i_step) * ROWS + tl.arange(0, ROWS)
        m_row = o_row < M
        m_tile = m_row[:, None] & m_column[None, :]
        b_x = tl.load(x_ptr + o_row[:, None] * stride + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
        if FACTOR:
            b_factor = tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        if FACTOR and DROPPED:
            b_x *= b_factor
        if BRANCH:
            b_branch = b_x.to(branch_ptr.dtype.element_ty)
            tl.store(branch_ptr + o_row[:, None] * D + o_column[None, :], b_branch, mask=m_tile)
            b_x = b_branch.to(tl.float32)
        if FACTOR and not DROPPED:
            b_x *= b_factor
        b_sum += b_x
    tl.store(partial_ptr + i_chunk * D + o_column, tl.sum(b_sum, 0), mask=m_column)


@triton.jit
def column_sum_kernel(
    x_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.tensor,
    stride: tl.tensor,
    FACTOR: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    _sum_chunk(x_ptr, factor_ptr, x_ptr, partial_ptr, M, D, stride, FACTOR, False, False, SPAN, ROWS, COLUMNS)


@triton.jit
def branch_gradient_kernel(
    g_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.tensor,
    stride: tl.tensor,
    FACTOR: tl.constexpr,
    DROPPED: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    _sum_chunk(g_ptr, factor_ptr, branch_ptr, partial_ptr, M, D, stride, FACTOR, True, DROPPED, SPAN, ROWS, COLUMNS)


def launch_shape(width: int, target: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options at D = ``width``."""
    shape = block_shape("column_sum", width, target)
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    return {"SPAN": SPAN, "ROWS": shape.rows, "COLUMNS": shape.columns}, options


def _sums(x: Tensor, factor: Tensor | None, branch: Tensor | None, dropped: bool) -> Tensor:
    """The sums of ``x`` [M, D], which are those of ``branch`` where there is one to be written."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, width), (constants, options) = x.shape, launch_shape(x.shape[1], architecture(x))
    chunks = cdiv(rows, SPAN * constants["ROWS"])
    partial = x.new_empty((chunks, width), dtype=torch.float32)
    grid = (chunks * cdiv(width, constants["COLUMNS"]),)
    shared = {
        "factor_ptr": x if factor is None else factor.float().contiguous(),
        "partial_ptr": partial,
        "M": rows,
        "D": width,
        "stride": x.stride(0),
        "FACTOR": factor is not None,
        **constants,
        **options,
    }
    if branch is None:
        column_sum_kernel[grid](x_ptr=x, **shared)
    else:
        branch_gradient_kernel[grid](g_ptr=x, branch_ptr=branch, DROPPED=dropped, **shared)
    return partial.sum(0) if chunks > 1 else partial[0]


def _sum_triton(x: Tensor, factor: Tensor | None = None) -> Tensor:
    return _sums(x, factor, None, False)


def _branch_triton(g: Tensor, factor: Tensor | None, dtype: torch.dtype, dropped: bool) -> tuple[Tensor, Tensor]:
    branch = g.new_empty(g.shape, dtype=dtype)
    return branch, _sums(g, factor, branch, dropped)


def _narrowed(g: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A fresh copy of ``g`` in ``dtype``, times ``factor``."""
    return g.to(dtype, copy=True) if factor is None else (g * factor[:, None].to(g.dtype)).to(dtype)


def _sum_cpp(x: Tensor, factor: Tensor | None = None) -> Tensor:
    if factor is not None:
        x = x * factor[:, None].to(x.dtype)
    return torch.ops.aim_cpu.column_sum(x) if x.stride(-1) == 1 else column_sum_reference(x)


def _branch_cpp(g: Tensor, factor: Tensor | None, dtype: torch.dtype, dropped: bool) -> tuple[Tensor, Tensor]:
    branch = _narrowed(g, factor if dropped else None, dtype)
    return branch, _sum_cpp(branch, None if dropped else factor)


def _sum_fake(x: Tensor, factor: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32))


def _branch_fake(g: Tensor, factor: Tensor | None, dtype: torch.dtype, dropped: bool) -> tuple[Tensor, Tensor]:
    branch = g.new_empty(g.shape, dtype=dtype)
    return branch, _sum_fake(branch)


operator(
    "column_sum",
    "(Tensor x, Tensor? factor=None) -> Tensor",
    reference=column_sum_reference,
    triton=_sum_triton,
    cpp=_sum_cpp,
    fake=_sum_fake,
)
operator(
    "branch_gradient",
    "(Tensor g, Tensor? factor, ScalarType dtype, bool dropped) -> (Tensor, Tensor)",
    reference=branch_gradient_reference,
    triton=_branch_triton,
    cpp=_branch_cpp,
    fake=_branch_fake,
)
