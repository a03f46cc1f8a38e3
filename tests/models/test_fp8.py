"""Every method that freezes the trunk, with its products in fp8: near the exact gradients, by every memory word."""

import copy

import pytest
import torch
from torch import nn

from aim_fast.errors import UsageError
from aim_fast.models.registry import create_model
from aim_fast.training.devices import Place, choose_dtype, single_place
from aim_fast.training.trained_model import move_to_place

pytestmark = pytest.mark.stack

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
FRAMES = {"num_frames": 2, "num_classes": 3}
METHODS = ("aim", "st_adapter", "zeroi2v", "lora", "bitfit", "probe", "evl", "dist", "side4video")


def model_of(method):
    torch.manual_seed(0)
    model = create_model("vit_demo", method=method, **SIZES, **FRAMES)
    for name, parameter in model.named_parameters():
        if any(word in name for word in ("dapter", "lora", "temporal_embedding")):
            nn.init.normal_(parameter, std=0.05)
    return model.eval()  # without droppath


def gradients(model, autocast):
    clips = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(clips).float().square().sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_fp8(model):
    model = copy.deepcopy(model)
    lines = move_to_place(model, single_place("cpu", "fp8"))
    return model, lines


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_near_its_exact_gradients(method):
    model = model_of(method)
    truth = gradients(model, False)
    held, (line,) = in_fp8(model)
    assert line.startswith("8 of the trunk's 8 weights are multiplied in fp8")
    found = {}
    for memory in ("fast", "balanced", "lean"):
        for block in held.row:
            block.memory = memory
        found[memory] = gradients(held, True)
        assert found[memory].keys() == truth.keys()
        flat, exact = (torch.cat([g[name].flatten() for name in truth]) for g in (found[memory], truth))
        error = ((flat - exact).norm() / exact.norm()).item()
        assert 1e-3 < error < 0.15, (memory, error)


@pytest.mark.parametrize(("name", "size"), [("vit_small_patch16_dinov3", 64), ("eva02_tiny_patch14_224", 56)])
def test_trunks_with_rotations_and_gates(name, size):
    torch.manual_seed(0)
    model = create_model(f"timm:{name}", depth=1, img_size=size, num_frames=1, num_classes=2).eval()
    held, (line,) = in_fp8(model)
    assert line.startswith("4 of the trunk's 4 weights"), line
    clip = torch.randn(1, 3, 1, model.img_size, model.img_size)
    with torch.no_grad():
        exact = model.forward_features(clip)
        with torch.autocast("cpu", torch.bfloat16):
            found = held.forward_features(clip)
    assert 1e-3 < ((found.float() - exact).norm() / exact.norm()).item() < 0.15


def test_what_fp8_cannot_serve_is_refused_in_a_line(monkeypatch):
    plain = create_model("vit_demo", backend="reference", **SIZES, **FRAMES)
    for model in (plain, create_model("vit_demo", method="full", **SIZES, **FRAMES)):
        with pytest.raises(UsageError, match="of which this model's blocks run none.*use --precision bf16"):
            move_to_place(model, single_place("cpu", "fp8"))
    monkeypatch.setattr("aim_kernels.scaled_product.architecture_of", lambda device: 80)
    with pytest.raises(UsageError, match=r"fp8 does not run on cuda: its compute capability is 8.0, below 8.9; use"):
        choose_dtype("fp8", torch.device("cuda"))


def test_a_place_says_what_it_computes_in():
    assert single_place("cpu", "fp8").precision == "bfloat16, frozen products in fp8"
    assert Place(0, 1, torch.device("cpu"), torch.float32).precision == "float32"
