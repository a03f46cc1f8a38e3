"""ActionCLIP: the published numbers of both heads, its loss and templates, checkpoints of its authors."""

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.heads.fusion import two_sided_loss
from aim_fast.models.heads.named_classes import unit
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from tests.conftest import SHARED
from tests.models.golden_cases import assert_relative, peer_case

FOLDER = SHARED / "golden_peers"
needs_case = pytest.mark.skipif(not FOLDER.is_dir(), reason="the cases of ActionCLIP's authors are not here")
SHAPES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_frames": 4}
TINY = {**SHAPES, "output_dim": 64, "text_width": 64, "text_depth": 1, "method": "actionclip"}
NAMES = ["walking", "BrushHair", "apply_lipstick"]


@pytest.fixture(scope="module", params=["transf", "meanp"])
def golden(request):
    case = peer_case(f"actionclip_{request.param}", FOLDER)
    state, trainable = {bare(name): t for name, t in case.state.items()}, {bare(name) for name in case.trainable}
    return 6 if request.param == "transf" else 0, state, case.truth, trainable


def bare(name):
    return name.removeprefix("model.").replace("fusion_model.", "fusion.")


def published(layers, state, **more):
    arguments = {"vocab_size": 50, "num_classes": 4, "fusion_layers": layers, "templates": ["{}", "a {}"], **more}
    model = create_model("vit_b16_clip", **TINY, **arguments).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    return model


def assert_gradients(model, clip, truth, prefix):
    known = {name.removeprefix(prefix) for name in truth if name.startswith(prefix)}
    assert_relative(clip.grad, truth[f"{prefix.removesuffix('grad/')}grad_input"])
    compared = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        own = model.published_name(name)
        own = own.replace("fusion.", "fusion_model.") if own.startswith("fusion.") else f"model.{own}"
        if own in known:
            assert_relative(parameter.grad, truth[f"{prefix}{own}"], what=name)
            compared += 1
    assert compared == len(known)


RUNNING = pytest.mark.parametrize(("backend", "memory"), [("fused", "fast"), ("fused", "lean"), ("reference", "fast")])


@needs_case
@RUNNING
def test_golden_features_logits_and_every_gradient(golden, backend, memory):
    layers, state, truth, trainable = golden
    model = published(layers, state, backend=backend, memory=memory)
    assert {model.published_name(name) for name, _ in model.trainable_parameters()} == trainable
    assert len(state) == len(model.state_dict())
    clip = truth["input"].double().requires_grad_(True)
    video, texts = model.reader.video(model, model.forward_features(clip)), model.text(truth["tokens"])
    assert_relative(video, truth["features"])
    assert_relative(texts, truth["text_features"])
    logits = model.reader.score(model, video, unit(texts))
    loss = F.cross_entropy(logits, truth["label"])
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"].reshape(1))
    loss.backward()
    assert_gradients(model, clip, truth, "grad/")


@needs_case
@RUNNING
def test_golden_loss_of_a_training_step_and_every_gradient(golden, backend, memory):
    layers, state, truth, _ = golden
    model = published(layers, state, backend=backend, memory=memory).train()
    clip = truth["input"].double().requires_grad_(True)
    logits = model(clip, truth["train/tokens"])
    loss = model.losses(logits, truth["label"], torch.ones(3, dtype=torch.float64), 0.0).mean()
    assert_relative(logits[0], truth["train/logits_per_image"])
    assert_relative(logits[1], truth["train/logits_per_text"])
    assert_relative(loss.reshape(1), truth["train/loss"].reshape(1))
    loss.backward()
    assert_gradients(model, clip, truth, "train/grad/")


@needs_case
def test_golden_scores_are_the_mean_over_templates(golden):
    layers, state, truth, _ = golden
    model = published(layers, state)
    model.text_ids = truth["test/tokens"]
    with torch.no_grad():
        model.class_embeddings = model.text(model.text_ids)
        model.stale, model.texts_version = False, model.text.logit_scale._version
        assert_relative(model(truth["input"].double()).softmax(-1), truth["test/scores"])


