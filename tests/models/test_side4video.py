"""Side4Video: the published numbers, its batch norms, what it keeps, and checkpoints of its authors."""

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

SIZES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_frames": 4, "num_classes": 5}
SMALL = TINY | {"method": "side4video", "side_width": 64}


@pytest.fixture(scope="module")
def golden():
    case = peer_case("side4video")
    config = dict(case.config)
    assert config.pop("T") == config["num_frames"]
    overrides = {SIZES.get(name, name): value for name, value in config.items()}
    overrides["side_width"] = overrides.pop("side_dim")
    return overrides, case.state, case.truth, case.trainable


def made(golden, **options):
    """The golden model in float64."""
    overrides, state, *_ = golden
    model = create_model("vit_b16_clip", method="side4video", **overrides, **options).double()
    unread = ("ln_post.",)  # which the authors' checkpoints lack
    names = {name: model.published_name(name) for name in model.state_dict() if not name.startswith(unread)}
    model.load_state_dict({name: state[published] for name, published in names.items()}, strict=False)
    model.ln_post.requires_grad_(False)
    model.dropout.p = 0.0
    return model


@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "frozen trunk"])
@pytest.mark.parametrize(("backend", "memory"), [("fused", "fast"), ("fused", "lean"), ("reference", "fast")])
def test_golden_outputs_and_every_gradient(golden, backend, memory, everything):
    *_, truth, trainable = golden
    model = made(golden, backend=backend, memory=memory).eval()
    if everything:
        model.requires_grad_(True).ln_post.requires_grad_(False)
    found = gradients_of(model, truth)
    assert_relative(found.features[:, 0], truth["features"])
    assert everything or {model.published_name(name) for name in found.parameters} == trainable
    found.assert_golden()


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_golden_training_mode_with_its_running_statistics(golden, memory):
    """What runs again for backward moves them once."""
    *_, truth, _ = golden
    model = made(golden, memory=memory).train()
    of_training = {name.removeprefix("train/"): t for name, t in truth.items() if name.startswith("train/")}
    found = gradients_of(model, truth | of_training)
    assert_relative(found.logits, of_training["logits"])
    assert_relative(found.loss.reshape(1), of_training["loss"].reshape(1))
    assert_relative(found.clip.grad, of_training["grad_input"])
    state = {model.published_name(name): tensor for name, tensor in model.state_dict().items()}
    moved = {name.removeprefix("state/"): t for name, t in of_training.items() if name.startswith("state/")}
    assert len(moved) == 2 * (2 + 2 * 2)
    for name, tensor in moved.items():
        assert_relative(state[name], tensor, what=name)


def test_a_published_checkpoint_is_known_loaded_and_written_again(golden, tmp_path):
    """The authors' lacks the norm that nothing reads, and has a count in every batch norm."""
    overrides, state, *_ = golden
    norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    counts = {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
    torch.save({"state_dict": {f"module.{name}": t for name, t in (state | counts).items()}}, tmp_path / "whole.pth")
    found = identify(read_weights(tmp_path / "whole.pth"), "whole.pth")
    twin = create_model(found.model, **found.options | {"num_heads": 1, "num_frames": 4})
    assert load_weights(twin, tmp_path / "whole.pth").kind == "aim"
    published = {twin.published_name(name): tensor for name, tensor in twin.state_dict().items()}
    assert published.keys() - state.keys() == {"visual.ln_post.weight", "visual.ln_post.bias"}
    assert all(torch.equal(published[name], tensor) for name, tensor in state.items())
    assert twin.method.side_width == overrides["side_width"]


@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo", "timm:vit_small_patch16_dinov3"])
def test_fused_is_the_published_form_on_any_trunk(trunk):
    """In training mode, on a trunk without a class token too."""
    sizes = {name: size for name, size in SMALL.items() if name != "patch_size" or "timm" not in trunk}
    tokenless = {"class_token": False, "global_pool": "avg"} if trunk == "vit_imagenet_demo" else {}
    models = []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        models.append(create_model(trunk, **sizes, **tokenless, head_dropout=0.0, backend=backend).double())
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    losses = [F.cross_entropy(model(x), torch.tensor([0, 1])) for model in models]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    for (name, found), (_, wanted) in zip(models[0].trainable_parameters(), models[1].trainable_parameters()):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("model", "width", "tunable", "gflops"), [("vit_b16_clip", 320, 21.057, 175.7), ("vit_l14_clip", 512, 102.0, 869.3)]
)
def test_has_the_published_parameters_and_products(model, width, tunable, gflops):
    _, trainable, products = count_costs(model, {"method": "side4video", "side_width": width, "num_frames": 8})
    trainable -= 400 * (width + 1)  # published without the classifier
    assert products / 1e9 == pytest.approx(gflops, rel=0.005)
    if model == "vit_b16_clip":
        assert trainable / 1e6 == pytest.approx(tunable, rel=1e-4)


@pytest.mark.parametrize("method", ["evl", "side4video", "dist"])
def test_keeps_a_quarter_of_what_aim_keeps_at_most(method):
    sizes = {"depth": 12, "embed_dim": 192, "num_heads": 3, "patch_size": 8, "img_size": 64, "num_frames": 4}
    widths = {"side4video": {"side_width": 64}, "dist": {"dist_width": 64, "dist_temporal": 24}}
    width = widths.get(method, {})  # as on B/16 beside 768, in whole heads
    frames = torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8)
    kept = [
        saved_bytes(model, lambda m=model: m(frames).sum())
        for model in (create_model("vit_b16_clip", **sizes, **one) for one in ({"method": method} | width, {}))
    ]
    assert kept[0] <= kept[1] / 4, kept


def test_a_width_of_no_heads_is_refused():
    with pytest.raises(UsageError, match="side_width 100 is no multiple of 64"):
        create_model("vit_demo", **SMALL | {"side_width": 100})
