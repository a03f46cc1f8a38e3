"""The Triton kernels of patch_embed: pixels to rows of patches, one pass over the tokens, and the temporal gradient.

``frames`` [B, T, H, W, 3] uint8, product [B, T, N − 1, D], tokens [B, T, N, D]; ``bias`` [D], and the class [D],
positional [N, D] and temporal embedding [T, D]. The mathematics is in :mod:`aim_kernels.patch_embed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import architecture
from aim_kernels.rows_triton import launch, launch_shape, norm_gradient, normalise, row_tile

SPAN = 16  # tiles that one program of the temporal gradient sums


@triton.jit
def patch_embed_patches_kernel(
    frames_ptr: tl.tensor,
    out_ptr: tl.tensor,
    M: tl.tensor,
    grid_rows: tl.tensor,
    grid_columns: tl.tensor,
    P: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_pixel = tl.arange(0, COLUMNS)
    m_row = o_row < M
    o_frame = o_row // (grid_rows * grid_columns)
    o_patch = (o_row % (grid_rows * grid_columns)).to(tl.int32)
    width = grid_columns * P * 3  # bytes of one row of pixels
    o_first = o_frame * grid_rows * P * width + (o_patch // grid_columns) * P * width + (o_patch % grid_columns) * P * 3
    o_within = (o_pixel // (P * 3)) * width + o_pixel % (P * 3)
    m_load = m_row[:, None] & (o_pixel < DEPTH)[None, :]
    b_pixel = tl.load(frames_ptr + o_first[:, None] + o_within[None, :], mask=m_load, other=128).to(tl.float32) - 128.0
    m_store = m_row[:, None] & (o_pixel < PADDED)[None, :]
    tl.store(out_ptr + o_row[:, None] * PADDED + o_pixel[None, :], b_pixel.to(out_ptr.dtype.element_ty), mask=m_store)


@triton.jit
def _load_tokens(
    stem: tl.tuple,
    o_frame: tl.tensor,
    o_t: tl.tensor,
    o_n: tl.tensor,
    m_row: tl.tensor,
    N: tl.tensor,
    D: tl.constexpr,
    o_column: tl.tensor,
) -> tl.tensor:
    """x of rows (frame, n) before its norm, [ROWS, COLUMNS]."""
    product_ptr, bias_ptr, class_ptr, position_ptr, temporal_ptr = stem
    m_column = o_column < D
    m_tile = m_row[:, None] & m_column[None, :]
    m_patch = m_tile & (o_n > 0)[:, None]
    o_product = (o_frame * (N - 1) + o_n - 1)[:, None] * D + o_column[None, :]
    b_x = tl.load(product_ptr + o_product, mask=m_patch, other=0.0).to(tl.float32)
    b_class = tl.load(class_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_bias = tl.load(bias_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_x += tl.where((o_n > 0)[:, None], b_bias[None, :], b_class[None, :])
    b_x += tl.load(position_ptr + o_n[:, None] * D + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
    b_x += tl.load(temporal_ptr + o_t[:, None] * D + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
    return b_x


@triton.jit
def patch_embed_fold_kernel(
    weight_ptr: tl.tensor,
    folded_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    shift_red: tl.tensor,
    shift_green: tl.tensor,
    shift_blue: tl.tensor,
    std_red: tl.tensor,
    std_green: tl.tensor,
    std_blue: tl.tensor,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """A row of the folded weight, channels last, and its bias, which is of the rounded weight."""
    i_row = tl.program_id(0)
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < DEPTH
    o_channel = o_column % 3
    o_weight = i_row * DEPTH + o_channel * (DEPTH // 3) + o_column // 3
    b_weight = tl.load(weight_ptr + o_weight, mask=m_column, other=0.0).to(tl.float32)
    b_std = tl.where(o_channel == 0, std_red, tl.where(o_channel == 1, std_green, std_blue))
    b_shift = tl.where(o_channel == 0, shift_red, tl.where(o_channel == 1, shift_green, shift_blue))
    b_folded = tl.div_rn(b_weight, b_std).to(folded_ptr.dtype.element_ty)
    tl.store(folded_ptr + i_row * DEPTH + o_column, b_folded, mask=m_column)
    tl.store(bias_ptr + i_row, tl.sum(b_folded.to(tl.float32) * b_shift, 0))


@triton.jit
def patch_embed_tokens_kernel(
    product_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    class_ptr: tl.tensor,
    position_ptr: tl.tensor,
    temporal_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    ln_bias_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    M: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    eps: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, o_column, m_row, m_column, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    i_frame = o_row // N
    stem = (product_ptr, bias_ptr, class_ptr, position_ptr, temporal_ptr)
    b_x = _load_tokens(stem, i_frame, i_frame % T, o_row % N, m_row, N, D, o_column)
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_bias = tl.load(ln_bias_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_y, b_mean, b_rstd = normalise(tl.where(m_tile, b_x, 0.0), b_weight, b_bias, m_tile, eps, D)
    tl.store(tokens_ptr + o_tile, b_y.to(tokens_ptr.dtype.element_ty), mask=m_tile)
    tl.store(mean_ptr + o_row, b_mean, mask=m_row)
    tl.store(rstd_ptr + o_row, b_rstd, mask=m_row)


@triton.jit
def patch_embed_temporal_kernel(
    dtokens_ptr: tl.tensor,
    product_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    class_ptr: tl.tensor,
    position_ptr: tl.tensor,
    temporal_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    M: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    chunks: tl.tensor,
    SPAN: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_program = tl.program_id(0).to(tl.int64)
    i_t = i_program // chunks
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < D
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_sum = tl.zeros([COLUMNS], tl.float32)
    stem = (product_ptr, bias_ptr, class_ptr, position_ptr, temporal_ptr)
    for i_step in range(SPAN):
        o_pair = ((i_program % chunks) * SPAN + i_step) * ROWS + tl.arange(0, ROWS)  # (clip, token) pairs of frame t
        m_row = o_pair < M
        o_frame = o_pair // N * T + i_t
        o_n = o_pair % N
        b_x = _load_tokens(stem, o_frame, o_frame % T, o_n, m_row, N, D, o_column)
        o_row = o_frame * N + o_n
        m_tile = m_row[:, None] & m_column[None, :]
        b_dy = tl.load(dtokens_ptr + o_row[:, None] * D + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
        b_mean = tl.load(mean_ptr + o_row, mask=m_row, other=0.0)
        b_rstd = tl.load(rstd_ptr + o_row, mask=m_row, other=0.0)
        b_sum += tl.sum(norm_gradient(b_dy, b_x, b_weight, b_mean, b_rstd, m_tile, D), 0)
    tl.store(partial_ptr + i_program * D + o_column, b_sum, mask=m_column)


def forward(
    frames: Tensor,
    folded: Tensor,
    bias: Tensor,
    first: Tensor,
    position: Tensor,
    temporal: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tokens`` [B, T, N, D], the product, and the norm's statistics [B, T, N]."""
    embedded = product(frames, folded)
    b, t, n, d = embedded.shape
    out = embedded.new_empty((b, t, n + 1, d), dtype=dtype)
    mean, rstd = (embedded.new_empty((b, t, n + 1), dtype=torch.float32) for _ in range(2))
    launch(
        patch_embed_tokens_kernel,
        out,
        product_ptr=embedded,
        bias_ptr=bias.contiguous(),
        class_ptr=first.contiguous(),
        position_ptr=position.contiguous(),
        temporal_ptr=temporal.contiguous(),
        weight_ptr=ln_weight.contiguous(),
        ln_bias_ptr=ln_bias.contiguous(),
        tokens_ptr=out,
        mean_ptr=mean,
        rstd_ptr=rstd,
        T=t,
        N=n + 1,
        eps=eps,
    )
    return out, embedded, mean, rstd


