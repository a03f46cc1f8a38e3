"""The counted step beside what others counted: the profile and the peaks of a card, torch's counter of FLOPs."""

import ast
import inspect
import json
import pkgutil
from collections import Counter
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

import aim_kernels
from aim_fast.tuning.calls import calls_of_step
from aim_kernels import optional_triton
from aim_kernels.formed_adapter import fold_projection
from aim_kernels.scaled_rows import EIGHT_BITS
from aim_kernels.weights import AdapterWeights
from bench.counted_step import OWN_PRODUCTS, count_step
from bench.fake_gpu import fake_gpu
from bench.goals import RESULTS
from bench.step import loss_of, make_sides

pytestmark = pytest.mark.stack

MEASURED = json.loads((RESULTS / "nvidia-h200-step.json").read_text())
PROFILE = json.loads((RESULTS / "nvidia-h200-profile.json").read_text())["sides"]["published"]
SMALL = {"model": "aim_vit_demo", "frames": 2, "batch": 3}


@pytest.fixture(scope="module")
def published():
    return count_step(side="published")


def profiled(*words: str) -> int:
    """Launches of the kernels with one of these words in their names."""
    return sum(count for name, count, _ in PROFILE["kernels"] if any(word in name for word in words))


def test_launches_are_those_of_a_card(published):
    counted = Counter(kernel.name for kernel in published.kernels)
    products = counted["mm"] + counted["addmm"] + counted["bmm"]
    assert products - profiled("nvjet_", "cutlass_80_wmma") in (0, 1, 2)  # the profile's shortest kernels are cut off
    assert counted["split-K sum"] == profiled("splitKreduce")
    assert counted["native_layer_norm"] == profiled("vectorized_layer_norm_kernel")
    assert counted["_scaled_dot_product_cudnn_attention"] == profiled("native_sdpa_sm90_flash_fprop")
    assert counted["_scaled_dot_product_cudnn_attention_backward"] == profiled("native_sdpa_sm90_flash_bprop")
    assert counted["_fused_adamw"] == profiled("FusedOptimizer")
    assert len(published.kernels) == pytest.approx(PROFILE["launches"] - profiled("Memset"), rel=0.04)


def test_the_peak_is_that_of_a_card(published):
    assert published.peak_bytes == pytest.approx(MEASURED["peak_mib"]["published"] * 2**20, rel=0.01)


def test_products_are_those_that_torch_counts():
    sides = make_sides(SMALL["model"], SMALL["frames"], "cpu")
    model = sides["published"].train()
    clips = torch.zeros(SMALL["batch"], SMALL["frames"], model.img_size, model.img_size, 3, dtype=torch.uint8)
    labels = torch.zeros(SMALL["batch"], dtype=torch.long)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of(model, clips, labels, "cpu", torch.float32).backward()
    counted = count_step(side="published", dtype=torch.float32, **SMALL)
    assert sum(kernel.flop for kernel in counted.kernels) == counter.get_total_flops() > 0


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_every_call_of_an_operator_is_a_launch(memory):
    model = make_sides(SMALL["model"], SMALL["frames"], "cpu")[memory].train()
    clips = torch.zeros(SMALL["batch"], SMALL["frames"], model.img_size, model.img_size, 3, dtype=torch.uint8)
    labels = torch.zeros(SMALL["batch"], dtype=torch.long)
    calls: Counter[str] = Counter()
    for call, times in calls_of_step(model, lambda x, y: loss_of(model, x, y, "cpu"), [clips, labels]).items():
        calls[call.operator] += times
    counted = Counter(kernel.name for kernel in count_step(side=memory, **SMALL).kernels if kernel.own)
    for operator in ("temporal_attention", "temporal_attention_backward"):
        direction = "" if operator.endswith("backward") else "_forward"
        assert counted[f"{operator}{direction}_kernel"] == calls[operator] > 0


def test_what_is_kept_takes_more_room_than_what_is_formed_again():
    fast, balanced, lean = (count_step(side=word, **SMALL) for word in ("fast", "balanced", "lean"))
    assert fast.held_bytes > balanced.held_bytes == lean.held_bytes  # it folds norms into weights beside them
    assert fast.peak_bytes > balanced.peak_bytes > lean.peak_bytes > lean.held_bytes
    assert len(fast.kernels) < len(lean.kernels)


