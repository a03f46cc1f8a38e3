"""ZeroI2V: the published numbers, its merge into the trunk, and checkpoints of its authors."""

import pytest
import torch

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from aim_kernels.temporal_shift import temporal_shift
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
SMALL = TINY | {"method": "zeroi2v", "shift_div": 8}


def drawn(trunk, **arguments):
    torch.manual_seed(0)
    model = create_model(trunk, **arguments).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module", params=["zeroi2v", "zeroi2v_long"])
def golden(request):
    case = peer_case(request.param)
    config = dict(case.config)
    shift = config.pop("stdha_cfg")
    config |= {"mlp_adapters": config.pop("num_tadapter"), "adapter_ratio": config.pop("mlp_ratio")}
    reach = 2 if "long_shift_div" in shift else 1
    config |= {"shift_div": shift["shift_div"], "shift_reach": reach, "method": "zeroi2v"}
    return config, case.state, case.truth, case.trainable


def published(config, state, **running):
    model = create_model("vit_b16_clip", **config, **running).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "frozen trunk"])
@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory, everything):
    config, state, truth, trainable = golden
    model = published(config, state, backend=backend, memory=memory)
    assert {model.published_name(name) for name, _ in model.trainable_parameters()} == trainable
    if everything:
        model.requires_grad_(True)
    found = gradients_of(model, truth)
    assert_relative(found.features.transpose(1, 2)[..., None, None], truth["features"])
    assert len(found.parameters) == (len(state) if everything else len(trainable))
    found.assert_golden()


def test_a_published_checkpoint_is_known_and_loaded(golden, tmp_path):
    _, state, _, _ = golden
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    found = identify(read_weights(tmp_path / "published.pth"), "published.pth")
    assert found.options["method"] == "zeroi2v"
    twin = create_model(found.model, **found.options | {"num_heads": 6, "shift_div": 6})
    assert load_weights(twin, tmp_path / "published.pth").kind == "aim"
    assert all(torch.equal(tensor, state[twin.published_name(name)]) for name, tensor in twin.state_dict().items())
    assert len(twin.state_dict()) == len(state)


def test_merged_into_a_plain_trunk_and_the_shift_it_gives_the_golden_values(golden):
    config, state, truth, _ = golden
    merged = published(config, state).merged()
    assert not [name for name in merged.state_dict() if "Adapter" in name]
    assert_relative(merged(truth["input"].double()), truth["logits"], 1e-10)
    with pytest.raises(UsageError, match="nothing here that merges"):
        merged.merged()


@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo"])
@pytest.mark.parametrize("others", [{}, {"mlp_adapters": 1}, {"shift_reach": 2}, {"head": "attentive"}])
def test_merged_equals_unmerged_whatever_the_form(trunk, others):
    model = drawn(trunk, **SMALL, **others)
    x = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    assert_relative(model.merged()(x), model(x), 1e-10)


def test_a_trunk_that_nothing_can_be_merged_into_is_refused():
    model = create_model(
        "timm:vit_small_patch16_dinov3", img_size=32, embed_dim=32, depth=1, num_heads=2, num_frames=2, method="zeroi2v"
    )
    with pytest.raises(UsageError, match="nothing can be merged into this trunk"):
        model.merged()
    with pytest.raises(UsageError, match="method aim has nothing"):
        create_model("vit_demo", **TINY).merged()


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", [2, 4])
def test_the_shift_is_that_of_the_paper_frame_by_frame_with_its_gradient(frames, groups):
    torch.manual_seed(0)
    qkv = torch.randn(2, frames, 3, 24, dtype=torch.float64, requires_grad=True)
    out = temporal_shift(qkv, groups, 2)
    wanted = qkv.detach().clone()
    for t in range(frames):
        for group, by in enumerate([-1, 1, -2, 2][:groups]):
            source = t + by if 0 <= t + by < frames else t
            for part in (8, 16):
                channels = slice(part + 2 * group, part + 2 * group + 2)
                wanted[:, t, :, channels] = qkv.detach()[:, source, :, channels]
    assert torch.equal(out, wanted)
    assert torch.autograd.gradcheck(lambda z: temporal_shift(z, groups, 2), (qkv,))


