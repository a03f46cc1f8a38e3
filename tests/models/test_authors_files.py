"""Files as methods' authors write them: which model they are of, their trunk where it is another file, their pixels."""

import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from aim_fast.errors import WeightsError
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights, with_trunk
from aim_fast.models.pixels import CLIP_MEAN, IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.conftest import SHARED
from tests.models.golden_cases import assert_relative, peer_case
from tests.models.test_x_clip import as_published, transformers_x_clip

CASES = SHARED / "golden_peers"
NAMES = ["walking", "BrushHair", "apply_lipstick"]


def opened(path, trunk=None, asked=None, **more):
    """The model that a file is of, with its tensors, and what was said."""
    found = identify(with_trunk(read_weights(path), str(path), trunk), str(path), asked)
    model = create_model(found.model, **found.options | more)
    return model, load_weights(model, path, trunk=trunk)


@pytest.fixture(scope="module")
def x_clip(tmp_path_factory):
    """transformers' X-CLIP, and the folder in which it and the authors' file of the same weights lie."""
    theirs = transformers_x_clip(49408)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("x_clip")
    theirs.save_pretrained(folder)
    told = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # as microsoft's have
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    published = {f"module.{name}": tensor for name, tensor in as_published(theirs.state_dict()).items()}
    with pytest.MonkeyPatch.context() as patch:  # what is pickled of yacs, which need not be here to read it
        yacs = types.ModuleType("yacs.config")
        yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
        patch.setitem(sys.modules, "yacs.config", yacs)
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        config = yacs.CfgNode(MODEL=yacs.CfgNode(ARCH="ViT-B/16"))
        config.__dict__["__immutable__"] = True
        content = {"model": published, "max_accuracy": 83.8, "epoch": 29, "config": config}
        torch.save(content, folder / "k400_16_8.pth")
    return theirs, folder


@pytest.mark.parametrize("file", ["k400_16_8.pth", "model.safetensors"])
def test_an_x_clip_is_known_in_both_spellings_and_scores_pixels_as_its_authors_do(x_clip, file):
    theirs, folder = x_clip
    model, report = opened(folder / file)
    assert (model.method.name, model.num_frames, model.img_size, model.reader.prompt_layers) == ("x_clip", 4, 32, 2)
    assert report.kind == "aim"
    assert any("mean [123.675, 116.28, 103.53]" in line for line in report.lines)
    model.eval().set_classes(NAMES)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((clips - mean) / std).permute(0, 1, 4, 2, 3)
    tokens = model.text.tokenize(["walking", "Brush Hair", "apply lipstick"]).ids
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, pixel_values=pixels, attention_mask=(tokens > 0).long()).logits_per_video
        assert_relative(model(clips), wanted, 1e-4)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of the methods' authors are not here")
@pytest.mark.parametrize(
    ("case", "method", "wraps"),
    [
        ("xclip", "x_clip", lambda state: {"model": state, "config": None}),
        ("actionclip_transf", "actionclip", None),
        ("actionclip_meanp", "actionclip", None),
        ("dist", "dist", lambda state: {"model_state": {f"module.{name}": t for name, t in state.items()}}),
    ],
)
def test_what_the_authors_code_writes_is_known_by_its_names_and_shapes(case, method, wraps, tmp_path):
    state = peer_case(case, CASES).state
    if wraps is None:
        towers, fusion = (
            {f"module.{name.removeprefix(part)}": t for name, t in state.items() if name.startswith(part)}
            for part in ("model.", "fusion_model.")
        )
        state = {name.removeprefix("model.").replace("fusion_model.", "fusion."): t for name, t in state.items()}
        torch.save({"epoch": 3, "model_state_dict": towers, "fusion_model_state_dict": fusion}, tmp_path / "f.pth")
    else:
        torch.save(wraps(state), tmp_path / "f.pth")
    meanp = case == "actionclip_meanp"
    if meanp:
        with pytest.raises(WeightsError, match="give --model vit_b16_clip,method=actionclip"):
            identify(read_weights(tmp_path / "f.pth"), "f.pth")
    asked = "vit_b16_clip,method=actionclip" if meanp else None
    model, report = opened(tmp_path / "f.pth", asked=asked)
    assert model.method.name == method
    assert not [line for line in report.lines if "initialisation" in line]
    held = {model.published_name(name): tensor for name, tensor in model.state_dict().items()}
    assert state.keys() - held.keys() <= {"visual.proj"}  # which DiST reads nowhere
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())
    assert (model.mean == IMAGENET_MEAN) is (method == "x_clip")
    assert model.mean in (IMAGENET_MEAN, CLIP_MEAN)


