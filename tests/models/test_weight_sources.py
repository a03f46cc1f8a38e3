"""Weights as other programs write them: in parts, wrapped, beside their average, in Hugging Face's names and folders.

Each is written by the program itself (transformers, timm, open_clip, huggingface_hub, torch) and has to give its
features; what is not built is refused by what it is.
"""

import json

import open_clip
import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights, trunk_names
from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm_models import vit_arguments
from tests.conftest import SHARED
from tests.models.small_trunks import (
    FRAMES,
    SIZES,
    assert_is_clip,
    assert_is_vit,
    clip_model,
    drawn,
    make_clip,
    make_vit,
    vit_model,
)


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def vit():
    return make_vit()


@pytest.fixture(params=["safetensors", "bin"])
def parts(request, clip, tmp_path):
    """A folder of at least three parts and their index, as huggingface_hub writes it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    save_torch_state_dict(
        clip.state_dict(), folder, max_shard_size="40KB", safe_serialization=request.param == "safetensors"
    )
    assert len(list(folder.iterdir())) > 3
    return folder


@pytest.mark.parametrize("given", ["the folder", "the index", "one part", "the folder without its index"])
def test_weights_in_parts_are_joined(given, parts, clip):
    index = next(parts.glob("*.index.json"))
    source = {"the index": index, "one part": max(parts.glob("*-of-*"))}.get(given, parts)
    if given == "the folder without its index":
        index.unlink()
    model = clip_model()
    load_weights(model, source)
    assert_is_clip(model, clip)


def test_a_part_that_is_missing_is_named_whatever_was_given(parts):
    index, lost = next(parts.glob("*.index.json")), max(parts.glob("*-of-*"))
    lost.unlink()
    for source in (parts, index, min(parts.glob("*-of-*"))):
        with pytest.raises(WeightsError, match=rf"{lost.name}.*download") as caught:
            load_weights(clip_model(), source)
        assert "\n" not in str(caught.value)


def test_a_tensor_that_is_not_in_the_part_of_the_index_is_named(clip, tmp_path):
    save_torch_state_dict(clip.state_dict(), tmp_path, max_shard_size="40KB")
    part = max(tmp_path.glob("*-of-*"))
    tensors = load_file(part)
    name = sorted(tensors)[0]
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, part)
    with pytest.raises(WeightsError, match=rf"{part.name} lacks {name}"):
        load_weights(clip_model(), tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"a": 1}']
)
def test_json_that_is_no_index_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="is not a weights file"):
        load_weights(clip_model(), tmp_path)


@pytest.mark.parametrize("part", ["../model.safetensors", "/etc/passwd", "a/b.bin"])
def test_an_index_reads_no_file_from_elsewhere(part, tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"conv1.weight": part}}))
    with pytest.raises(WeightsError, match="is no file beside it"):
        load_weights(clip_model(), index)


def test_a_folder_says_what_it_holds_instead_of_weights(tmp_path):
    for name, said in (
        ("tf_model.h5", "holds tf_model.h5, not PyTorch's"),
        ("__0_0.distcp", "a distributed checkpoint"),
    ):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"\x00")
        with pytest.raises(WeightsError, match=f"is a folder.*{said}"):
            load_weights(clip_model(), folder)


class Lightning(nn.Module):
    """A module that holds the model that it trains, as Lightning's do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.criterion = model, nn.Linear(2, 2)


