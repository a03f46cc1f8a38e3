"""The adapters of many blocks formed together: work on tensors the size of a parameter in launches that do not grow in
number with the blocks.

On a GPU each such launch costs as much as it takes to issue it, and a training step of K blocks has twenty a block.
Formed together (:mod:`aim_kernels.stacked_adapters`) they are one for all blocks, and so are the stacks of a widened
MLP,

    [Wfc_1; W1_1; Wfc_2; W1_2; ...]   and   [Wproj_1 | sW2_1 | Wproj_2 | sW2_2 | ...],

of which a block reads its part. They are made anew in every pass, so that weights may change in any way between two.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aim_kernels.bias_gradients import parts_of
from aim_kernels.formed_adapter import AdapterUse
from aim_kernels.lent import Lent
from aim_kernels.modules import AIMBlock
from aim_kernels.precision import compute_dtype, in_dtype
from aim_kernels.stacked_adapters import form_stacked
from aim_kernels.weights import FormedAdapter, MLPWeights, StackedMLP, require_gradient


@contextmanager
def formed_together(modules: Iterable[nn.Module], x: Tensor) -> Iterator[None]:
    """Within, each :class:`AIMBlock` among ``modules`` finds its adapters formed for an input ``x`` [B, T, N, D].

    On a GPU, where all of them are fused and frozen, and the stacks for those that are "fast" and not in eight bits.
    The factors of droppath are drawn as well; of two "fast" blocks, where no module is compiled by itself, the first
    runs the norm between them; and norms that were folded when the trunk was held are read so. Inference mode is left
    for one without gradients, whose tensors tell whether they were written to: a norm that was run ahead is none of a
    stream that a hook has changed.
    """
    modules = [*modules] if _gains(x) else []
    blocks = [block for block in modules if isinstance(block, AIMBlock)]
    lent = [block.read() for block in blocks]
    if not all(map(_served, blocks, lent)):
        blocks = []
    try:
        with ExitStack() as modes:
            if blocks and torch.is_inference_mode_enabled():
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.no_grad())
            for block, weights in zip(blocks, lent):
                block.lent = _folded(block, weights)
            _form_adapters(blocks, x)
            _stack_mlps(blocks)
            _draw_drops(blocks, x)
            _share_norms([] if any(map(_compiled, modules)) else blocks)
            yield
    finally:
        for block in blocks:
            block.lent = None
            block.drop_path.lent.clear()


def _gains(x: Tensor) -> bool:
    return x.is_cuda and x.numel() > 0 and not torch.compiler.is_compiling()


def _compiled(module: nn.Module) -> bool:
    """Whether it is compiled by itself: a compiler cannot read the stream that blocks of shared norms hand on."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _served(block: AIMBlock, lent: Lent) -> bool:
    return block.backend == "fused" and not require_gradient(*lent.plain, *lent.mlp)


def _folded(block: AIMBlock, lent: Lent) -> Lent:
    """With the norms that were folded when the trunk was held, where the weights have not changed since."""
    held, (first, attention), (second, mlp) = block.held_norms, lent.plain, lent.mlp
    if held is None or block.memory != "fast" or not held.holds((first, second), attention, mlp):
        return lent
    return Lent(lent.plain, held.before(attention), held.before(mlp), held.scaled, norm=second)


def _form_adapters(blocks: Sequence[AIMBlock], x: Tensor) -> None:
    alike: dict[Any, list[tuple[Lent, str, AdapterUse]]] = defaultdict(list)
    for block in blocks:
        lent = block.read()
        dtype = compute_dtype(x, lent.plain[1].qkv_weight)
        for name, use in block.adapter_uses().items():
            kinds = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in use.weights)
            alike[dtype, kinds].append((lent, name, use))
    for (dtype, _), found in alike.items():
        parts = parts_of(x.shape[:-1].numel())
        for (lent, name, _), formed in zip(found, form_stacked([use for *_, use in found], dtype, parts)):
            lent.formed[name] = formed


def _share_norms(blocks: Sequence[AIMBlock]) -> None:
    for block, following in itertools.pairwise(blocks):
        if block.memory == following.memory == "fast":
            block.read().ahead = following.read().before = following.first_norm()


def _draw_drops(blocks: Sequence[AIMBlock], x: Tensor) -> None:
    """Droppath's factors, one a row of ``x`` [B, T, N, D], in the order in which the blocks ask for them: on a GPU from
    one draw, elsewhere to the same bits as the blocks would draw them."""
    places = [
        block.drop_path
        for block in blocks
        for adapter in (block.T_Adapter, block.MLP_Adapter)
        if adapter is not None and block.drop_path.drops
    ]
    if not places:
        return
    shapes = [place.shape(x) for place in places]
    kept = [1.0 - place.rate for place in places]
    at_once = x.is_cuda and len(set(shapes)) == 1
    drawn = draw_at_once(kept, shapes[0], x) if at_once else [place.kept(x) for place in places]
    torch._foreach_div_(drawn, kept)
    factors = torch.stack([factor.expand(*x.shape[:-1], 1) for factor in drawn])
    for place, factor in zip(places, factors.unbind(0)):
        place.lent.append(factor)


def draw_at_once(kept: Sequence[float], shape: Sequence[int], x: Tensor) -> list[Tensor]:
    """For each of these probabilities a tensor of ``shape`` on the device of ``x``, 1 with it and else 0."""
    drawn = list(x.new_empty((len(kept), *shape), dtype=torch.float32).uniform_().unbind(0))
    torch._foreach_add_(drawn, list(kept))
    torch._foreach_floor_(drawn)
    return drawn


def _stack_mlps(blocks: Sequence[AIMBlock]) -> None:
    alike: dict[Any, list[tuple[Lent, MLPWeights, FormedAdapter]]] = defaultdict(list)
    for block in blocks:
        lent = block.read()
        adapter, mlp = lent.formed.get("MLP_Adapter"), lent.mlp[1]
        if adapter is not None and block.memory == "fast" and block.scaled.fc is None:
            alike[mlp.proj_weight.shape[0], adapter.w1.dtype, adapter.w1.device].append((lent, mlp, adapter))
    for (_, dtype, _), found in alike.items():
        rows: list[Tensor] = []
        biases: list[Tensor] = []
        columns: list[Tensor] = []
        ups, downs = [], []
        for _, mlp, adapter in found:
            frozen = [part for part in (mlp.gate_weight, mlp.fc_weight) if part is not None]
            rows += [*frozen, adapter.w1]
            biases += [*(part for part in (mlp.gate_bias, mlp.fc_bias) if part is not None), adapter.low_b1]
            columns += [mlp.proj_weight, adapter.w2]
            ups.append(sum(len(part) for part in (*frozen, adapter.w1)))
            downs.append(mlp.proj_weight.shape[1] + adapter.w2.shape[1])
        with torch.no_grad():
            up = torch.cat([in_dtype(part, dtype) for part in rows]).split(ups)
            bias = torch.cat([in_dtype(part, dtype) for part in biases]).split(ups)
            down = torch.cat([in_dtype(part, dtype) for part in columns], 1).split(downs, 1)
        for (lent, _, _), *parts in zip(found, up, bias, down):
            lent.stacked = StackedMLP(*parts)
