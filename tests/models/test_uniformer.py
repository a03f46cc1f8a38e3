"""UniFormer: the published numbers in evaluation and in training, and the weights that it starts from."""

import pytest
import torch
import torch.nn.functional as F

from aim_fast import load_checkpoint
from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, gradients_of, peer_case

SMALL = {"img_size": 32, "num_frames": 4}


@pytest.fixture(scope="module")
def golden():
    case = peer_case("uniformer")
    config = dict(case.config)
    del config["qkv_bias"]
    config |= {"depths": config.pop("depth"), "embed_dims": config.pop("embed_dim")}
    return config, case.state, case.truth


def published(golden, **running):
    config, state, _ = golden
    model = create_model("uniformer_b", **config, **running).double().eval()
    own = model.state_dict()
    counts = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    model.load_state_dict(counts | {name: state[model.published_name(name)] for name in own.keys() - counts.keys()})
    return model


@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory):
    model = published(golden, backend=backend, memory=memory)
    found = gradients_of(model, golden[2])
    assert_relative(found.features, golden[2]["features"])
    assert len(found.parameters) == len([name for name in golden[1] if "running" not in name])
    found.assert_golden()


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_golden_training_takes_the_batch_and_moves_the_statistics_once(golden, memory):
    model, truth = published(golden, memory=memory).train(), golden[2]
    clip = truth["input"].double().requires_grad_(True)
    logits = model(clip)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(logits, truth["train/logits"])
    assert_relative(loss.reshape(1), truth["train/loss"])
    assert_relative(clip.grad, truth["train/grad_input"])
    moved = model.trained_statistics()
    assert {f"train/state/{name}" for name in moved} == {name for name in truth if name.startswith("train/state/")}
    for name, tensor in moved.items():
        assert_relative(tensor, truth[f"train/state/{name}"], what=name)


def test_a_published_checkpoint_is_known_and_loaded(golden, tmp_path):
    config, state, truth = golden
    torch.save({"model_state": state}, tmp_path / "published.pth")
    found = identify(read_weights(tmp_path / "published.pth"), "published.pth")
    assert found.options["depths"] == tuple(config["depths"])
    twin = (
        create_model(found.model, **found.options | {"head_dim": 16, **{k: config[k] for k in SMALL}}).double().eval()
    )
    assert load_weights(twin, tmp_path / "published.pth").kind == "aim"
    assert_relative(twin(truth["input"].double()), truth["logits"])
    other = create_model(found.model, **found.options | {"head_dim": 16, "num_classes": 7})
    report = load_weights(other, tmp_path / "published.pth")
    assert "that of the model's 7 classes starts anew" in " ".join(report.lines)
    assert torch.equal(other.norm.running_var, state["norm.running_var"])


def test_starts_from_an_image_uniformer_by_repeating_kernels_over_time(golden, tmp_path):
    """A clip of one picture, where padding in time does not reach: the first convolution is the picture's."""
    config, state, _ = golden
    image = {name: t.sum(2) if t.ndim == 5 else t for name, t in state.items()}
    torch.save(image | {"head.weight": torch.zeros(9, 64), "head.bias": torch.zeros(9)}, tmp_path / "image.pth")
    model = create_model("uniformer_b", **config)
    report = load_weights(model, tmp_path / "image.pth")
    assert "is an image UniFormer" in report.lines[0]
    still = torch.randn(1, 3, 1, 64, 64)
    kernel = model.patch_embed1.proj.weight
    wanted = F.conv2d(still[:, :, 0], image["patch_embed1.proj.weight"], stride=4)
    inner = F.conv3d(still.expand(-1, -1, 3, -1, -1), kernel, stride=(2, 4, 4))[:, :, 0]
    torch.testing.assert_close(inner, wanted, rtol=1e-4, atol=1e-4)
    for name in ("blocks1.0.attn.weight", "blocks4.0.pos_embed.weight", "blocks2.0.conv1.weight"):
        torch.testing.assert_close(model.state_dict()[name].sum(2), image[name])
    assert torch.equal(model.state_dict()["blocks3.1.attn.qkv.weight"], image["blocks3.1.attn.qkv.weight"])
    assert torch.equal(model.norm.running_mean, image["norm.running_mean"])


def test_a_file_in_our_published_names_comes_back(tmp_path):
    model = create_model("uniformer_demo", **SMALL).eval()
    torch.save({model.published_name(name): tensor for name, tensor in model.state_dict().items()}, tmp_path / "m.pth")
    twin = create_model("uniformer_demo", **SMALL).eval()
    load_checkpoint(twin, tmp_path / "m.pth")
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(twin(clip), model(clip))


@pytest.mark.parametrize(
    ("model", "frames", "params", "gflops", "views"),
    [
        ("uniformer_b", 32, 49.813, 3099.0, 12),
        ("uniformer_b", 16, 49.813, 386.2, 4),
        ("uniformer_b", 8, 49.813, 160.5, 4),
        ("uniformer_s", 16, 21.400, 166.7, 4),
    ],
)
def test_has_the_published_parameters_and_products(model, frames, params, gflops, views):
    found, trained, products = count_costs(model, {"num_frames": frames})
    assert found == trained
    assert found / 1e6 == pytest.approx(params, rel=0.005)
    assert views * products / 1e9 == pytest.approx(gflops, rel=0.005)


def test_droppath_drops_whole_clips_and_grows_over_the_stages():
    model = create_model("uniformer_demo", **SMALL, drop_path=0.3)
    rates = [block.drop_path.rate for i in range(1, 5) for block in getattr(model, f"blocks{i}")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for block in (model.blocks2[0], model.blocks3[0]):
        block.drop_path.rate = 0.99
        block.train()
        block.requires_grad_(False)
        x = torch.randn(4, block.pos_embed.in_channels, 2, 4, 4)
        torch.manual_seed(0)
        assert torch.allclose(block(x), x + block.pos_embed(x), atol=1e-5)


def test_what_is_one_number_a_channel_takes_no_weight_decay():
    model = create_model("uniformer_demo", **SMALL)
    free = model.no_weight_decay()
    assert {"norm.weight", "blocks1.0.conv1.bias", "blocks3.0.attn.qkv.bias", "fc_cls.bias"} <= free
    assert not {"fc_cls.weight", "blocks1.0.attn.weight", "patch_embed1.proj.weight"} & free


def test_what_cannot_be_is_said(tmp_path):
    for wrong, said in (
        ({"img_size": 40}, "no multiple of 32"),
        ({"depths": (1, 1)}, "one number for each of the four"),
    ):
        with pytest.raises(UsageError, match=said):
            create_model("uniformer_b", **wrong)
    with pytest.raises(UsageError, match="of method full, with a head of its own"):
        create_model("uniformer_b", method="aim")
    torch.save(create_model("aim_vit_demo").state_dict(), tmp_path / "aim.pth")
    with pytest.raises(WeightsError, match="is of another model than this UniFormer"):
        load_weights(create_model("uniformer_demo"), tmp_path / "aim.pth")