WRAPPED = {
    "DataParallel": lambda clip: nn.DataParallel(clip).state_dict(),
    "torch.compile": lambda clip: torch.compile(clip).state_dict(),
    "both": lambda clip: {f"module._orig_mod.{name}": tensor for name, tensor in clip.state_dict().items()},
    "module:": lambda clip: {f"module:{name}": tensor for name, tensor in clip.state_dict().items()},
    "AveragedModel": lambda clip: torch.optim.swa_utils.AveragedModel(clip).state_dict(),
    "Lightning": lambda clip: {"state_dict": Lightning(clip).state_dict(), "epoch": 1},
    "Lightning of the tower": lambda clip: {f"model.visual.{n}": t for n, t in clip.visual.state_dict().items()},
    "DeepSpeed": lambda clip: {"module": clip.state_dict(), "global_steps": 3},
    "open_clip's training": lambda clip: {"epoch": 1, "state_dict": nn.DataParallel(clip).state_dict()},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_the_marks_of_wrappers_come_off(wrapped, clip, tmp_path):
    torch.save(WRAPPED[wrapped](clip), tmp_path / "clip.pt")
    model = clip_model()
    report = load_weights(model, tmp_path / "clip.pt")
    assert_is_clip(model, clip)
    beside = [line for line in report.lines if "left out" in line]
    assert bool(beside) is (wrapped in ("Lightning", "AveragedModel"))
    assert wrapped != "Lightning" or "criterion (2)" in beside[0]


def test_blocks_that_were_compiled_one_by_one_are_taken(vit, tmp_path):
    whole = drawn(timm.create_model("vit_base_patch16_224", **SIZES, num_classes=0))
    for block in whole.blocks:
        block.attn = torch.compile(block.attn)
    assert any("attn._orig_mod.qkv" in name for name in whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "vit.pt")
    model = vit_model()
    load_weights(model, tmp_path / "vit.pt")
    assert_is_vit(model, whole)


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema", "model_ema_state_dict"])
def test_of_weights_and_their_average_the_weights_are_taken_and_it_is_said(name, vit, tmp_path):
    average = drawn(timm.create_model("vit_base_patch16_224", **SIZES, num_classes=0), seed=5)
    torch.save({name: average.state_dict(), "model": vit.state_dict(), "optimizer": {"state": {}}}, tmp_path / "vit.pt")
    model = vit_model()
    report = load_weights(model, tmp_path / "vit.pt")
    assert_is_vit(model, vit)
    assert f"holds model and {name}: model is taken (--weights-key chooses another)" in report.lines[0]
    report = load_weights(model, tmp_path / "vit.pt", key=name)
    assert_is_vit(model, average)
    assert not any("is taken" in line for line in report.lines)


def test_an_average_alone_is_taken_and_it_is_said(vit, tmp_path):
    torch.save({"state_dict_ema": {f"module.{n}": t for n, t in vit.state_dict().items()}}, tmp_path / "vit.pt")
    model = vit_model()
    report = load_weights(model, tmp_path / "vit.pt")
    assert_is_vit(model, vit)
    assert "its entry state_dict_ema is taken" in report.lines[0]


def test_an_i_jepa_checkpoint_gives_its_encoder(tmp_path):
    sizes = {**SIZES, "class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    theirs, target = (drawn(timm.create_model("vit_base_patch16_224", **sizes), seed) for seed in (0, 1))
    states = [{f"module.{n}": t for n, t in one.state_dict().items()} for one in (theirs, target)]
    predictor = {"module.predictor_embed.weight": torch.zeros(3, 3)}
    checkpoint = {"encoder": states[0], "predictor": predictor, "target_encoder": states[1], "opt": {}, "epoch": 300}
    torch.save(checkpoint, tmp_path / "ijepa.pth.tar")
    model = create_model("aim_vit_b16_in21k", **vit_arguments(theirs), **FRAMES).eval()
    report = load_weights(model, tmp_path / "ijepa.pth.tar")
    assert_is_vit(model, theirs)
    assert "holds encoder and target_encoder: encoder is taken" in report.lines[0]
    load_weights(model, tmp_path / "ijepa.pth.tar", key="target_encoder")
    assert_is_vit(model, target)


def test_dino_checkpoints_give_the_teacher_and_the_student_when_asked(vit, tmp_path):
    student = drawn(timm.create_model("vit_base_patch16_224", **SIZES, num_classes=0), seed=5)
    names = {"student": student, "teacher": vit}
    state = {name: {f"module.backbone.{n}": t for n, t in one.state_dict().items()} for name, one in names.items()}
    state["teacher"]["head.mlp.0.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "entries.pth")
    flat = {f"{name}.backbone.{n}": t for name, one in names.items() for n, t in one.state_dict().items()}
    torch.save({"model": flat}, tmp_path / "names.pth")
    for file in ("entries.pth", "names.pth"):
        for key, right in ((None, vit), ("teacher", vit), ("student", student)):
            model = vit_model()
            load_weights(model, tmp_path / file, key=key)
            assert_is_vit(model, right)


def test_two_trunks_of_unknown_standing_are_refused_until_one_is_chosen(vit, tmp_path):
    state = {f"module.{e}_encoder.{n}": t for e in ("base", "momentum") for n, t in vit.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match=r"several state dicts \(base_encoder, momentum_encoder\).*--weights-key"):
        load_weights(vit_model(), tmp_path / "moco.pth")
    model = vit_model()
    load_weights(model, tmp_path / "moco.pth", key="base_encoder")
    assert_is_vit(model, vit)
    with pytest.raises(WeightsError, match=r"no entry 'base'.*base_encoder.*momentum_encoder"):
        load_weights(model, tmp_path / "moco.pth", key="base")


def test_a_key_without_a_file_of_entries_is_refused(vit, tmp_path):
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match="has no entr.*leave --weights-key out"):
        load_weights(vit_model(), tmp_path / "vit.safetensors", key="model_ema")
    with pytest.raises(WeightsError, match="leave --weights-key out"):
        load_weights(vit_model(), "random", key="model_ema")


def test_the_command_lines_options_in_a_checkpoint_do_no_harm(vit, tmp_path):
    import argparse
    import pathlib

    options = argparse.Namespace(lr=0.1, output=pathlib.PosixPath("out"))
    torch.save({"model": vit.state_dict(), "args": options, "epoch": 3}, tmp_path / "mae.pth")
    model = vit_model()
    load_weights(model, tmp_path / "mae.pth")
    assert_is_vit(model, vit)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_other_files_are_refused_by_what_they_are(head, said, tmp_path):
    (tmp_path / "model.bin").write_bytes(head + b"\x00" * 200)
    with pytest.raises(WeightsError, match=said):
        load_weights(clip_model(), tmp_path / "model.bin")


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2s_own_names_are_taken(registers, tmp_path):
    """Blocks in chunks, and registers after a class token that has a position."""
    options = {"reg_tokens": registers, "no_embed_class": bool(registers), "init_values": 0.1, "num_classes": 0}
    theirs = drawn(timm.create_model("vit_small_patch14_reg4_dinov2", **{**SIZES, **options}))
    state = theirs.state_dict()
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 32), 0.25), state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - 0.25
    state = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in state.items()}
    torch.save({"teacher": {f"backbone.{n}": t for n, t in state.items()} | {"dino_head.w": torch.zeros(1)}},
               tmp_path / "dinov2.pth")  # fmt: skip
    model = create_model("aim_vit_b16_in21k", **vit_arguments(theirs), **FRAMES).eval()
    load_weights(model, tmp_path / "dinov2.pth")
    assert_is_vit(model, theirs)


