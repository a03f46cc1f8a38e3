"""The two activations of the widened MLP, in one pass over its hidden state.

    y[m, j] = act(u[m, j])                for j < split     (the frozen columns: QuickGELU u·σ(1.702u), exact GELU, or
                                                             GELU by tanh u·σ(√(8/π) (u + 0.044715 u³)))
    y[m, j] = gelu(u[m, j]) · factor[m]   for j ≥ split     (exact GELU: the adapter's columns; droppath's factor)

``u`` [M, H]; ``factor`` [M] float32 or None for 1. The backward multiplies ``dy`` by the derivatives at ``u``: only u
is kept. With ``split`` 0 it is the activation of an adapter alone, :func:`gelu`. Source: Hendrycks and Gimpel,
Gaussian Error Linear Units, 2016.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.activations_triton import activation_slope, activation_value, gelu_slope, gelu_value
from aim_kernels.adaptation import activate
from aim_kernels.block_shapes import block_shape, kernel_name
from aim_kernels.choices import Activation
from aim_kernels.optional_triton import cdiv, tl, triton
from aim_kernels.registration import alike, architecture, operator, ops


def wide_activation(
    u: Tensor, split: int, activation: Activation = "quick_gelu", factor: Tensor | None = None
) -> Tensor:
    """``y`` [M, H] in u's dtype. Differentiable in ``u``. Raises ValueError for shapes and names that cannot be."""
    if u.ndim != 2 or not 0 <= split <= u.shape[1]:
        raise ValueError(f"expected u [M, H] and 0 ≤ split ≤ H, got {list(u.shape)} and {split}")
    check_factor(factor, u)
    if activation not in get_args(Activation):
        raise ValueError(f"activation {activation!r} is none of {', '.join(get_args(Activation))}")
    return ops.wide_activation(u, split, activation, factor)


def check_factor(factor: Tensor | None, u: Tensor) -> None:
    """Raises ValueError for a factor that has not one number for each row of ``u``."""
    if factor is not None and factor.shape != u.shape[:1]:
        raise ValueError(f"expected factor [{u.shape[0]}], got {list(factor.shape)}")


def gelu(u: Tensor, factor: Tensor | None = None) -> Tensor:
    """The exact GELU of ``u`` [M, H], an adapter's activation, times ``factor`` [M]. Differentiable in ``u``."""
    return ops.wide_activation(u, 0, "gelu", factor)


def gelu_backward(dy: Tensor, u: Tensor) -> Tensor:
    """``du`` of :func:`gelu` without a factor."""
    return ops.wide_activation_backward(dy, u, 0, "gelu", None)


