"""The text head on trunks of other kinds than CLIP's own: class embeddings and logits are open_clip's."""

import functools
import json
from typing import get_args

import open_clip
import open_clip.timm_model
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model
from aim_kernels.adaptation import activate
from aim_kernels.choices import Activation
from tests.models.small_trunks import local_tokenizer

NAMES = ["walking", "BrushHair", "apply_lipstick"]
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# A model of each kind, and the length of its context here.
KINDS = {
    "ViT-B-16-SigLIP": 16,  # sigmoid, mapped pooling, its own tokenizer
    "ViT-B-16-SigLIP2": 16,  # tanh-GELU in the text tower
    "ViT-SO400M-16-SigLIP-i18n-256": 16,  # no projection of texts
    "ViT-L-14-CLIPA": 16,
    "ViT-H-14-worldwide": 16,  # read at the end that its tokenizer has
    "ViT-L-14-worldwide-quickgelu": 16,
    "EVA01-g-14": 77,  # a projection with a bias
    "EVA02-B-16": 77,
    "PE-Core-B-16": 32,
    "MobileCLIP2-L-14": 77,  # no causal mask
    "MobileCLIP-B": 77,
    "vit_medium_patch16_gap_256": 77,
    "vit_relpos_medium_patch16_cls_224": 77,
    "coca_base": 76,  # a class token in the text tower
}


def own_tokenizer(name):
    return "hf_tokenizer_name" in open_clip.get_model_config(name)["text_cfg"]


def side(name):
    return 3 * (14 if "-14" in name else 18 if name == "coca_base" else 16)


def trunk_sizes(name):
    # a convolutional stem has the one width
    return {"embed_dim": 768, "depth": 2, "num_heads": 12} if name == "MobileCLIP-B" else SIZES


def sizes(name):
    """Ours, small."""
    joint = 32 if "SigLIP" in name else 24
    width = 32 if "i18n" in name else 128
    vocabulary = 64 if own_tokenizer(name) else 49408
    text = {"text_width": width, "text_depth": 2, "vocab_size": vocabulary, "context_length": KINDS[name]}
    return trunk_sizes(name) | text | {"img_size": side(name), "num_frames": 2, "output_dim": joint}


def theirs(name, monkeypatch):
    """open_clip's own model, small, every tensor drawn at random, float64."""
    config, ours = open_clip.get_model_config(name), sizes(name)
    text = {"width": ours["text_width"], "layers": 2, "vocab_size": ours["vocab_size"]}
    usual = config["text_cfg"]
    text |= {"heads": max(text["width"] * usual["heads"] // usual["width"], 1), "context_length": KINDS[name]}
    vision = {**config["vision_cfg"], "image_size": ours["img_size"]}
    if "timm_model_name" not in vision:
        vision |= {"width": 32, "layers": 2, "head_width": 16}
    small = functools.partial(timm.create_model, img_size=ours["img_size"], **trunk_sizes(name))
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", small)
    torch.manual_seed(0)
    bias = config.get("init_logit_bias")
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    quick = config.get("quick_gelu", False)
    clip = kind(ours["output_dim"], vision, {**usual, **text}, quick_gelu=quick, init_logit_bias=bias).double().eval()
    monkeypatch.undo()
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.2)
    clip.logit_scale.data.fill_(3.0)
    return clip


def ids_of(name):
    """Texts as tokens that end at different places."""
    text = open_clip.get_model_config(name)["text_cfg"]
    if not own_tokenizer(name):
        return open_clip.SimpleTokenizer()(["a dog", "a man who walks", "diving"], KINDS[name])
    ids = torch.randint(5, 60, (3, KINDS[name]), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((4, 9, 6)):
        ids[row, end] = text.get("eos_id", 2)
        ids[row, end + 1 :] = 0
    return ids


def model_of(name, clip, tmp_path, **overrides):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    options = {"class_names": NAMES, "head": "text", **sizes(name), **overrides}
    model = create_model(f"open_clip:{name}", **options).double().eval()
    load_weights(model, tmp_path / "clip.pt")
    return model


def encoded(found):
    return found[0] if isinstance(found, tuple) else found


def video_of(clip, clips):
    frames = encoded(clip.encode_image(clips.transpose(1, 2).flatten(0, 1)))
    return F.normalize(frames.unflatten(0, (len(clips), -1)).mean(1), dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_embeddings_and_logits_are_open_clips(name, monkeypatch, tmp_path):
    clip = theirs(name, monkeypatch)
    if name == "coca_base":  # as its class reads it
        clip.encode_text = lambda ids, normalize: F.normalize(clip.text(ids)[0], dim=-1)
    model, ids = model_of(name, clip, tmp_path), ids_of(name)
    truth = clip.encode_text(ids, normalize=True)
    found = F.normalize(model.text.encode_tokens(ids), dim=-1)
    assert (found - truth).abs().max() <= 1e-10
    assert (truth[0] - truth[1]).abs().max() > 1e-2

    clips = torch.randn(2, 3, 2, side(name), side(name), dtype=torch.float64)
    model.class_embeddings, model.stale = found, False
    right = clip.logit_scale.exp() * video_of(clip, clips) @ truth.T
    right = right if clip.logit_bias is None else right + clip.logit_bias
    assert (clip.logit_bias is None) is ("SigLIP" not in name)
    assert (model(clips) - right).abs().max() <= 1e-9 * right.abs().max()
    if clip.logit_bias is None or name == "coca_base":
        return
    still = clips[:, :, :1].expand(-1, -1, 2, -1, -1)  # of one picture twice: their own forward
    logits, _ = clip.get_logits(still[:, :, 0], ids)
    assert (model(still) - logits).abs().max() <= 1e-9 * logits.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in KINDS if not own_tokenizer(name)])
def test_class_names_are_read_with_open_clips_tokenizer(name, monkeypatch, tmp_path):
    clip = theirs(name, monkeypatch)
    model = model_of(name, clip, tmp_path, templates=["a {}.", "the {} again"])
    tokenizer, right = open_clip.get_tokenizer(name), []
    for word in ("walking", "Brush Hair", "apply lipstick"):
        texts = encoded(getattr(clip, "text", clip.encode_text)(tokenizer([f"a {word}.", f"the {word} again"])))
        right.append(F.normalize(F.normalize(texts, dim=-1).mean(0), dim=0))
    clips = torch.randn(2, 3, 2, side(name), side(name), dtype=torch.float64)
    truth = clip.logit_scale.exp() * video_of(clip, clips) @ torch.stack(right).T
    assert (model(clips) - truth).abs().max() <= 1e-5 * truth.abs().max()  # embeddings are kept in fp32
    model.set_classes(["a cat", "two dogs"])
    assert model(clips).shape == (2, 2)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "EVA02-B-16", "MobileCLIP2-L-14", "ViT-L-14-CLIPA"])