BESIDE = {
    "evl": (("decoder.", "proj."), {"num_heads": 2, "decoder_heads": 4}),
    "side4video": (("fc.", "visual.side_", "visual.transformer.side_"), {"num_heads": 1, "num_frames": 4}),
    "dist": (("dist_net.",), {}),
}


@pytest.mark.parametrize("method", BESIDE)
def test_a_network_alone_is_joined_with_the_trunk_that_is_given(method, tmp_path):
    parts, untold = BESIDE[method]
    state = peer_case(method).state
    alone = {name: tensor for name, tensor in state.items() if name.startswith(parts)}
    torch.save({"model": alone, "next_step": 50_000}, tmp_path / "alone.pth")
    save_file({name: one for name, one in state.items() if name not in alone}, tmp_path / "clip.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    width = state["visual.class_embedding"].shape[0]
    lacking = f"alone.pth holds the network of method {method} alone, without its trunk of width {width}"
    with pytest.raises(WeightsError, match=f"{lacking}: give that too"):
        opened(tmp_path / "alone.pth")
    save_file({"visual.class_embedding": torch.zeros(48)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=f"{lacking}, and .*other.safetensors is another, of width 48"):
        opened(tmp_path / "alone.pth", tmp_path / "other.safetensors")
    model, report = opened(tmp_path / "alone.pth", tmp_path / "clip.safetensors", **untold)
    whole, other = opened(tmp_path / "whole.pth", **untold)
    assert report.sha256 == other.sha256
    assert any("alone.pth holds no trunk: that of" in line for line in report.lines)
    assert model.config == whole.config
    unread = {"ln_post.weight", "ln_post.bias"}  # which the authors of some leave out
    for name, tensor in whole.state_dict().items():
        assert name in unread or torch.equal(model.state_dict()[name], tensor), name


def test_a_network_beside_an_imagenet_trunk_is_joined_too(tmp_path):
    torch.manual_seed(0)
    source = create_model("vit_imagenet_demo", method="evl", decoder_layers=2, num_frames=4)
    state = source.state_dict()
    own = {name: tensor for name, tensor in state.items() if source.is_adaptation(name)}
    save_file(own, tmp_path / "alone.safetensors")
    save_file({name: one for name, one in state.items() if name not in own}, tmp_path / "vit.safetensors")
    model, _ = opened(tmp_path / "alone.safetensors", tmp_path / "vit.safetensors")
    assert model.config["decoder_layers"] == 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_what_is_not_known_is_said_in_one_line(x_clip, tmp_path):
    _, folder = x_clip
    state = read_weights(folder / "k400_16_8.pth").tensors
    torch.save({name: t for name, t in state.items() if "mit." not in name}, tmp_path / "headless.pth")
    with pytest.raises(WeightsError, match="X-CLIP's messages and not its head"):
        opened(tmp_path / "headless.pth")
    clip = {name: t for name, t in state.items() if not any(own in name for own in ("mit.", "prompts_", "message_"))}
    fusion = {"lstm_visual.weight_ih_l0": torch.zeros(4, 4)}
    torch.save({"model_state_dict": clip, "fusion_model_state_dict": fusion}, tmp_path / "lstm.pth")
    with pytest.raises(WeightsError, match="ActionCLIP whose frames are joined by lstm_visual"):
        opened(tmp_path / "lstm.pth")
    with pytest.raises(WeightsError, match="is an aim_vit_b16_clip checkpoint, not vit_imagenet_demo") as caught:
        opened(folder / "k400_16_8.pth", asked="vit_imagenet_demo,method=evl")
    assert "\n" not in str(caught.value)