def test_starts_as_the_shifted_trunk_and_reads_other_frames():
    model = create_model("vit_demo", **SMALL).eval()
    merged = create_model("vit_demo", **SMALL, adapters_merged=True).eval()
    merged.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(model(x), merged(x), rtol=1e-4, atol=1e-5)
    other = x.clone()
    other[:, :, 3] = 0
    features = [model.forward_features(one)[0] for one in (x, other)]
    assert not torch.allclose(features[0][2], features[1][2], atol=1e-5)  # a neighbour
    torch.testing.assert_close(features[0][0], features[1][0])  # two blocks reach two frames


def test_dropout_is_drawn_once_for_forward_and_backward():
    """A block that runs twice for its memory has the same gradients."""
    found = []
    for memory in ("fast", "lean"):
        model = drawn("vit_demo", **SMALL, zero_dropout=0.5, head_dropout=0.0, memory=memory).train()
        torch.manual_seed(3)
        model(torch.ones(1, 3, 4, 32, 32, dtype=torch.float64)).sum().backward()
        found.append({name: parameter.grad for name, parameter in model.trainable_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(
    ("model", "frames", "overrides", "tunable", "gflops"),
    [
        ("vit_b16_clip", 8, {}, 14.210, 488.4),
        ("vit_b16_clip", 8, {"mlp_adapters": 1}, 10.659, 471.7),
        ("vit_b16_clip", 8, {"adapters_merged": True}, None, 421.5),
        ("vit_l14_clip", 32, {"adapters_merged": True}, None, 7777),
    ],
)
def test_has_the_published_parameters_and_products(model, frames, overrides, tunable, gflops):
    _, trainable, products = count_costs(model, {"method": "zeroi2v", "num_frames": frames, **overrides})
    if tunable:
        beside = 400 * 769 + 8 * 768 + 2 * 768  # head, temporal embedding, last norm
        assert (trainable - beside) / 1e6 == pytest.approx(tunable, rel=0.005)
    assert 3 * products / 1e9 == pytest.approx(gflops, rel=0.005)


def test_norms_and_the_temporal_embedding_take_no_weight_decay():
    model = create_model("vit_demo", **SMALL)
    free = {name for name, _ in model.trainable_parameters()} & model.no_weight_decay()
    assert free == {"temporal_embedding", "ln_post.weight", "ln_post.bias"}


def test_weights_of_another_method_are_refused_by_name(tmp_path):
    files = {}
    for method in ("zeroi2v", "aim", "st_adapter"):
        model = create_model("vit_demo", **TINY, method=method)
        files[method] = tmp_path / f"{method}.pth"
        torch.save(model.state_dict(), files[method])
    with pytest.raises(WeightsError, match="is a checkpoint of method zeroi2v: take --method zeroi2v"):
        load_weights(create_model("vit_demo", **TINY), files["zeroi2v"])
    for method in ("aim", "st_adapter"):
        with pytest.raises(WeightsError, match="is an AIM checkpoint|is a checkpoint of method st_adapter"):
            load_weights(create_model("vit_demo", **SMALL), files[method])
    with pytest.raises(WeightsError, match="make the model with mlp_adapters=2"):
        load_weights(create_model("vit_demo", **SMALL, mlp_adapters=1), files["zeroi2v"])
    save_trunk(create_model("vit_demo", **SMALL), tmp_path / "trunk.safetensors")
    assert load_weights(create_model("vit_demo", **SMALL), tmp_path / "trunk.safetensors").kind == "clip"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shift_div": 3, "shift_reach": 2}, "leaves no room for 4 groups"),
        ({"shift_div": 64}, "leaves no channel to shift"),
        ({"adapter_ratio": 0.01}, "leaves no hidden unit"),
        ({"shift_reach": 3}, r"shift_reach 3 is not in \[1, 2\]"),
    ],
)
def test_what_cannot_be_is_said(wrong, said):
    with pytest.raises(UsageError, match=said):
        create_model("vit_demo", **SMALL | wrong)
