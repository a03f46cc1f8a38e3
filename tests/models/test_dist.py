"""DiST: the published numbers, its frames, and checkpoints of its authors."""

import math

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.loading import load_weights
from aim_fast.models.methods.dist_network import _over_frames
from aim_fast.models.registry import create_model
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_frames": 4, "num_classes": 5}
SMALL = TINY | {"method": "dist", "dist_width": 64, "dist_temporal": 8, "dist_pooling": 1}


@pytest.fixture(scope="module")
def golden():
    case = peer_case("dist")
    config = case.config
    side = config["dist"]
    overrides = {
        "img_size": config["image_resolution"],
        "patch_size": config["vision_patch_size"],
        "embed_dim": config["vision_width"],
        "depth": config["vision_layers"],
        "num_heads": 1,
        "num_frames": config["num_frames"],
        "dist_width": side["INTEGRATION_DIM"],
        "dist_temporal": side["TEMPORAL_DIM"],
        "dist_pooling": side["ADA_POOLING_LAYERS"],
        "class_names": ["left", "right", "up", "down"],
        "output_dim": config["embed_dim"],
        "vocab_size": config["vocab_size"],
        "text_width": config["transformer_width"],
        "text_depth": config["transformer_layers"],
    }
    return overrides, case.state, case.truth, case.trainable


@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "frozen trunk"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_golden_outputs_and_every_gradient(golden, memory, everything):
    overrides, state, truth, trainable = golden
    model = create_model("vit_b16_clip", method="dist", head="text", **overrides, memory=memory).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    texts = model.text(truth["tokens"])
    assert_relative(texts, truth["text_features"])
    model.class_embeddings, model.stale = torch.nn.functional.normalize(texts, dim=-1).detach(), False
    if everything:
        model.requires_grad_(True)
        for unread in (model.ln_post, model.text):
            unread.requires_grad_(False)
    found = gradients_of(model, truth)
    assert_relative(found.features[:, 0], truth["features"])
    assert everything or {model.published_name(name) for name in found.parameters} == trainable
    found.assert_golden()


@pytest.mark.parametrize(
    ("model", "frames", "tunable", "gflops"),
    [("vit_b16_clip", 8, 26.105, 163.8), ("vit_b16_clip", 32, 26.253, 655.3), ("vit_l14_clip", 32, 39.868, 2833.0)],
)
def test_has_the_published_parameters_and_products(model, frames, tunable, gflops):
    _, trainable, products = count_costs(model, {"method": "dist", "head": "text", "num_frames": 2 * frames})
    assert trainable / 1e6 == pytest.approx(tunable, rel=1e-3)
    assert products / 1e9 == pytest.approx(gflops, rel=0.005)


def test_frames_come_in_pairs_and_its_logits_need_both():
    with pytest.raises(UsageError, match="num_frames 5 is odd: method dist takes frames in pairs"):
        create_model("vit_demo", **SMALL | {"num_frames": 5})
    model = create_model("vit_demo", **SMALL).eval()
    x = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    other = x.clone()
    other[:, 1] = 0  # which the trunk does not see
    assert not torch.equal(model(x), model(other))
    assert torch.equal(model.forward_bottom(x), model.forward_bottom(other))


def test_a_published_checkpoint_of_both_towers_is_loaded(golden, tmp_path):
    overrides, state, *_ = golden
    torch.save({"model_state": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "whole.pyth")
    model = create_model("vit_b16_clip", method="dist", head="text", **overrides)
    assert load_weights(model, tmp_path / "whole.pyth").kind == "aim"
    held = {model.published_name(name): tensor for name, tensor in model.state_dict().items()}
    assert held.keys() == state.keys() - {"visual.proj"}  # which nothing reads
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_clip_shorter_than_the_convolution_has_its_values_and_finite_gradients(frames):
    torch.manual_seed(0)
    conv, x = torch.nn.Conv3d(96, 96, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, frames, 16, 96)
    grid = x.unflatten(2, (4, 4)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(_over_frames(conv.double(), grid.double()), conv(grid.double()))
    conv = conv.float()
    for _ in range(20):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = _over_frames(conv, grid)
        left = [torch.full((size,), math.nan) for size in (5_000, 20_000, 100_000, 300_000) for _ in range(3)]
        del left  # for what is not written before it is read
        found.float().square().sum().backward()
        assert conv.weight.grad.isfinite().all()