def test_what_is_saved_is_read_back_and_only_the_adaptation_trains(name, monkeypatch, tmp_path):
    model = model_of(name, theirs(name, monkeypatch), tmp_path)
    assert not [key for key, _ in model.trainable_parameters() if key.startswith(("proj", "text."))]
    save_trunk(model, tmp_path / "trunk.safetensors")
    again = create_model(f"open_clip:{name}", **model.config).double().eval()
    load_weights(again, tmp_path / "trunk.safetensors")
    model.class_embeddings = again.class_embeddings = torch.eye(3, sizes(name)["output_dim"]).double()
    model.stale = again.stale = False
    clips = torch.randn(2, 3, 2, side(name), side(name), dtype=torch.float64)
    assert torch.allclose(again(clips), model(clips), rtol=1e-5)  # written in fp32
    F.cross_entropy(model.train()(clips), torch.tensor([0, 2])).backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == {
        key for key, _ in model.trainable_parameters()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "ViT-L-14-CLIPA", "ViT-L-14-worldwide-quickgelu"])
def test_a_tokenizer_beside_the_weights_is_read(name, monkeypatch, tmp_path):
    local_tokenizer(tmp_path)
    clip = theirs(name, monkeypatch)
    model = model_of(name, clip, tmp_path, templates=["a {}.", "the {} again"])
    text = open_clip.get_model_config(name)["text_cfg"]
    reader = open_clip.tokenizer.HFTokenizer(str(tmp_path), KINDS[name], **text["tokenizer_kwargs"])
    right = []
    for word in ("walking", "Brush Hair", "apply lipstick"):
        texts = clip.encode_text(reader([f"a {word}.", f"the {word} again"]), normalize=True)
        right.append(F.normalize(texts.mean(0), dim=0))
    clips = torch.randn(2, 3, 2, side(name), side(name), dtype=torch.float64)
    truth = clip.logit_scale.exp() * video_of(clip, clips) @ torch.stack(right).T
    truth = truth if clip.logit_bias is None else truth + clip.logit_bias
    assert (model(clips) - truth).abs().max() <= 1e-5 * truth.abs().max()
    with pytest.raises(UsageError, match=r"is too long: 4\d tokens, and the text tower has room for 16"):
        model.set_classes(["walking " * 40, "a dog"])
    model.text.vocab_size = 5
    with pytest.raises(UsageError, match="knows 5 tokens"):
        model.set_classes(NAMES)


