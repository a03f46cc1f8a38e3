"""The AIM ViTs: published numbers; on CLIP also freezing, inputs, and what it must survive (copying, compiling)."""

import copy
import json
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from aim_fast.errors import UsageError
from aim_fast.models.registry import argument_names, create_model, list_models

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}


def tiny(**overrides):
    """A small model whose adapters do something: their up-projections are not zero."""
    torch.manual_seed(0)
    model = create_model("aim_vit_demo", **{**TINY, **overrides})
    for name, parameter in model.named_parameters():
        if "D_fc2" in name or name == "temporal_embedding":
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def published_name(name):
    return f"cls_head.{name}" if name.startswith("fc_cls") else f"backbone.{name}"


def assert_relative(got, truth, tolerance=1e-8):
    assert got.shape == truth.shape
    assert got.dtype == truth.dtype
    assert (got - truth).norm() <= tolerance * truth.norm()


GOLDEN_MODELS = {
    "aim_vit_clip_1t": "aim_vit_b16_clip",
    "aim_vit_clip_2t": "aim_vit_b16_clip",
    "aim_vit_imagenet_1t": "aim_vit_b16_in21k",
    "aim_vit_imagenet_2t": "aim_vit_b16_in21k",
}


@pytest.fixture(scope="module", params=GOLDEN_MODELS)
def golden(request):
    with safe_open(GOLDEN / f"{request.param}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    model = create_model(GOLDEN_MODELS[request.param], **config).double().eval()
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    model.load_state_dict({name: state[published_name(name)] for name in model.state_dict()})
    assert len(state) == len(model.state_dict())
    return model, tensors, set(json.loads(metadata["trainable"]))


def test_published_trainable_set(golden):
    model, _, trainable = golden
    assert {published_name(name) for name, _ in model.trainable_parameters()} == trainable


def test_golden_outputs_and_every_gradient(golden):
    model, truth, _ = golden
    model = copy.deepcopy(model).requires_grad_(True)
    x = truth["input"].double().requires_grad_(True)
    features = model.forward_features(x)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(features.transpose(1, 2)[..., None, None], truth["features"])
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"].reshape(1))
    assert_relative(x.grad, truth["grad_input"])
    for name, parameter in model.named_parameters():
        assert_relative(parameter.grad, truth[f"grad/{published_name(name)}"])


def test_golden_gradients_while_the_trunk_is_frozen(golden):
    """The written-out backward, which the case above leaves for autograd where the trunk trains."""
    model, truth, _ = golden
    model = copy.deepcopy(model)
    x = truth["input"].double().requires_grad_(True)
    F.cross_entropy(model(x), truth["label"]).backward()
    assert_relative(x.grad, truth["grad_input"])
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad
        if parameter.requires_grad:
            assert_relative(parameter.grad, truth[f"grad/{published_name(name)}"])


@pytest.mark.parametrize(
    ("name", "overrides", "adapters", "rest"),
    [
        ("aim_vit_b16_clip", {"num_classes": 400, "num_tadapter": 1}, None, 10_966_672),
        ("aim_vit_b16_clip", {"num_classes": 174, "num_tadapter": 2}, None, 14_343_342),
        ("aim_vit_l14_clip", {"num_classes": 400, "num_tadapter": 1}, 37.84e6, None),
        ("aim_vit_l14_clip", {"num_classes": 174, "num_tadapter": 2}, 50.45e6, None),
    ],
)
def test_tunable_counts_are_the_published_ones(name, overrides, adapters, rest):
    with torch.device("meta"):
        model = create_model(name, **overrides)
    counts = {name: parameter.numel() for name, parameter in model.trainable_parameters()}
    if adapters is None:
        assert sum(counts.values()) == rest
    else:
        assert sum(n for name, n in counts.items() if "Adapter" in name) == pytest.approx(adapters, rel=2e-4)


def test_new_adapters_leave_the_frozen_model_as_it_is():
    adapted = create_model("aim_vit_demo", **TINY, num_tadapter=2).eval()
    frozen = create_model("aim_vit_demo", **TINY, adapters=()).eval()
    frozen.load_state_dict(adapted.state_dict(), strict=False)
    x = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(adapted(x), frozen(x), rtol=1e-5, atol=1e-6)


def test_frozen_rung_trains_the_head_only_and_ignores_frame_order():
    model = tiny(adapters=()).eval()
    torch.nn.init.zeros_(model.temporal_embedding)
    assert {name for name, _ in model.trainable_parameters()} == {"fc_cls.weight", "fc_cls.bias"}
    x = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(model(x), model(x.flip(2)))


@pytest.mark.parametrize("place", ["spatial", "temporal", "joint"])
def test_each_ablation_rung_has_its_adapter_alone(place):
    names = {"spatial": "S_Adapter", "temporal": "T_Adapter", "joint": "MLP_Adapter"}
    model = tiny(adapters=(place,)).eval()
    found = {name.split(".")[3] for name, _ in model.trainable_parameters() if "Adapter" in name}
    assert found == {names[place]}
    x = torch.randn(2, 3, 4, 32, 32)
    frozen = tiny(adapters=()).eval()
    frozen.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(model(x), frozen(x), atol=1e-5)


def test_temporal_attention_sees_other_frames_and_space_only_does_not():
    x = torch.randn(1, 3, 4, 32, 32)
    y = x.clone()
    y[:, :, 3] = torch.randn(1, 3, 32, 32)
    for adapters, sees in ((("temporal",), True), (("spatial", "joint"), False)):
        model = tiny(adapters=adapters).eval()
        same = torch.equal(model.forward_features(x)[:, 0], model.forward_features(y)[:, 0])
        assert same is not sees


def frames_and_floats(dtype):
    """Random uint8 frames [B, T, H, W, 3] and the same normalised by hand, [B, 3, T, H, W]."""
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values, dtype=dtype) for values in ((122.769, 116.74, 104.04), (68.493, 66.63, 70.321)))
    return frames, ((frames.to(dtype) - mean) / std).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_uint8_frames_equal_normalised_floats(dtype, tolerance):
    model = tiny().to(dtype).eval()
    frames, floats = frames_and_floats(dtype)
    assert_relative(model(frames), model(floats), tolerance)


