"""From uint8 frames to the first block's input: normalisation, patch embedding, embeddings and ln_pre.

    x[b, t, 0] = class + pos[0] + temporal[t];   x[b, t, n] = W'·(pixels of patch n − 128) + bias + pos[n] + temporal[t]
    tokens = ln_pre(x);   W' = W/std,  bias = Σ W'·(128 − mean)

``frames`` [B, T, H, W, 3] uint8, N = 1 + (H/p)(W/p) tokens a frame, ``tokens`` [B, T, N, D]. Normalising is folded into
the frozen weight; pixels less 128 are exact in bf16. Three passes: pixels to rows of patches, the library's product,
and one pass over the tokens for all the rest. Of the stem only ``temporal_embedding`` trains; its gradient sums the
norm's input gradient over B and N. Kept for backward: the product's result, in its dtype. Source: CLIP's ViT; AIM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import layer_norm, patch_embed_triton
from aim_kernels.precision import compute_dtype
from aim_kernels.registration import operator, ops

MIDDLE = 128.0  # pixels minus this are exact in bf16, and small enough that a rounded weight does little harm


def patch_embed(
    frames: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    temporal_embedding: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    eps: float = 1e-5,
) -> Tensor:
    """``tokens`` [B, T, N, D] in the dtype of ``positional_embedding``.

    ``weight`` [D, 3, p, p] as of a convolution without bias, ``class_embedding`` [D], ``positional_embedding`` [N, D],
    ``temporal_embedding`` [T, D], ``ln_weight``, ``ln_bias`` [D]; ``mean``, ``std`` of R, G and B on the scale of 0 to
    255. The product runs in autocast's dtype, else in that of ``weight``. Differentiable in ``temporal_embedding``;
    where another tensor requires a gradient the reference runs instead. Raises ValueError for shapes that cannot be.
    """
    p, width = weight.shape[-1], weight.shape[0]
    if (
        frames.dtype != torch.uint8
        or frames.ndim != 5
        or frames.shape[-1] != 3
        or any(s % p for s in frames.shape[2:4])
    ):
        raise ValueError(
            f"expected uint8 frames [B, T, H, W, 3] of {p}-pixel patches, got {frames.dtype} {list(frames.shape)}"
        )
    tokens = 1 + (frames.shape[2] // p) * (frames.shape[3] // p)
    if positional_embedding.shape != (tokens, width) or temporal_embedding.shape != (frames.shape[1], width):
        found = f"{list(positional_embedding.shape)} and {list(temporal_embedding.shape)}"
        wanted = f"[{tokens}, {width}] and [{frames.shape[1]}, {width}]"
        raise ValueError(f"positional and temporal embedding must be {wanted} for these frames, not {found}")
    frozen = (weight, class_embedding, positional_embedding, ln_weight, ln_bias)
    if any(x.requires_grad for x in frozen) or not frames.numel():
        tensors = (class_embedding, positional_embedding, temporal_embedding, ln_weight, ln_bias)
        return patch_embed_reference(frames, weight, *tensors, mean, std, eps)
    folded, bias = fold_normalisation(weight, mean, std, compute_dtype(frames, weight))
    return ops.patch_embed(
        *(frames, folded, bias, class_embedding, positional_embedding, temporal_embedding, ln_weight, ln_bias),
        *(eps, positional_embedding.dtype),
    )[0]


def patch_embed_reference(
    frames: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    temporal_embedding: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    eps: float = 1e-5,
) -> Tensor:
    """The same in plain torch, normalising the pixels first; differentiable in every tensor but ``frames``."""
    precise = torch.promote_types(weight.dtype, torch.float32)
    # filled on the device: a copy from the host would wait for it, and cannot be captured in a CUDA graph
    shift, scale = (torch.stack([frames.new_full((), v, dtype=precise) for v in values]) for values in (mean, std))
    pixels = (frames.to(precise) - shift) / scale
    x = F.linear(patches(pixels.to(weight.dtype), weight.shape[-1]), weight.permute(0, 2, 3, 1).flatten(1))
    first = class_embedding.to(x.dtype).expand(*x.shape[:2], 1, -1)
    x = torch.cat([first, x], 2) + positional_embedding + temporal_embedding[:, None]
    return F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps).to(positional_embedding.dtype)


def fold_normalisation(
    weight: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """W' [D, p·p·3] in ``dtype`` for pixels less 128, and the bias [D] of that rounded weight, in float32 at least."""
    return ops.fold_normalisation(weight, list(mean), list(std), dtype)