def fold(weight: Tensor, shift: Sequence[float], std: Sequence[float], folded: Tensor, bias: Tensor) -> None:
    """Writes ``folded`` [D, p·p·3] and ``bias`` [D] from ``weight`` [D, 3, p, p]."""
    depth = folded.shape[1]
    columns = next_power_of_2(depth)
    operands = (weight.contiguous(), folded, bias, *shift, *std)
    patch_embed_fold_kernel[(len(folded),)](*operands, DEPTH=depth, COLUMNS=columns, num_warps=4)


def backward(
    dtokens: Tensor,
    product: Tensor,
    bias: Tensor,
    first: Tensor,
    position: Tensor,
    temporal: Tensor,
    ln_weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> Tensor:
    """The gradient of ``temporal`` [T, D]."""
    b, t, n, d = dtokens.shape
    constants, options = launch_shape(d, architecture(product), "patch_embed_temporal", product.dtype.itemsize)
    chunks = cdiv(b * n, constants["ROWS"] * SPAN)
    partial = product.new_empty((t, chunks, d), dtype=torch.float32)
    patch_embed_temporal_kernel[(t * chunks,)](
        *(x.contiguous() for x in (dtokens, product, bias, first, position, temporal, ln_weight, mean, rstd)),
        partial,
        M=b * n,
        T=t,
        N=n,
        chunks=chunks,
        SPAN=SPAN,
        D=d,
        **constants,
        **options,
    )
    return partial.sum(1).to(temporal.dtype)


def product(frames: Tensor, folded: Tensor) -> Tensor:
    """W'·(pixels − 128), [B, T, N − 1, D]; the depth is padded to 8, whose rows the library's kernels read fastest."""
    b, t, h, w, _ = frames.shape
    depth = folded.shape[1]
    padded = -(-depth // 8) * 8
    side = round((depth // 3) ** 0.5)
    patches = folded.new_empty((b * t * (h // side) * (w // side), padded))
    constants, options = launch_shape(padded, architecture(frames), "patch_embed_patches", folded.dtype.itemsize)
    patch_embed_patches_kernel[(cdiv(patches.shape[0], constants["ROWS"]),)](
        frames_ptr=frames.contiguous(),
        out_ptr=patches,
        M=patches.shape[0],
        grid_rows=h // side,
        grid_columns=w // side,
        P=side,
        DEPTH=depth,
        PADDED=padded,
        **constants,
        **options,
    )
    weight = F.pad(folded, (0, padded - depth)) if padded > depth else folded
    return F.linear(patches, weight).view(b, t, -1, folded.shape[0])