def test_normalize_gives_the_float_form():
    frames, floats = frames_and_floats(torch.float32)
    torch.testing.assert_close(tiny().normalize(frames), floats)


@pytest.mark.parametrize("autocast", [True, False])
def test_uint8_in_bf16_is_about_as_precise_as_floats(autocast):
    model = tiny().eval()
    frames, floats = frames_and_floats(torch.float64)
    truth = copy.deepcopy(model).double().embed(floats)
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        errors = [(model.embed(x).double() - truth).norm() / truth.norm() for x in (frames, floats.float())]
    assert 0 < errors[0] <= 1.5 * errors[1]


def test_autocast_bf16_trains_within_the_precision_of_bf16():
    model = tiny(drop_path=0.0, head_dropout=0.0, num_tadapter=2)
    x, label = torch.randn(4, 3, 4, 32, 32), torch.tensor([0, 1, 2, 3])
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(x), label)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for _, p in model.trainable_parameters()]))
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() <= 0.05 * gradients[0].norm()


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(1, 3, 8, 32, 32),
        torch.zeros(1, 3, 4, 32, 40),
        torch.zeros(3, 4, 32, 32),
        torch.zeros(1, 4, 32, 32, 3),
        torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 32, 32, dtype=torch.int64),
    ],
)
def test_wrong_clips_are_named_in_one_line(clip):
    with pytest.raises(ValueError, match=r"expected a clip batch .*, got torch\.\w+ \[") as caught:
        tiny()(clip)
    assert "\n" not in str(caught.value)


def test_empty_batch_gives_empty_logits():
    assert tiny().eval()(torch.zeros(0, 4, 32, 32, 3, dtype=torch.uint8)).shape == (0, 5)


def test_published_weight_decay_rule():
    model = tiny(num_tadapter=2)
    free = model.no_weight_decay()
    assert free <= dict(model.named_parameters()).keys()
    decayed = {name for name, _ in model.trainable_parameters()} - free
    assert decayed >= {"temporal_embedding", "fc_cls.bias", "transformer.resblocks.1.T_Adapter_in.D_fc1.bias"}
    assert not {name for name in decayed if ".ln_" in name or name.startswith("ln_")}
    assert {"class_embedding", "positional_embedding", "ln_post.bias", "transformer.resblocks.0.ln_1.weight"} <= free


