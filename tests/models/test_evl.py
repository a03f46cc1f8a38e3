"""EVL: the published numbers, what it starts as, what it keeps, and checkpoints of its authors."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

SIZES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}
DECODER = {"decoder_num_layers": "decoder_layers", "decoder_num_heads": "decoder_heads"}

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
SMALL = TINY | {"method": "evl"}


@pytest.fixture(scope="module")
def golden():
    case = peer_case("evl")
    config = dict(case.config)
    assert config.pop("decoder_qkv_dim") == config["width"]
    assert config.pop("decoder_mlp_factor") == 4
    overrides = {(SIZES | DECODER).get(name, name): value for name, value in config.items()}
    return overrides, case.state, case.truth, case.trainable, case.zero


@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "frozen trunk"])
@pytest.mark.parametrize(("backend", "memory"), [("fused", "fast"), ("fused", "lean"), ("reference", "fast")])
def test_golden_outputs_and_every_gradient(golden, backend, memory, everything):
    overrides, state, truth, trainable, zero = golden
    model = create_model("vit_b16_clip", method="evl", **overrides, backend=backend, memory=memory).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    if everything:
        model.requires_grad_(True)
        model.ln_post.requires_grad_(False)  # which nothing reads
    normed = []
    model.side.norm.register_forward_pre_hook(lambda _, given: normed.append(given[0]))
    found = gradients_of(model, truth)
    assert_relative(normed[0][:, 0], truth["features"])
    assert everything or {model.published_name(name) for name in found.parameters} == trainable
    found.assert_golden(zero)


def test_a_published_checkpoint_with_its_trunk_is_known_loaded_and_written_again(golden, tmp_path):
    overrides, state, *_ = golden
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "whole.pth")
    found = identify(read_weights(tmp_path / "whole.pth"), "whole.pth")
    twin = create_model(found.model, **found.options | {"num_heads": 2, "decoder_heads": 4})
    assert load_weights(twin, tmp_path / "whole.pth").kind == "aim"
    published = {twin.published_name(name): tensor for name, tensor in twin.state_dict().items()}
    assert published.keys() == state.keys() - {"visual.proj"}
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in published.items())
    assert twin.method.decoder_layers == overrides["decoder_layers"]


@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo", "timm:vit_small_patch16_dinov3"])
@pytest.mark.parametrize("frames", [1, 4])
def test_fused_is_the_published_form_on_any_trunk(trunk, frames):
    """Also where blocks rotate queries and keys, have registers or no class token."""
    sizes = {name: size for name, size in SMALL.items() if name != "patch_size" or "timm" not in trunk}
    models = []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        models.append(create_model(trunk, **sizes | {"num_frames": frames}, backend=backend).double().eval())
        for parameter in models[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    truth = {name: parameter.detach() for name, parameter in models[0].named_parameters()}
    models[1].load_state_dict(truth, strict=False)
    x = torch.randn(2, 3, frames, 32, 32, dtype=torch.float64)
    losses = [F.cross_entropy(model(x), torch.tensor([0, 1])) for model in models]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    for (name, found), (_, wanted) in zip(models[0].trainable_parameters(), models[1].trainable_parameters()):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_starts_with_the_published_initial_values():
    torch.manual_seed(0)
    side = create_model("vit_demo", **SMALL).side
    zeros = (side.cls_token, *side.temporal_pos_embed, *side.cross_attention.parameters())
    assert not any(tensor.any() for tensor in zeros)
    layer = side.decoder_layers[0]
    assert layer.attn.k_proj.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
    assert not layer.attn.k_proj.bias.any()
    assert 0 < layer.mlp.fc1.bias.abs().max() < 1e-5
    assert create_model("vit_demo", **SMALL).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("model", "frames", "tunable", "gflops"), [("vit_b16_clip", 8, 33.183, 453.9), ("vit_l14_clip", 32, 58.826, 8084.6)]
)
def test_has_the_published_parameters_and_products(model, frames, tunable, gflops):
    _, trainable, products = count_costs(model, {"method": "evl", "num_frames": frames})
    assert trainable / 1e6 == pytest.approx(tunable, rel=1e-4)
    assert 3 * products / 1e9 == pytest.approx(gflops, rel=0.005)


def test_the_lower_blocks_can_be_stored():
    model = create_model("vit_demo", **SMALL, decoder_layers=1).eval()
    assert model.frozen_part == "input of block 1 of 2"
    x = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(model(model.frozen_features(x)), model(x))


def test_a_head_of_tokens_and_windows_are_refused():
    with pytest.raises(UsageError, match="method evl leaves no tokens to head attentive: take head linear"):
        create_model("vit_demo", **SMALL, head="attentive")
    with pytest.raises(UsageError, match="takes no method evl"):
        create_model("swin_demo", method="evl")


def test_weights_of_another_method_are_refused_by_name(tmp_path):
    model = create_model("vit_demo", **SMALL)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "evl.safetensors")
    with pytest.raises(WeightsError, match="is a checkpoint of method evl: take --method evl"):
        load_weights(create_model("vit_demo", **TINY), tmp_path / "evl.safetensors")
    save_file(
        {name: value.contiguous() for name, value in create_model("vit_demo", **TINY).state_dict().items()},
        tmp_path / "aim.safetensors",
    )
    with pytest.raises(WeightsError, match="is an AIM checkpoint"):
        load_weights(model, tmp_path / "aim.safetensors")
