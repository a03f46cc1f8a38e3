"""Rows that a program holds whole, on the device: their place, a layer norm over them and its input gradient.

For kernels over [M, D] with D up to :data:`MAX_WIDTH`: a program has ROWS rows of COLUMNS, D padded to a power of two.
The mathematics of the norm is in :mod:`aim_kernels.layer_norm`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aim_kernels.block_shapes import block_shape, kernel_name
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import architecture

MAX_WIDTH = 8192


def launch_shape(
    width: int, target: int, kernel: str = "layer_norm", itemsize: int = 2
) -> tuple[dict[str, int], dict[str, int]]:
    """ROWS and COLUMNS of a tile that holds rows of ``width``, and the launch options, of the ``kernel`` of a name."""
    entry = "layer_norm_branch" if kernel.startswith("layer_norm_branch") else "layer_norm"
    shape = block_shape(kernel, width, target, itemsize, entry=entry)
    constants = {"ROWS": shape.rows, "COLUMNS": next_power_of_2(width)}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def launch(kernel: Any, x: Tensor, name: str = "", /, **arguments: Any) -> None:
    """Runs ``kernel``, its shapes those of a ``name``, over the rows of ``x`` [..., D]: its M, D, ROWS and COLUMNS."""
    width = x.shape[-1]
    rows = x.numel() // width
    constants, options = launch_shape(width, architecture(x), name or kernel_name(kernel), x.dtype.itemsize)
    kernel[(cdiv(rows, constants["ROWS"]),)](M=rows, D=width, **arguments, **constants, **options)


@triton.jit
def row_tile(M: tl.tensor, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """This program's rows and columns, the masks of both and of the tile, and the tile's offsets."""
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < D
    o_row, m_row, m_tile, o_tile = rows_at(tl.program_id(0).to(tl.int64), o_column, m_column, M, D, ROWS)
    return o_row, o_column, m_row, m_column, m_tile, o_tile


@triton.jit
def rows_at(
    i_tile: tl.tensor, o_column: tl.tensor, m_column: tl.tensor, M: tl.tensor, D: tl.constexpr, ROWS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The rows of a tile, their mask and the tile's, and its offsets."""
    o_row = i_tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < M
    return o_row, m_row, m_row[:, None] & m_column[None, :], o_row[:, None] * D + o_column[None, :]


@triton.jit
def normalise(
    b_x: tl.tensor, b_weight: tl.tensor, b_bias: tl.tensor, m_tile: tl.tensor, eps: tl.tensor, D: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The norm of a tile whose masked elements are zero: y, mean and rstd."""
    b_mean = tl.sum(b_x, 1) / D
    b_centred = tl.where(m_tile, b_x - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + eps)
    return b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :], b_mean, b_rstd


@triton.jit
def norm_gradient(
    b_dy: tl.tensor,
    b_x: tl.tensor,
    b_weight: tl.tensor,
    b_mean: tl.tensor,
    b_rstd: tl.tensor,
    m_tile: tl.tensor,
    D: tl.constexpr,
) -> tl.tensor:
    """dx of a tile whose masked dy are zero."""
    b_normal = tl.where(m_tile, (b_x - b_mean[:, None]) * b_rstd[:, None], 0.0)
    return normal_gradient(b_dy * b_weight[None, :], b_normal, b_rstd, D)


@triton.jit
def normal_gradient(b_g: tl.tensor, b_normal: tl.tensor, b_rstd: tl.tensor, D: tl.constexpr) -> tl.tensor:
    """dx of a tile of x̂, ``b_normal``, and of its gradient; masked elements of both are zero."""
    b_average = tl.sum(b_g, 1) / D
    b_slope = tl.sum(b_g * b_normal, 1) / D
    return b_rstd[:, None] * (b_g - b_average[:, None] - b_normal * b_slope[:, None])