def fold_normalisation_reference(
    weight: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    folded = torch.stack([wide[:, c] / std[c] for c in range(3)], -1).to(dtype)  # [D, p, p, 3]
    sums = folded.to(wide.dtype).sum((1, 2))
    bias = sums[:, 0] * (MIDDLE - mean[0]) + sums[:, 1] * (MIDDLE - mean[1]) + sums[:, 2] * (MIDDLE - mean[2])
    return folded.flatten(1), bias


def patches(pixels: Tensor, p: int) -> Tensor:
    """[B, T, H, W, 3] to [B, T, (H/p)(W/p), p·p·3], pixels of a patch row by row."""
    b, t, h, w, _ = pixels.shape
    return pixels.reshape(b, t, h // p, p, w // p, p * 3).transpose(3, 4).reshape(b, t, (h // p) * (w // p), p * p * 3)


def _fits(frames: Tensor, folded: Tensor, *_: Any) -> bool:
    return max(folded.shape) <= layer_norm.MAX_WIDTH


def _sum_of_embeddings(product: Tensor, stem: tuple[Tensor, ...]) -> Tensor:
    """x [B, T, N, D] before its norm, in float32 at least."""
    precise = torch.promote_types(product.dtype, torch.float32)
    bias, first, position, temporal = (x.to(precise) for x in stem)
    table = torch.cat([position[:1] + first, position[1:] + bias]) + temporal[:, None]  # [T, N, D]
    x = table.new_empty(product.shape[0], *table.shape)
    x[:, :, :1] = table[:, :1]
    torch.add(table[:, 1:], product, out=x[:, :, 1:])
    return x


def _forward_products(
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
    stem = (bias, first, position, temporal)
    side = round((folded.shape[1] // 3) ** 0.5)
    product = F.linear(patches(frames, side).to(folded.dtype).sub_(MIDDLE), folded)
    tokens, mean, rstd = ops.layer_norm(_sum_of_embeddings(product, stem), ln_weight, ln_bias, eps, dtype)
    return tokens, product, mean, rstd


def _backward_products(
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
    x = _sum_of_embeddings(product, (bias, first, position, temporal))
    dx = ops.layer_norm_backward(dtokens, x, ln_weight, mean, rstd, None)
    return dx.sum((0, 2)).to(temporal.dtype)


def _fold_triton(
    weight: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    folded, bias = _fold_fake(weight, mean, std, dtype)
    patch_embed_triton.fold(weight, [MIDDLE - value for value in mean], std, folded, bias)
    return folded, bias


def _fold_fake(
    weight: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty((len(weight), weight[0].numel()), dtype=dtype), weight.new_empty(len(weight), dtype=wide)


def _forward_fake(
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
    rows = (frames.shape[0], frames.shape[1], position.shape[0])
    product = folded.new_empty((*rows[:2], rows[2] - 1, folded.shape[0]))
    mean, rstd = (bias.new_empty(rows) for _ in range(2))
    return folded.new_empty((*rows, folded.shape[0]), dtype=dtype), product, mean, rstd


def _backward_fake(
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
    return temporal.new_empty(temporal.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, bias, first, position, temporal, ln_weight, *_ = inputs
    _, product, mean, rstd = output
    ctx.save_for_backward(product, bias, first, position, temporal, ln_weight, mean, rstd)
    ctx.mark_non_differentiable(product, mean, rstd)
    ctx.set_materialize_grads(False)  # of the product it would be a tensor of zeros of its size


def _gradient(ctx: Any, dtokens: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[5]
    dtemporal = ops.patch_embed_backward(dtokens, *ctx.saved_tensors) if needed else None
    return (*(None,) * 5, dtemporal, *(None,) * 4)


operator(
    "fold_normalisation",
    "(Tensor weight, float[] mean, float[] std, ScalarType dtype) -> (Tensor, Tensor)",
    reference=fold_normalisation_reference,
    triton=_fold_triton,
    fits=lambda weight, *_: weight[0].numel() <= layer_norm.MAX_WIDTH,
    fake=_fold_fake,
)
_STEM = "Tensor bias, Tensor class_embedding, Tensor positional_embedding, Tensor temporal_embedding, Tensor ln_weight"
operator(
    "patch_embed",
    f"(Tensor frames, Tensor folded, {_STEM}, Tensor ln_bias, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_forward_products,
    triton=patch_embed_triton.forward,
    fits=_fits,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
operator(
    "patch_embed_backward",
    f"(Tensor dtokens, Tensor product, {_STEM}, Tensor mean, Tensor rstd) -> Tensor",
    reference=_backward_products,
    triton=patch_embed_triton.backward,
    fits=lambda dtokens, *_: dtokens.shape[-1] <= layer_norm.MAX_WIDTH,
    fake=_backward_fake,
)