def test_head_dropout_and_droppath_act_only_in_training():
    model = tiny(drop_path=0.5)
    x = torch.randn(2, 3, 4, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_droppath_rates_grow_linearly():
    model = create_model("aim_vit_demo", depth=5, drop_path=0.2)
    rates = [block.drop_path.rate for block in model.transformer.resblocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 5))


def test_initialisation_of_head_and_adapters():
    model = create_model("aim_vit_b16_clip", depth=1, num_classes=400)
    assert model.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.fc_cls.bias.any()
    assert not model.temporal_embedding.any()
    adapter = model.transformer.resblocks[0].S_Adapter
    assert adapter.D_fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not any(t.any() for t in (adapter.D_fc1.bias, adapter.D_fc2.weight, adapter.D_fc2.bias))


def test_round_trips_of_state_copy_pickle_and_config():
    model = tiny(num_tadapter=2, mean=(1, 2, 3), activation="gelu").eval()
    assert not {"mean", "std"} & model.state_dict().keys()
    x = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    truth = model(x)
    again = create_model("aim_vit_demo", **json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    for twin in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), truth)
        names = [name for name, _ in twin.trainable_parameters()]
        assert names == [name for name, _ in model.trainable_parameters()]


def _train_once(step, x, label):
    torch.manual_seed(1)
    loss = F.cross_entropy(step(x), label)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("layout", ["uint8", "float"])
def test_compiled_without_graph_breaks_equals_eager(layout):
    _compare_compiled_with_eager(tiny(num_tadapter=2, drop_path=0.0, head_dropout=0.0), layout)


@pytest.mark.slow
def test_inference_compiled_by_inductor_equals_eager(no_graph_cache):
    """As deep as B/16: what the compiler does for one block must not grow with those before it."""
    model = tiny(depth=12).eval()
    x = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


def _compare_compiled_with_eager(model, layout):
    if layout == "uint8":
        x = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    else:
        x = torch.randn(2, 3, 4, 32, 32)
    label = torch.tensor([0, 1])
    loss = _train_once(model, x, label)
    gradients = {name: p.grad.clone() for name, p in model.trainable_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_train_once(compiled, x, label), loss)
    for name, parameter in model.trainable_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6)


def test_compiles_with_droppath():
    torch.compiler.reset()
    model = tiny(drop_path=0.5)
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(2, 3, 4, 32, 32)).sum()
    loss.backward()
    assert math.isfinite(loss.item())


def test_published_configuration_names_are_taken():
    model = create_model("aim_vit_b16_clip", input_resolution=32, width=32, layers=2, heads=4, patch_size=8)
    assert (model.img_size, model.embed_dim, model.depth, model.num_heads) == (32, 32, 2, 4)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("aim_vit_b16_clp", {}, "did you mean 'aim_vit_b16_clip'"),
        ("aim_vit_demo", {"num_frame": 8}, "did you mean 'num_frames'"),
        ("aim_vit_demo", {"width": 64, "embed_dim": 64}, "given twice"),
        ("aim_vit_demo", {"num_heads": 5}, "num_heads 5 does not divide"),
        ("aim_vit_demo", {"img_size": 50}, "no multiple of patch_size"),
        ("aim_vit_demo", {"num_frames": 0}, "num_frames must be"),
        ("aim_vit_demo", {"num_tadapter": 3}, "num_tadapter 3"),
        ("aim_vit_demo", {"drop_path": 1.5}, "drop_path 1.5"),
        ("aim_vit_demo", {"drop_path_mode": "sample"}, "drop_path_mode 'sample'"),
        ("aim_vit_demo", {"adapters": ("temporl",)}, "temporl"),
        ("aim_vit_demo", {"adapter_ratio": 0.001}, "no hidden unit"),
        ("aim_vit_demo", {"activation": "relu"}, "activation 'relu'"),
        ("aim_vit_demo", {"std": (1, 1)}, "three numbers"),
    ],
)
def test_wrong_names_and_values_are_usage_errors(name, overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model(name, **overrides)
    assert "\n" not in str(caught.value)


def test_the_arguments_are_listed_in_the_docstring():
    names = [*argument_names("aim_vit_b16_clip"), "input_resolution", "layers"]
    assert [name for name in names if not re.search(rf"\b{name}\b", create_model.__doc__)] == []


def test_every_listed_model_can_be_made():
    with torch.device("meta"):
        for name in list_models():
            assert create_model(name).num_frames in (8, 16, 32, 64)
