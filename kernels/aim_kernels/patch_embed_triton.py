"""The Triton kernels of patch_embed: pixels to rows of patches, one pass over the tokens, and the temporal gradient.

``frames`` [B, T, H, W, 3] uint8, product [B, T, N − 1, D], tokens [B, T, N, D]; ``bias`` [D], and the class [D],
positional [N, D] and temporal embedding [T, D]. The mathematics is in :mod:`aim_kernels.patch_embed`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.block_shapes import block_shape
from aim_kernels.optional_triton import tl, triton
from aim_kernels.registration import architecture

SPAN = 16  # tiles that one program of the temporal gradient sums


@triton.jit
def _patches_kernel(
    frames_ptr,
    out_ptr,
    M,
    grid_rows,
    grid_columns,
    P: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
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
    product_ptr, bias_ptr, class_ptr, position_ptr, temporal_ptr, o_frame, o_t, o_n, m_row, N, D: tl.constexpr, o_column
):
    """x of rows (frame, n) before its norm, [ROWS, COLUMNS]."""
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
def _tokens_kernel(
    product_ptr,
    bias_ptr,
    class_ptr,
    position_ptr,
    temporal_ptr,
    weight_ptr,
    ln_bias_ptr,
    tokens_ptr,
    mean_ptr,
    rstd_ptr,
    M,
    T,
    N,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_row = o_row < M
    m_column = o_column < D
    m_tile = m_row[:, None] & m_column[None, :]
    o_frame = o_row // N
    b_x = _load_tokens(
        product_ptr,
        bias_ptr,
        class_ptr,
        position_ptr,
        temporal_ptr,
        o_frame,
        o_frame % T,
        o_row % N,
        m_row,
        N,
        D,
        o_column,
    )
    b_mean = tl.sum(tl.where(m_tile, b_x, 0.0), 1) / D
    b_centred = tl.where(m_tile, b_x - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + eps)
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_bias = tl.load(ln_bias_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_y = b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]
    o_tile = o_row[:, None] * D + o_column[None, :]
    tl.store(tokens_ptr + o_tile, b_y.to(tokens_ptr.dtype.element_ty), mask=m_tile)
    tl.store(mean_ptr + o_row, b_mean, mask=m_row)
    tl.store(rstd_ptr + o_row, b_rstd, mask=m_row)


@triton.jit
def _temporal_kernel(
    dtokens_ptr,
    product_ptr,
    bias_ptr,
    class_ptr,
    position_ptr,
    temporal_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    M,
    T,
    N,
    chunks,
    SPAN: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    i_t = i_program // chunks
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < D
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_sum = tl.zeros([COLUMNS], tl.float32)
    for i_step in range(SPAN):
        o_pair = ((i_program % chunks) * SPAN + i_step) * ROWS + tl.arange(0, ROWS)  # (clip, token) pairs of frame t
        m_row = o_pair < M
        o_frame = o_pair // N * T + i_t
        o_n = o_pair % N
        b_x = _load_tokens(
            product_ptr,
            bias_ptr,
            class_ptr,
            position_ptr,
            temporal_ptr,
            o_frame,
            o_frame % T,
            o_n,
            m_row,
            N,
            D,
            o_column,
        )
        o_row = o_frame * N + o_n
        m_tile = m_row[:, None] & m_column[None, :]
        b_g = tl.load(dtokens_ptr + o_row[:, None] * D + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
        b_g *= b_weight[None, :]
        b_mean = tl.load(mean_ptr + o_row, mask=m_row, other=0.0)
        b_rstd = tl.load(rstd_ptr + o_row, mask=m_row, other=0.0)
        b_normal = tl.where(m_tile, (b_x - b_mean[:, None]) * b_rstd[:, None], 0.0)
        b_average = tl.sum(b_g, 1) / D
        b_slope = tl.sum(b_g * b_normal, 1) / D
        b_sum += tl.sum(b_rstd[:, None] * (b_g - b_average[:, None] - b_normal * b_slope[:, None]), 0)
    tl.store(partial_ptr + i_program * D + o_column, b_sum, mask=m_column)


def launch_shape(columns: int, target: int) -> tuple[dict[str, int], dict[str, int]]:
    """Rows and columns of a tile that holds rows of ``columns`` whole, and the launch options."""
    shape = block_shape("layer_norm", columns, target)
    constants = {"ROWS": shape.rows, "COLUMNS": triton.next_power_of_2(columns)}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


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
    constants, options = launch_shape(d, architecture(embedded))
    _tokens_kernel[(triton.cdiv(mean.numel(), constants["ROWS"]),)](
        embedded,
        *(x.contiguous() for x in (bias, first, position, temporal, ln_weight, ln_bias)),
        out,
        mean,
        rstd,
        M=mean.numel(),
        T=t,
        N=n + 1,
        eps=eps,
        D=d,
        **constants,
        **options,
    )
    return out, embedded, mean, rstd


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
    constants, options = launch_shape(d, architecture(product))
    chunks = triton.cdiv(b * n, constants["ROWS"] * SPAN)
    partial = product.new_empty((t, chunks, d), dtype=torch.float32)
    _temporal_kernel[(t * chunks,)](
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
    constants, options = launch_shape(padded, architecture(frames))
    _patches_kernel[(triton.cdiv(patches.shape[0], constants["ROWS"]),)](
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
    return F.linear(patches, F.pad(folded, (0, padded - depth))).view(b, t, -1, folded.shape[0])
