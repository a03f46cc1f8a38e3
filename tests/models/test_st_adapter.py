"""ST-Adapter: the published numbers, what it starts as, and checkpoints of its authors."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

SIZES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
SMALL = TINY | {"method": "st_adapter", "adapter_width": 16}
BOTH = ("attention", "mlp")


@pytest.fixture(scope="module", params=["st_adapter_attn_mlp", "st_adapter_mlp"])
def golden(request):
    case = peer_case(request.param)
    config = dict(case.config)
    places = [place for place, word in zip(BOTH, ("attn", "mlp")) if config.pop(f"adapter_pre_{word}")]
    overrides = {SIZES.get(name, name): value for name, value in config.items()}
    overrides |= {"adapter_kernel": overrides.pop("adapter_kernel_size"), "adapter_before": places}
    assert overrides.pop("adapter_layers") == overrides["depth"]
    model = create_model("vit_b16_clip", method="st_adapter", **overrides).eval()
    return model, case.state, case.truth, case.trainable


def test_a_published_checkpoint_is_known_loaded_and_written_again(golden, tmp_path):
    model, state, _, trainable = golden
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "published.pth")
    found = identify(read_weights(tmp_path / "published.pth"), "published.pth")
    options = found.options | {"num_frames": 4, "num_heads": 4}
    twin = create_model(found.model, **options)
    assert load_weights(twin, tmp_path / "published.pth").kind == "aim"
    assert {twin.published_name(name): tensor for name, tensor in twin.state_dict().items()}.keys() == state.keys()
    assert all(torch.equal(tensor, state[twin.published_name(name)]) for name, tensor in twin.state_dict().items())
    assert {twin.published_name(name) for name, _ in twin.trainable_parameters()} == trainable
    assert twin.method == model.method


@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "frozen trunk"])
@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory, everything):
    model, state, truth, trainable = golden
    model = create_model("vit_b16_clip", **model.config | {"backend": backend, "memory": memory}).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    if everything:
        model.requires_grad_(True)
    found = gradients_of(model, truth)
    assert_relative(found.features[:, 0], truth["features"])
    assert len(found.parameters) == (len(state) if everything else len(trainable))
    found.assert_golden()


@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo", "timm:vit_small_patch16_dinov3"])
@pytest.mark.parametrize("before", [("mlp",), BOTH])
@pytest.mark.parametrize("kernel", [(3, 1, 1), (5, 1, 1), (3, 3, 3)])
def test_fused_is_the_published_form_on_any_trunk(trunk, before, kernel):
    sizes = {name: size for name, size in SMALL.items() if name != "patch_size" or "timm" not in trunk}
    models = []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        models.append(
            create_model(trunk, **sizes, adapter_before=before, adapter_kernel=kernel, backend=backend).double().eval()
        )
        for parameter in models[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    truth = {name: parameter.detach() for name, parameter in models[0].named_parameters()}
    models[1].load_state_dict(truth, strict=False)
    x = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    losses = [F.cross_entropy(model(x), torch.tensor([0, 1])) for model in models]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    for (name, found), (_, wanted) in zip(models[0].trainable_parameters(), models[1].trainable_parameters()):
        wanted_gradient = torch.zeros_like(found) if wanted.grad is None else wanted.grad
        torch.testing.assert_close(found.grad, wanted_gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_starts_as_the_trunk_frame_by_frame_with_the_published_initial_values():
    torch.manual_seed(0)
    model = create_model("vit_demo", **SMALL, adapter_before=BOTH).eval()
    probe = create_model("vit_demo", **TINY, method="probe").eval()
    probe.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)  # where the norm may come before or after the mean
    torch.testing.assert_close(model(x), probe(x), rtol=1e-5, atol=1e-6)
    adapter = model.row[0].adapter_pre_mlp
    assert not any(tensor.any() for tensor in (adapter.conv.weight, adapter.conv.bias, adapter.fc1.bias))
    assert 0 < adapter.fc1.weight.abs().max() <= 32**-0.5
    wide = create_model("vit_demo", **SMALL | {"num_classes": 1000})
    assert wide.fc_cls.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_the_adapter_that_nothing_reads_does_no_work_and_has_gradients_of_zero():
    model = create_model("vit_demo", **SMALL)
    last = model.row[1].adapter_pre_mlp
    last.forward = None
    model(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in last.parameters())


def test_biases_take_no_weight_decay():
    model = create_model("vit_demo", **SMALL)
    biases = {name for name, _ in model.trainable_parameters() if name.endswith("bias")}
    assert {name for name, _ in model.trainable_parameters()} & model.no_weight_decay() == biases


@pytest.mark.parametrize(
    ("model", "frames", "overrides", "tunable", "gflops"),
    [
        ("vit_b16_clip", 8, {}, 7.418, 454.9),
        ("vit_b16_clip", 8, {"adapter_before": BOTH, "num_classes": 174}, 14.354, None),
        ("vit_l14_clip", 32, {}, 19.355, 8241.7),
    ],
)
def test_has_the_published_parameters_and_products(model, frames, overrides, tunable, gflops):
    _, trainable, products = count_costs(model, {"method": "st_adapter", "num_frames": frames, **overrides})
    assert trainable / 1e6 == pytest.approx(tunable, rel=1e-4)
    if gflops:
        assert 3 * products / 1e9 == pytest.approx(gflops, rel=0.005)


def test_weights_of_another_method_are_refused_by_name(tmp_path):
    files = {}
    for method in ("st_adapter", "aim", "timesformer"):
        model = create_model("vit_demo", **TINY, method=method)
        files[method] = tmp_path / f"{method}.safetensors"
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, files[method])
    with pytest.raises(WeightsError, match="is a checkpoint of method st_adapter: take --method st_adapter"):
        load_weights(create_model("vit_demo", **TINY), files["st_adapter"])
    with pytest.raises(WeightsError, match="is an AIM checkpoint"):
        load_weights(create_model("vit_demo", **SMALL), files["aim"])
    with pytest.raises(WeightsError, match="is a TimeSformer"):
        load_weights(create_model("vit_demo", **SMALL), files["timesformer"])
    with pytest.raises(WeightsError, match="make the model with adapter_width=384"):
        load_weights(create_model("vit_demo", **SMALL), files["st_adapter"])
    save_trunk(create_model("vit_demo", **SMALL), tmp_path / "trunk.safetensors")
    assert load_weights(create_model("vit_demo", **SMALL), tmp_path / "trunk.safetensors").kind == "clip"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"adapter_before": ()}, "adapter_before takes attention and mlp, one of them or both, not none"),
        ({"adapter_kernel": (2, 1, 1)}, "adapter_kernel takes three odd numbers"),
        ({"adapter_width": 0}, "adapter_width must be a whole number"),
        ({"adapter_layers": (7,)}, "there is no block 7"),
    ],
)
def test_what_cannot_be_is_said(wrong, said):
    with pytest.raises(UsageError, match=said):
        create_model("vit_demo", **SMALL | wrong)


def test_stands_on_trunks_of_frames_alone():
    with pytest.raises(UsageError, match="takes no method st_adapter"):
        create_model("swin_demo", method="st_adapter")
