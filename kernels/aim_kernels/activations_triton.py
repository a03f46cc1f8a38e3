"""The activations on the device: value and derivative of a float32 tile, for the kernels that have one inside."""

from __future__ import annotations

from aim_kernels.optional_triton import tl, triton


@triton.jit
def gelu_value(b_u: tl.tensor) -> tl.tensor:
    """u · Φ(u), with the exact distribution function of the normal distribution."""
    return b_u * _cumulative(b_u)


@triton.jit
def gelu_slope(b_u: tl.tensor) -> tl.tensor:
    """Φ(u) + u · φ(u)."""
    return _cumulative(b_u) + b_u * 0.3989422804014327 * tl.exp2(b_u * b_u * (-0.5 * 1.4426950408889634))


@triton.jit
def activation_value(b_u: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """QuickGELU u · σ(1.702 u), GELU by tanh u · σ(√(8/π) (u + 0.044715 u³)), or the exact GELU."""
    if ACTIVATION == "quick_gelu":
        return b_u * sigmoid(b_u, 1.702)
    elif ACTIVATION == "gelu_tanh":
        return b_u * sigmoid(b_u * (1.5957691216057308 + 0.07135481627159036 * b_u * b_u), 1.0)
    else:
        return gelu_value(b_u)


@triton.jit
def activation_slope(b_u: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The derivative of :func:`activation_value`."""
    if ACTIVATION == "quick_gelu":
        b_s = sigmoid(b_u, 1.702)
        return b_s + 1.702 * (b_u * b_s) * (1.0 - b_s)  # u · σ is the value, there already where both are asked for
    elif ACTIVATION == "gelu_tanh":
        b_cube = 0.07135481627159036 * b_u * b_u
        b_s = sigmoid(b_u * (1.5957691216057308 + b_cube), 1.0)
        return b_s + (1.5957691216057308 + 3.0 * b_cube) * (b_u * b_s) * (1.0 - b_s)
    else:
        return gelu_slope(b_u)


@triton.jit
def slope_code(b_slope: tl.tensor) -> tl.tensor:
    """A slope in a byte, as :mod:`aim_kernels.wide_slope` has it.

    From 2²³ on float32 numbers are whole: a sum's last byte is the code, without a conversion, and the one minimum that
    a comparison with NaN's code compiles to gives it to NaN.
    """
    b_code = b_slope * 200.0 + 8388635.0  # 2²³ + 27
    b_code = tl.where(b_code < 8388863.0, b_code, 8388863.0)
    return b_code.to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def slope_of(b_code: tl.tensor) -> tl.tensor:
    """The slope of a code."""
    b_wide = (b_code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)  # 2²³ + code
    return tl.where(b_code == 255, float("nan"), (b_wide - 8388635.0) * 0.005)


@triton.jit
def _cumulative(b_u: tl.tensor) -> tl.tensor:
    return 0.5 * (1.0 + tl.erf(b_u * 0.7071067811865476))


@triton.jit
def sigmoid(b_u: tl.tensor, SCALE: tl.constexpr) -> tl.tensor:
    """σ(SCALE · u)."""
    return 1.0 / (1.0 + tl.exp2(b_u * (-SCALE * 1.4426950408889634)))