def test_without_its_tokenizer_one_line_says_what_is_missing(monkeypatch, tmp_path):
    name = "ViT-B-16-SigLIP2"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    model = model_of(name, theirs(name, monkeypatch), tmp_path)
    with pytest.raises(UsageError, match="by the tokenizer timm/ViT-B-16-SigLIP2, ") as caught:
        model.set_classes(NAMES)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("activation", get_args(Activation))
def test_a_tower_beside_one_of_clips_has_its_activation(activation):
    name, x = "ViT-H-14-worldwide", torch.linspace(-3, 3, 50, dtype=torch.float64)
    model = create_model(f"open_clip:{name}", class_names=NAMES, head="text", **sizes(name))
    model.activation = activation
    assert model.text.activation == activation
    for block in model.text.tower.transformer.resblocks:
        torch.testing.assert_close(block.mlp.gelu(x), activate(x, activation))


def test_a_name_that_open_clip_has_not_is_named():
    with pytest.raises(UsageError, match="open_clip has no model 'ViT-Q-16'"):
        create_model("vit_demo", class_names=NAMES, head="text", text_model="ViT-Q-16")


def test_runs_compiled_in_one_graph(monkeypatch, tmp_path):
    model = model_of("EVA02-B-16", theirs("EVA02-B-16", monkeypatch), tmp_path)
    clips = torch.randn(1, 3, 2, side("EVA02-B-16"), side("EVA02-B-16"), dtype=torch.float64)
    right = model(clips)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(clips), right)


@torch.no_grad()
@pytest.mark.parametrize("name", ["EVA02-B-16", "ViT-B-16-SigLIP2"])
def test_a_folder_of_open_clips_is_the_file_in_it(name, monkeypatch, tmp_path):
    clip = theirs(name, monkeypatch)
    model, ids = model_of(name, clip, tmp_path), ids_of(name)
    (tmp_path / "clip.pt").rename(tmp_path / "open_clip_pytorch_model.bin")
    told = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    again = model.fresh().double().eval()
    assert not [line for line in load_weights(again, tmp_path).lines if "GELU" in line]
    assert torch.equal(again.text.encode_tokens(ids), model.text.encode_tokens(ids))
    assert again.mean == (127.5,) * 3


@pytest.mark.parametrize("kind", ["tower", "no_projection", "other_text"])
@pytest.mark.parametrize("name", ["EVA02-B-16", "ViT-B-16-SigLIP"])
def test_files_without_both_towers_are_refused(name, kind, monkeypatch, tmp_path):
    clip = theirs(name, monkeypatch)
    state = clip.state_dict()
    if kind == "tower":
        state, said = {key: value for key, value in state.items() if key.startswith("visual.")}, "holds no text tower"
    elif kind == "no_projection":
        state.pop("visual.trunk.head.weight", None)
        state.pop("text.text_projection.weight", None)
        said = r"no projection of its image tower|missing text\.tower\.text_projection\.weight"
    else:
        state = {key: value for key, value in state.items() if "transformer.resblocks.1." not in key}
        said = "text tower of another architecture than the model: depth 1, not 2"
    clip.state_dict = lambda: state
    with pytest.raises(WeightsError, match=said) as caught:
        model_of(name, clip, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:vit_base_patch16_siglip_224.v2_webli", "take open_clip:ViT-B-16-SigLIP or open_clip:ViT-B-16-SigLIP2"),
        ("timm:vit_base_patch16_clip_224.openai", "take open_clip:ViT-B-16 or"),
        ("timm:eva02_base_patch16_clip_224", "take open_clip:EVA02-B-16, whose image tower it is, or --head linear"),
        ("aim_vit_h14_clipa", "take open_clip:ViT-H-14-CLIPA"),
        ("timm:vit_base_patch16_dinov3", "its trunk has no CLIP text tower: take --head linear"),
        ("open_clip:roberta-ViT-B-32", "its text tower is roberta-base, which is built by transformers"),
    ],
)
def test_a_trunk_without_a_text_tower_is_refused_with_the_name_that_has_one(name, said):
    with pytest.raises(UsageError, match=said):
        create_model(name, head="text")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-H-14-worldwide", "CLIP's own text tower, and that of open_clip:ViT-H-14-worldwide is another"),
        ("open_clip:roberta-ViT-B-32", "is another: take vit_b16_clip"),
        ("open_clip:ViT-B-16-SigLIP2", "is none: take vit_b16_clip"),
        ("open_clip:ViT-L-14-CLIPA", "is none: take vit_b16_clip"),
    ],
)
def test_promptclip_takes_clips_own_text_tower_alone(name, said):
    with pytest.raises(UsageError, match=said):
        create_model(name, method="promptclip")