def test_a_larger_batch_moves_more_by_the_same_launches():
    one, two = (count_step(**{**SMALL, "batch": batch}) for batch in (6, 12))  # more than one chunk of rows to sum up
    assert [kernel.name for kernel in one.kernels] == [kernel.name for kernel in two.kernels]
    assert 1.5 < sum(k.bytes for k in two.kernels if k not in two.small) / sum(k.bytes for k in one.kernels) < 2.1


def test_every_product_of_a_triton_kernel_is_counted():
    found = set()
    for module in pkgutil.iter_modules(aim_kernels.__path__):
        if module.name.startswith("_"):
            continue
        functions = {
            n: f for n, f in vars(import_module(f"aim_kernels.{module.name}")).items() if isinstance(f, JITFunction)
        }
        for name, function in functions.items():
            called = {ast.unparse(node.func) for node in ast.walk(function.parse()) if isinstance(node, ast.Call)}
            if name.endswith("_kernel") and (
                "tl.dot" in called
                or any("tl.dot" in inspect.getsource(functions[c].fn) for c in called & functions.keys())
            ):
                found.add(name)
    assert found == OWN_PRODUCTS.keys()


@pytest.mark.slow
def test_products_in_eight_bits_are_those_of_the_frozen_weights():
    model = make_sides(SMALL["model"], SMALL["frames"], "cpu", EIGHT_BITS)["fast"].train()
    clips = torch.zeros(SMALL["batch"], SMALL["frames"], model.img_size, model.img_size, 3, dtype=torch.uint8)
    labels = torch.zeros(SMALL["batch"], dtype=torch.long)
    calls: Counter[str] = Counter()
    step = calls_of_step(model, lambda x, y: loss_of(model, x, y, "cpu", torch.bfloat16), [clips, labels])
    for call, times in step.items():
        calls[call.operator] += times
    counted = count_step(dtype=EIGHT_BITS, **SMALL)
    own = Counter(kernel.name for kernel in counted.kernels if kernel.own)
    for kernel, operator in (("activation", "scaled_wide_product"), ("slope", "scaled_wide_product_backward")):
        assert own[f"scaled_{kernel}_kernel"] == calls[operator] > 0
    assert 0 < own["scaled_rows_kernel"] < calls["scaled_rows"]  # a norm's backward pass writes some
    narrow = [kernel for kernel in counted.kernels if kernel.dtype == EIGHT_BITS]
    assert {kernel.name for kernel in narrow} == {"_scaled_mm"}
    plain, width, hidden = count_step(**SMALL), model.embed_dim, 4 * model.embed_dim
    assert {kernel.product[1:] for kernel in narrow} == {
        *((3 * width, width), (width, 3 * width), (width, width), (hidden, width), (width, hidden)),
    }
    assert sum(k.flop for k in counted.kernels) == pytest.approx(sum(k.flop for k in plain.kernels), rel=0.05)
    assert counted.held_bytes > plain.held_bytes  # two bytes a weight more


def test_a_folded_bias_keeps_its_precision_under_autocast():
    """Forward forms it under autocast, backward outside."""
    with fake_gpu(90, launch=lambda *_, **__: None), torch.autocast("cuda", torch.bfloat16):
        weights = AdapterWeights(*(torch.empty(*size, device="cuda") for size in ((8, 16), (8,), (16, 8), (16,))))
        reads = torch.empty(16, 16, device="cuda", dtype=torch.bfloat16), torch.empty(16, device="cuda")
        assert fold_projection(weights, reads, weights.w1.bfloat16())[1].dtype == torch.float32
        assert torch.addmv(weights.b1, weights.w1, reads[1]).dtype == torch.bfloat16


def test_torch_is_as_it_was_after_a_count():
    count_step(**SMALL)
    assert "is_cuda" not in vars(FakeTensor)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        x = torch.empty(2, 2)
        assert (x @ x).dtype == torch.bfloat16
    assert not torch.cuda.is_available() or torch.cuda.is_bf16_supported() is not None


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(optional_triton, "INSTALLED", False)
    with pytest.raises(RuntimeError, match="pip install triton"):
        count_step(**{**SMALL, "batch": 7})