def test_open_clips_repository_tells_its_activation_and_pixels(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 16, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = clip_model(activation="gelu")
    report = load_weights(model, tmp_path)
    assert (model.activation, model.mean) == ("quick_gelu", (127.5, 127.5, 127.5))
    assert not any("does not say" in line for line in report.lines)
    assert_is_clip(model, clip)
    assert open_clip.OPENAI_DATASET_MEAN != (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "vit", "num_attention_heads": "a"},
        {"model_type": "clip", "vision_config": [1]},
        {"pretrained_cfg": 1},
    ],
)
def test_a_damaged_configuration_is_one_line(config, vit, tmp_path):
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        load_weights(vit_model(), tmp_path)


def test_of_a_run_the_key_is_remembered(tmp_path, aim_fast, motion_set):
    """Trained with ``--weights-key`` and evaluated without it."""
    torch.manual_seed(0)
    models = [create_model("aim_vit_demo") for _ in range(2)]
    states = [{name: model.state_dict()[name] for name in trunk_names(model)} for model in models]
    torch.save({"model": states[0], "model_ema": states[1]}, tmp_path / "trunk.pt")
    common = ("--model", "aim_vit_demo", "--device", "cpu", "--epochs", 0, "--batch-size", 4, "--total-batch-size", 4)
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    weights = ("--weights", tmp_path / "trunk.pt", "--weights-key", "model_ema")
    status, _, err = aim_fast("train", *common, *data, *weights, "--output", tmp_path / "run")
    assert status == 0, err
    status, out, err = aim_fast("eval", tmp_path / "run", "--device", "cpu")
    assert status == 0, err
    assert "top-1" in out
    status, _, err = aim_fast("eval", tmp_path / "run", "--device", "cpu", "--weights-key", "model")
    assert status != 0
    assert "another trunk" in err


@pytest.mark.skipif(not (SHARED / "cases").exists(), reason="needs the cases beside this repository")
def test_the_case_beside_this_repository(tmp_path):
    import runpy
    import sys

    arguments, sys.argv = sys.argv, ["make_weights.py", str(tmp_path)]
    runpy.run_path(str(SHARED / "cases" / "make_weights.py"), run_name="__main__")
    sys.argv = arguments
    made = create_model("aim_vit_demo", num_frames=8, num_classes=3)
    joined = {load_weights(made, tmp_path / name).sha256 for name in ("", "model.safetensors.index.json")}
    one = load_weights(made, tmp_path / "model_ema.pt")
    assert joined == {one.sha256}
    assert "model_ema: model is taken" in one.lines[0]
