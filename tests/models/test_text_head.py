"""AIM with CLIP's own head: zero-shot before training, agreeing with open_clip, for any named classes."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.heads.class_embeddings import embed_classes
from aim_fast.models.heads.class_texts import read_templates
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model, find_entry
from aim_fast.models.text_models import text_entry

NAMES = ["walking", "BrushHair", "apply_lipstick"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=48)
    clip = CLIP(64, vision, CLIPTextCfg(width=64, heads=1, layers=2), quick_gelu=True).eval()
    clip.logit_scale.data.fill_(math.log(20.0))
    for parameter in clip.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return clip


@pytest.fixture(scope="module")
def clip_file(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(clip.state_dict(), path)
    return path


def model_of(clip_file, **overrides):
    options = {"depth": 2, "num_frames": 4, "class_names": NAMES, "head": "text", **overrides}
    model = create_model("aim_vit_demo", **options).eval()
    load_weights(model, clip_file)
    return model


def zero_shot(clip, clips, names, templates):
    """open_clip's own zero-shot classifier, on frame features averaged before the projection."""
    weights = []
    tokenizer = open_clip.SimpleTokenizer()
    for name in names:
        texts = clip.encode_text(tokenizer([template.format(name) for template in templates]), normalize=True)
        weights.append(F.normalize(texts.mean(0), dim=0))
    frames = clip.encode_image(clips.transpose(1, 2).flatten(0, 1))  # linear after ln_post: the mean commutes with it
    video = F.normalize(frames.unflatten(0, (len(clips), -1)).mean(1), dim=-1)
    return clip.logit_scale.exp() * video @ torch.stack(weights).T


@torch.no_grad()
def test_logits_before_training_are_clips_zero_shot(clip, clip_file):
    model, clips = model_of(clip_file), torch.randn(2, 3, 4, 48, 48)
    right = zero_shot(clip, clips, ["walking", "Brush Hair", "apply lipstick"], read_templates())
    torch.testing.assert_close(model(clips), right, rtol=1e-4, atol=1e-4)
    model.set_classes(["a cat", "two dogs"])
    right = zero_shot(clip, clips, ["a cat", "two dogs"], read_templates())
    torch.testing.assert_close(model(clips), right, rtol=1e-4, atol=1e-4)
    assert model.num_classes == 2


@torch.no_grad()
def test_every_way_that_weights_come_in_renews_the_class_embeddings(clip, clip_file, tmp_path):
    model, clips = model_of(clip_file), torch.randn(2, 3, 4, 48, 48)
    logits = model(clips)
    other = create_model("aim_vit_demo", **model.config).eval()
    assert not torch.allclose(other(clips), logits)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(clips), logits)
    save_trunk(model, tmp_path / "trunk.safetensors")
    third = model_of(tmp_path / "trunk.safetensors")
    torch.testing.assert_close(third(clips), logits)
    double = model.double()
    torch.testing.assert_close(double(clips.double()).float(), logits, rtol=1e-4, atol=1e-4)


def test_adapters_train_and_clips_head_does_not(clip_file):
    model = model_of(clip_file)
    trained = {name for name, _ in model.trainable_parameters()}
    linear = create_model("aim_vit_demo", depth=2, num_frames=4)
    assert trained == {name for name, _ in linear.trainable_parameters() if not name.startswith("fc_cls.")}
    F.cross_entropy(model.train()(torch.randn(2, 3, 4, 48, 48)), torch.tensor([0, 2])).backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == trained
    whole = model_of(clip_file, tune="all")
    frozen = {name for name, parameter in whole.named_parameters() if not parameter.requires_grad}
    assert all(name == "proj" or name.startswith("text.") for name in frozen)
    assert {"proj", "text.logit_scale"} <= frozen


def test_runs_compiled_in_one_graph(clip_file):
    model, clips = model_of(clip_file), torch.randn(1, 3, 4, 48, 48)
    with torch.no_grad():
        right = model(clips)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(clips), right)


def test_logits_keep_fp32_under_autocast(clip_file):
    model, clips = model_of(clip_file), torch.randn(2, 3, 4, 48, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(clips).dtype == torch.float32


def test_an_ensemble_is_the_normalised_mean_of_unit_embeddings(clip_file):
    tower = model_of(clip_file).text
    both = embed_classes(tower, NAMES, ["a {}.", "the {} again"])
    alone = [embed_classes(tower, NAMES, [template]) for template in ("a {}.", "the {} again")]
    torch.testing.assert_close(both, F.normalize(alone[0] + alone[1], dim=-1))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(3))


def test_text_sizes_of_registered_models_are_open_clips():
    for name, theirs in (
        ("aim_vit_b32_clip", "ViT-B-32"), ("aim_vit_b16_clip", "ViT-B-16"), ("aim_vit_l14_clip", "ViT-L-14"),
        ("aim_vit_h14_clip", "ViT-H-14"), ("aim_vit_g14_clip", "ViT-g-14"), ("aim_vit_bigg14_clip", "ViT-bigG-14"),
    ):  # fmt: skip
        with torch.device("meta"):
            model = create_model(name, head="text", depth=1, text_depth=1)
            named = create_model(f"open_clip:{theirs}", head="text", depth=1, text_depth=1)
        config = open_clip.get_model_config(theirs)
        assert model.config["output_dim"] == named.config["output_dim"] == config["embed_dim"]
        assert model.config["text_width"] == named.config["text_width"] == config["text_cfg"]["width"]
        for entry_name in (name, f"open_clip:{theirs}"):
            assert (
                text_entry(entry_name, find_entry(entry_name)).arguments["text_depth"] == config["text_cfg"]["layers"]
            )


@pytest.mark.parametrize("kind", ["tower", "no_projection", "other_text"])
def test_files_without_both_towers_are_refused(kind, clip, tmp_path):
    state, message = clip.state_dict(), "no projection of its image tower"
    if kind == "tower":
        state, message = clip.visual.state_dict(), "holds no CLIP text tower: it is an image tower alone"
    elif kind == "no_projection":
        del state["visual.proj"]
    else:
        del state["transformer.resblocks.1.ln_1.weight"]
        state = {name: tensor for name, tensor in state.items() if not name.startswith("transformer.resblocks.1.")}
        message = "text tower of another architecture than the model: depth 1, not 2"
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=message) as caught:
        model_of(tmp_path / "clip.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1", "2"], "2 of 2 have none: 1, 2"),
        (["run", "7"], "1 of 2 have none: 7"),
        (["class 0", "class 1"], "2 of 2 have none: class 0, class 1"),
        (["run", "far " * 90], "is too long"),
    ],
)
def test_classes_that_a_text_tower_cannot_read_are_named(names, message, clip_file):
    with pytest.raises(UsageError, match=message):
        model_of(clip_file).set_classes(names)


def test_templates_come_from_a_file(tmp_path):
    (tmp_path / "t.txt").write_text("# prompts\n\na {} here\nthere {}\n")
    assert read_templates(tmp_path / "t.txt") == ("a {} here", "there {}")
    for text, message in (("a {}\nnothing", "line 2: 'nothing' must hold {} once"), ("#\n", "holds no prompt")):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_templates(tmp_path / "t.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_templates(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    "name", ["aim_vit_imagenet_demo", "timm:vit_base_patch16_dinov3", "open_clip:roberta-ViT-B-32"]
)
def test_models_without_a_clip_text_tower_are_refused(name):
    with pytest.raises(UsageError, match="take --head linear"):
        create_model(name, head="text")