@needs_case
def test_a_published_checkpoint_of_two_state_dicts_loads_and_is_refused_by_other_methods(golden, tmp_path):
    layers, state, _, _ = golden
    own = {name: tensor for name, tensor in state.items() if name.startswith("fusion.")}
    clip = {f"module.{name}": tensor for name, tensor in state.items() if name not in own}
    fusion = {name.replace("fusion.", "module.", 1): tensor for name, tensor in own.items()}
    torch.save({"epoch": 3, "model_state_dict": clip, "fusion_model_state_dict": fusion}, tmp_path / "model.pt")
    model = create_model("vit_b16_clip", **TINY, vocab_size=50, num_classes=4, fusion_layers=layers)
    assert load_weights(model, tmp_path / "model.pt").kind == ("aim" if layers else "clip")
    assert all(torch.equal(tensor, state[model.published_name(name)]) for name, tensor in model.state_dict().items())
    if layers:
        with pytest.raises(WeightsError, match="is a checkpoint of method actionclip: take --method actionclip"):
            load_weights(create_model("vit_b16_clip", **SHAPES), tmp_path / "model.pt")


def test_the_loss_is_its_formula_whatever_fills_the_batch_up():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(5, 5, dtype=torch.float64), torch.tensor([2, 0, 2, 1, 0])
    both = torch.stack([logits, logits.T])
    alone = two_sided_loss(both[:, :3, :3], labels[:3], torch.ones(3, dtype=torch.bool))
    wanted = torch.zeros(3, dtype=torch.float64)
    shares = (10 * (labels[:3, None] == labels[None, :3]).double()).softmax(-1)
    for side in (logits[:3, :3], logits[:3, :3].T):
        wanted += 0.5 * F.kl_div(side.log_softmax(-1), shares, reduction="none").sum(-1)
    torch.testing.assert_close(alone, wanted)
    filled = two_sided_loss(both, labels, torch.tensor([True, True, True, False, False]))
    torch.testing.assert_close(filled[:3], wanted)
    assert torch.isfinite(filled).all()


def test_each_clip_has_a_text_of_its_class_in_the_template_that_its_number_draws():
    model = create_model("vit_b16_clip", **TINY, class_names=NAMES)
    assert len(model.templates) == 16
    labels, draws = torch.tensor([2, 0, 2]), torch.tensor([5, 21, 6])
    (tokens,) = model.step_inputs(labels, draws)
    texts = ["{}, a video of action", "{}, a video of action", "Playing action of {}"]
    names = ["apply lipstick", "walking", "apply lipstick"]
    wanted = model.text.tokenize([text.replace("{}", name) for text, name in zip(texts, names)]).ids
    assert torch.equal(tokens, wanted[:, : tokens.shape[1]])
    assert not wanted[:, tokens.shape[1] :].any()
    (alone,) = model.step_inputs(labels[1:2], draws[1:2])
    assert torch.equal(alone, tokens[1:2])


def test_scores_follow_the_text_tower_as_it_trains_and_new_names():
    torch.manual_seed(0)
    model = create_model("vit_b16_clip", **TINY, class_names=NAMES).eval()
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = model(clips)
        torch.testing.assert_close(before.exp().sum(-1), torch.ones(2))
        model.text.logit_scale.add_(0)  # as an optimiser's step, which says only that something changed
        model.text.text_projection.mul_(-1)
        after = model(clips)
        assert (after - before).abs().max() > 1e-3
        model.set_classes(["archery", NAMES[2]])
        assert model(clips).shape == (2, 2)
    whole = model(clips)  # with gradients the texts are read again
    with torch.no_grad():
        torch.testing.assert_close(model(clips), whole.detach())
    whole.sum().backward()
    assert model.text.text_projection.grad is not None


@pytest.mark.parametrize(
    ("trunk", "overrides", "said"),
    [
        ("vit_imagenet_demo", {}, "no CLIP text tower"),
        ("vit_demo", {"head": "attentive"}, "has a head of its own and takes no head attentive"),
        ("vit_demo", {"fusion_layers": -1}, "fusion_layers must be a whole number of at least 0"),
    ],
)
def test_where_it_cannot_stand_is_said_in_one_line(trunk, overrides, said):
    with pytest.raises(UsageError, match=said) as caught:
        create_model(trunk, method="actionclip", **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16-SigLIP", "open_clip:ViT-B-32-quickgelu"])
def test_stands_on_the_towers_of_open_clip(name):
    with torch.device("meta"):
        model = create_model(name, method="actionclip", depth=1, text_depth=1)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] in ([], ["text.logit_bias"])


def test_has_the_published_parameters_and_products():
    """30 views of B/16 with 32 frames, of the image side alone; and all but the token embedding."""
    whole, trainable, products = count_costs("vit_b16_clip", {"method": "actionclip", "num_frames": 32})
    assert whole / 1e6 == pytest.approx(168.574, rel=0.0005)
    assert trainable == whole
    assert (whole - 49408 * 512) / 1e6 == pytest.approx(143.278, rel=0.0005)
    assert 30 * products / 1e9 == pytest.approx(16879, rel=0.005)