def wide_activation_reference(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    """``y`` in plain torch, computed in float32 at least."""
    wide = u.to(torch.promote_types(u.dtype, torch.float32))
    frozen, adapter = activate(wide[:, :split], activation), F.gelu(wide[:, split:])
    if factor is not None:
        adapter = adapter * factor[:, None]
    return (torch.cat([frozen, adapter], 1) if 0 < split < u.shape[1] else frozen if split else adapter).to(u.dtype)


def wide_activation_backward_reference(
    dy: Tensor, u: Tensor, split: int, activation: Activation, factor: Tensor | None
) -> Tensor:
    """``du`` in plain torch."""
    wide = u.to(torch.promote_types(u.dtype, torch.float32))
    frozen, adapter = _slope(wide[:, :split], activation), _gelu_slope(wide[:, split:])
    if factor is not None:
        adapter = adapter * factor[:, None]
    return (torch.cat([frozen, adapter], 1) * dy).to(u.dtype)


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of the exact GELU."""
    density = torch.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density


def _slope(x: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu":
        return _gelu_slope(x)
    inner, inner_slope = 1.702 * x, torch.full_like(x, 1.702)
    if activation == "gelu_tanh":
        inner, inner_slope = 1.5957691216057308 * (x + 0.044715 * x**3), 1.5957691216057308 * (1 + 0.134145 * x * x)
    sigmoid = torch.sigmoid(inner)
    return sigmoid + x * inner_slope * sigmoid * (1 - sigmoid)


@triton.jit
def wide_tile(
    M: tl.tensor, H: tl.tensor, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """This program's first column, its rows and columns, the rows' mask, and the tile's mask and offsets."""
    i_program = tl.program_id(0)
    i_first = (i_program % BLOCKS) * COLUMNS
    o_row = (i_program // BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = i_first + tl.arange(0, COLUMNS)
    m_row = o_row < M
    m_tile = m_row[:, None] & (o_column < H)[None, :]
    return i_first, o_row, o_column, m_row, m_tile, o_row[:, None] * H + o_column[None, :]


@triton.jit
def wide_activation_kernel(
    u_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    split: tl.tensor,
    BLOCKS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FACTOR: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_first, o_row, o_column, m_row, m_tile, o_tile = wide_tile(M, H, BLOCKS, ROWS, COLUMNS)
    b_u = tl.load(u_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    if i_first + COLUMNS <= split:
        b_y = activation_slope(b_u, ACTIVATION) if BACKWARD else activation_value(b_u, ACTIVATION)
    else:
        b_adapter = gelu_slope(b_u) if BACKWARD else gelu_value(b_u)
        if FACTOR:
            b_adapter *= tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_frozen = activation_slope(b_u, ACTIVATION) if BACKWARD else activation_value(b_u, ACTIVATION)
        b_y = tl.where((o_column < split)[None, :], b_frozen, b_adapter)
    if BACKWARD:
        b_y *= tl.load(dy_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(y_ptr + o_tile, b_y.to(y_ptr.dtype.element_ty), mask=m_tile)


def launch_shape(
    width: int, target: int, kernel: str = "wide_activation", itemsize: int = 2
) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options at H = ``width``, of the ``kernel`` of a name."""
    shape = block_shape(kernel, width, target, itemsize, entry="wide_activation")
    # known when compiled: a division by it is most of a small tile's indices
    blocks = cdiv(width, shape.columns)
    constants = {"BLOCKS": blocks, "ROWS": shape.rows, "COLUMNS": shape.columns}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def launch(kernel: Any, x: Tensor, **arguments: Any) -> None:
    """Runs ``kernel`` over the tiles of ``x`` [M, H], which are its M, H, BLOCKS, ROWS and COLUMNS."""
    rows, width = x.shape
    name = kernel_name(kernel, arguments.get("BACKWARD", False))
    constants, options = launch_shape(width, architecture(x), name, x.dtype.itemsize)
    grid = (cdiv(rows, constants["ROWS"]) * constants["BLOCKS"],)
    kernel[grid](M=rows, H=width, **arguments, **constants, **options)


def _triton(dy: Tensor | None, u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    u = u.contiguous()
    y = alike(u)
    launch(
        wide_activation_kernel,
        u,
        u_ptr=u,
        dy_ptr=u if dy is None else dy.contiguous(),
        factor_ptr=u if factor is None else factor.contiguous(),
        y_ptr=y,
        split=split,
        ACTIVATION=activation,
        FACTOR=factor is not None,
        BACKWARD=dy is not None,
    )
    return y


def _forward_triton(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    return _triton(None, u, split, activation, factor)


def single(factor: Tensor | None) -> Tensor | None:
    """The factor of each row as the C++ part reads it."""
    return None if factor is None else factor.float().contiguous()


def _forward_cpp(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    return torch.ops.aim_cpu.activation_forward(u.contiguous(), split, activation, single(factor))


def _backward_cpp(dy: Tensor, u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    operands = (dy.to(u.dtype).contiguous(), u.contiguous(), split, activation, single(factor))
    return torch.ops.aim_cpu.activation_backward(*operands)


def _forward_fake(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    return alike(u)


def _backward_fake(dy: Tensor, u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> Tensor:
    return alike(u)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, Activation, Tensor | None], output: Tensor) -> None:
    u, ctx.split, ctx.activation, factor = inputs
    ctx.save_for_backward(u, factor)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    u, factor = ctx.saved_tensors
    return ops.wide_activation_backward(dy, u, ctx.split, ctx.activation, factor), None, None, None


operator(
    "wide_activation",
    "(Tensor u, int split, str activation, Tensor? factor) -> Tensor",
    reference=wide_activation_reference,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
operator(
    "wide_activation_backward",
    "(Tensor dy, Tensor u, int split, str activation, Tensor? factor) -> Tensor",
    reference=wide_activation_backward_reference,
    triton=_triton,
    cpp=_backward_cpp,
    fake=_backward_fake,
)
