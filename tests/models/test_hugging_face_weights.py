"""What transformers saves is taken with its own features, or refused by its structure."""

import json

import pytest
import torch

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights, trunk_sha256
from aim_fast.models.registry import create_model
from tests.models.small_trunks import (
    FRAMES,
    SIZES,
    clip_model,
    drawn,
    features,
    frames,
    make_clip,
    make_vit,
)

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def vit():
    return make_vit()


# Hugging Face transformers: built there with random weights, saved there, equal to it here.
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def hugging_face(transformers, name, **overrides):
    model = getattr(transformers, name)
    if not name.startswith("CLIP"):
        return drawn(model(model.config_class(**VISION | overrides)))
    vision = VISION | {"intermediate_size": 128, **overrides}
    if name != "CLIPModel":
        return drawn(model(model.config_class(**vision)))
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    text |= {"bos_token_id": 0, "eos_token_id": 49407, "vocab_size": 49408}
    return drawn(model(model.config_class(vision_config=vision, text_config=text, projection_dim=64)))


def trunk_features(theirs):
    """Of the trunk alone: after the last norm, the class token or the mean of all."""
    trunk = getattr(theirs, "vit", getattr(theirs, "dinov2", getattr(theirs, "vision_model", theirs)))
    with torch.no_grad():
        out = trunk(pixel_values=frames())
    if hasattr(trunk, "post_layernorm"):
        return out.pooler_output
    return out.last_hidden_state.mean(1) if type(trunk).__name__.startswith("IJepa") else out.last_hidden_state[:, 0]


CLIPS = ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"]


VITS = ["ViTModel", "ViTForImageClassification", "Dinov2Model", "Dinov2ForImageClassification"]


VITS += ["Dinov2WithRegistersModel", "IJepaModel", "ViTMSNModel"]


def ours_for(theirs, **overrides):
    kind = type(theirs).__name__
    if kind.startswith("CLIP"):
        return clip_model(**overrides)
    dino = kind.startswith("Dinov2")
    options = {**SIZES, **FRAMES, "mlp_ratio": 4.0 if dino else 2.0, "init_values": 1e-5 if dino else None}
    if "Registers" in kind:
        options |= {"reg_tokens": 4, "no_embed_class": True}
    if kind.startswith("IJepa"):
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return create_model("aim_vit_b16_in21k", **{**options, **overrides}).eval()


@pytest.mark.parametrize("form", ["folder", "parts", "file", "state_dict"])
@pytest.mark.parametrize("name", CLIPS + VITS)
def test_features_are_those_of_transformers(name, form, transformers, tmp_path):
    theirs = hugging_face(transformers, name)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="50KB" if form == "parts" else "5GB")
    source = tmp_path / "hf"
    if form == "file":
        source = source / "model.safetensors"
    elif form == "parts":
        source = source / "model.safetensors.index.json"
    elif form == "state_dict":  # in the names of the modules, which transformers 5 has changed
        source = tmp_path / "hf" / "state.pt"
        torch.save(theirs.state_dict(), source)
    model = ours_for(theirs, activation="gelu")
    report = load_weights(model, source)
    torch.testing.assert_close(features(model), trunk_features(theirs), rtol=1e-4, atol=1e-5)
    assert report.kind == ("clip" if name.startswith("CLIP") else "timm")
    assert ("classifier (2)" in "".join(report.lines)) is name.endswith("Classification")
    again = model.fresh().eval()  # as a run opens it again
    assert load_weights(again, source).sha256 == report.sha256 == trunk_sha256(model)
    assert torch.equal(features(again), features(model))


def test_a_whole_clip_of_transformers_gives_both_towers(transformers, tmp_path):
    theirs = hugging_face(transformers, "CLIPModel")
    theirs.save_pretrained(tmp_path)
    model = create_model("promptclip_demo", **{**SIZES, **FRAMES, "text_depth": 2}).eval()
    load_weights(model, tmp_path)
    texts = torch.randint(1, 400, (3, 77))
    texts[:, 9] = 49407
    texts[:, 10:] = 0
    with torch.no_grad():
        truth = theirs.get_text_features(input_ids=texts)
        truth = truth if isinstance(truth, torch.Tensor) else truth.pooler_output
        image = theirs.get_image_features(pixel_values=frames())
        image = image if isinstance(image, torch.Tensor) else image.pooler_output
        torch.testing.assert_close(model.clipmodel(texts), truth, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features(model), image, rtol=1e-4, atol=1e-5)


def test_a_preprocessor_tells_the_pixels(transformers, tmp_path):
    hugging_face(transformers, "ViTModel").save_pretrained(tmp_path)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    model = ours_for(hugging_face(transformers, "ViTModel"))
    report = load_weights(model, tmp_path)
    assert (model.mean, model.std) == ((127.5,) * 3, (63.75,) * 3)
    assert any("normalised with mean [127.5, 127.5, 127.5]" in line for line in report.lines)
    assert not any("does not say" in line for line in report.lines)


@pytest.mark.parametrize("named", ["gelu_pytorch_tanh", "gelu_new", "gelu_python"])
def test_gelu_goes_by_the_librarys_names_of_it(named, transformers, tmp_path):
    theirs = hugging_face(transformers, "ViTModel", hidden_act=named)
    theirs.save_pretrained(tmp_path)
    model = ours_for(theirs, activation="quick_gelu")
    load_weights(model, tmp_path)
    assert model.activation == ("gelu" if named == "gelu_python" else "gelu_tanh")
    torch.testing.assert_close(features(model), trunk_features(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("SiglipVisionModel", {}, "is a SigLIP"),
        ("BeitModel", {"use_relative_position_bias": True}, "relative position biases"),
        ("DeiTModel", {}, "a distillation token"),
        ("Dinov2Model", {"use_swiglu_ffn": True}, "SwiGLU"),
        ("ViTModel", {"num_hidden_layers": 3}, "its depth is 3, the model's 2"),
        ("ViTModel", {"num_attention_heads": 2}, "its heads 2, the model's 4"),
        ("ViTModel", {"hidden_act": "relu"}, "the activation relu"),
    ],
)
def test_what_transformers_has_beside_is_refused_by_its_structure(name, overrides, said, transformers, tmp_path):
    hugging_face(transformers, name, **overrides).save_pretrained(tmp_path)
    plain = hugging_face(transformers, "ViTModel")
    model = clip_model() if name.startswith("Siglip") else ours_for(plain)
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(model, tmp_path)
    assert "\n" not in str(caught.value)
