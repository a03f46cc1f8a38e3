"""`aim-fast convert`: published checkpoints in and out of runs, every bit kept, every variant told from its tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from aim_fast import create_model
from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.identification import identify
from aim_fast.models.weights.files import WeightsFile, read_weights
from aim_fast.training.recipe_file import typed
from aim_fast.training.trained_file import read_trained

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = {
    "aim_vit_clip_1t": "aim_vit",
    "aim_vit_clip_2t": "aim_vit",
    "aim_vit_imagenet_1t": "aim_vit_s16_in21k",
    "aim_vit_imagenet_2t": "aim_vit_s16_in21k",
    "timesformer_clip": "timesformer",
    "aim_swin2d": "aim_swin",
}


def published(case, folder):
    """A golden case's model as the published code saves it, and its configuration."""
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state/")]  # noqa: SIM118
        state = {name.removeprefix("state/"): file.get_tensor(name) for name in names}
        golden = {"logits": file.get_tensor("logits")}
        whole = "input_int8" in file.keys()  # noqa: SIM118
        golden["input"] = file.get_tensor("input_int8") / 64 if whole else file.get_tensor("input")
        config = json.loads(file.metadata()["config"])
    path = folder / f"{case}.pth"
    torch.save({"meta": {"epoch": 30, "mmaction_version": "0.20"}, "state_dict": state, "optimizer": {}}, path)
    return path, state, config, golden


@pytest.mark.parametrize(
    ("model", "parts", "head"),
    [
        ("vit_demo", ("--method", "probe"), "attentive"),
        ("vit_imagenet_demo", ("--method", "full"), "linear"),
        ("timm:test_vit2", ("--method", "full"), "attentive"),
        ("timm:test_vit3", ("--method", "probe"), "linear"),
        ("vit_demo", ("--adapters", "none"), "linear"),
    ],
)
def test_a_model_without_adapters_goes_through_files_and_scores_the_same(
    model, parts, head, aim_fast, motion_set, tmp_path
):
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    options = (*data, "--weights", "random", "--frames", 2, "--img-size", 48, "--epochs", 0, "--quiet")
    run = (*options, "--model", model, *parts, "--head", head, "--precision", "fp32", "--output", tmp_path / "run")
    assert aim_fast("train", *run)[0] == 0
    for source, target in (("run", "a.safetensors"), ("a.safetensors", "b.pth")):
        status, _, err = aim_fast("convert", tmp_path / source, tmp_path / target)
        assert status == 0, err
    scores = []
    for name in ("run", "a.safetensors", "b.pth"):
        shown = ("--json", "-", "--precision", "fp32", "--views", "1x1", "--interval", 0, *data)
        status, out, err = aim_fast("eval", tmp_path / name, *shown)
        assert status == 0, err
        scores.append(json.loads(out)["loss"])
    assert scores == pytest.approx(scores[:1] * 3, rel=1e-6)


@pytest.mark.parametrize("case", [*VARIANTS, "promptclip_tfm2"])
def test_published_checkpoints_pass_through_runs_and_files_bit_for_bit(case, aim_fast, tmp_path):
    path, state, config, _ = published(case, tmp_path)
    scale = ("--adapter-scale", config["adapter_scale"]) if "adapter_scale" in config else ()
    for source, target in (
        (path, "run"),
        ("run", "again.pth"),
        ("again.pth", "bare.safetensors"),
        ("bare.safetensors", "b.pth"),
    ):
        options = scale if source is path else ()
        status, out, err = aim_fast("convert", tmp_path / source, tmp_path / target, *options)
        assert status == 0, err
        assert VARIANTS.get(case, "promptclip_b16") in out
    for name in ("again.pth", "b.pth"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert content["state_dict"].keys() == state.keys()
        assert all(torch.equal(content["state_dict"][key], tensor) for key, tensor in state.items())
    bare = load_file(tmp_path / "bare.safetensors")
    assert bare.keys() == {key.removeprefix("backbone.").removeprefix("cls_head.") for key in state}


@pytest.mark.parametrize("case", VARIANTS)
def test_identified_models_compute_the_golden_logits(case, tmp_path):
    path, state, config, golden = published(case, tmp_path)
    found = identify(read_weights(path), str(path))
    heads = config.get("heads", config.get("num_heads"))  # these tiny models have heads that no CLIP has
    scale = {"adapter_scale": config["adapter_scale"]} if "adapter_scale" in config else {}
    model = create_model(found.model, **{**found.options, "num_heads": heads, **scale}).double().eval()
    model.load_state_dict({name.split(".", 1)[1]: tensor for name, tensor in state.items()})
    torch.testing.assert_close(model(golden["input"].double()), golden["logits"].double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["aim_vit_b16_clip", "aim_vit_b32_clip", "aim_vit_l14_336_clip", "aim_vit_h14_clip", "aim_vit_bigg14_clip",
             "aim_vit_h14_clipa", "aim_vit_b16_in21k", "aim_vit_l16_in21k", "timesformer_l14_clip", "aim_swin_t",
             "aim_swin_b", "promptclip_b16", "promptclip_b32", "promptclip_l14"]
)  # fmt: skip
def test_sizes_name_the_registered_model(name):
    with torch.device("meta"):
        state = create_model(name, num_frames=16, num_classes=174).state_dict()
    found = identify(WeightsFile({f"module.{key}": tensor for key, tensor in state.items()}), "it")
    assert found.model == name
    assert found.options["num_frames"] == 16
    with torch.device("meta"):
        again = create_model(found.model, **found.options)
    assert {key: t.shape for key, t in again.state_dict().items()} == {key: t.shape for key, t in state.items()}


def test_a_converted_run_predicts_as_the_checkpoint_and_knows_its_classes(aim_fast, motion_set, tmp_path, trained):
    video = next((motion_set / "20bn-something-something-v2").glob("*.webm"))
    assert aim_fast("convert", trained, tmp_path / "aim.pth")[0] == 0
    assert aim_fast("convert", tmp_path / "aim.pth", tmp_path / "run")[0] == 0
    answers = [
        aim_fast("predict", model, video, "--json") for model in (trained, tmp_path / "aim.pth", tmp_path / "run")
    ]
    assert [status for status, _, _ in answers] == [0, 0, 0]
    assert answers[0][1] == answers[1][1] == answers[2][1]
    status, out, err = aim_fast("eval", tmp_path / "run", "--dataset", "ssv2", "--data-root", motion_set, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["videos"] == 16
    status, _, err = aim_fast(
        "train", "--output", tmp_path / "run", "--resume", "--dataset", "ssv2", "--data-root", motion_set
    )
    assert status == 2
    assert "was converted and holds no optimiser" in err


def test_class_names_are_given_as_a_file(aim_fast, tmp_path):
    path, *_ = published("aim_vit_clip_1t", tmp_path)
    for text, name in (
        ("walk\nrun\nsit\njump\nfall\n", "lines.txt"),
        ('{"run": 1, "walk": "0", "sit": 2, "jump": 3, "fall": 4}', "o.json"),
    ):
        (tmp_path / name).write_text(text)
        assert aim_fast("convert", path, tmp_path / f"{name}.pth", "--classes", tmp_path / name)[0] == 0
        assert read_weights(tmp_path / f"{name}.pth").description["classes"] == ["walk", "run", "sit", "jump", "fall"]
    status, out, _ = aim_fast("convert", path, tmp_path / "numbered.pth")
    assert status == 0
    assert "names no classes" in out


def bad(kind, folder):
    path, state, *_ = published("aim_vit_clip_1t", folder)
    if kind == "demo":
        state = create_model("aim_vit_demo", num_classes=3).state_dict()
    elif kind == "trunk":
        state = {name: tensor for name, tensor in state.items() if "Adapter" not in name}
    elif kind == "headless":
        state = {name: tensor for name, tensor in state.items() if "fc_cls" not in name}
    elif kind == "alien":
        state = {"blocks.0.Q_Adapter.D_fc1.weight": torch.zeros(2, 2), "blocks.0.attn.k": torch.zeros(2)}
    elif kind == "holes":
        del state["backbone.transformer.resblocks.1.attn.out_proj.weight"]
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("whole", ("--model", "timesformer_b16_clip"), "is an aim_vit_b16_clip checkpoint, not timesformer_b16_clip"),
        ("whole", ("--model", "aim_vit_b17_clip"), "did you mean 'aim_vit_b1"),
        ("demo", ("--model", "aim_vit_b16_clip"), "is an aim_vit_demo checkpoint, not aim_vit_b16_clip"),
        ("whole", ("--classes", "missing.txt"), "missing.txt: cannot be read as class names"),
        ("trunk", (), "holds no adapters"),
        ("headless", (), "holds no classifier"),
        ("alien", (), "adapters of no model known here"),
        ("holes", (), "missing transformer.resblocks.1.attn.out_proj.weight"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_writes_nothing(kind, options, message, aim_fast, tmp_path):
    status, _, err = aim_fast("convert", bad(kind, tmp_path), tmp_path / "out", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def lora(described, folder):
    """A LoRA of rank 8, as its file and as the model that it is of."""
    model = create_model("aim_vit_demo", img_size=48, num_frames=2, num_classes=3, method="lora")
    told = {"model": "aim_vit_demo", "options": model.config, "classes": ["a", "b", "c"]}
    meta = {"aim_fast": json.dumps(told)} if described else {}
    names = {model.published_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"meta": meta, "state_dict": names}, folder / "lora.pth")
    return folder / "lora.pth", model


@pytest.mark.parametrize("described", [True, False])
def test_a_file_of_another_method_or_head_than_asked_is_refused(described, tmp_path):
    path, model = lora(described, tmp_path)
    for part, other, own in (("method", "st_adapter", "lora"), ("head", "attentive", "linear")):
        with pytest.raises(WeightsError, match=f"lora.pth: is of {part} {own}, not {other}"):
            read_trained(path, {"model": "aim_vit_demo", "method": "lora", part: other})
    found = read_trained(path, {"model": "aim_vit_demo", "method": "lora"})
    assert found.model.config == model.config


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    ("said", "right"),
    [("lora_rank=4", 8), ("img_size=64", 48), ("depth=2", 4), ("attention_over_time=true", False), ("frames=2", None)],
)
def test_what_a_name_says_beside_a_file_is_what_the_file_says(said, right, described, tmp_path):
    path, model = lora(described, tmp_path)
    name, _, value = said.partition("=")
    asked = typed({"model": f"aim_vit_demo,method=lora,{said}"})
    if right is not None:
        with pytest.raises(WeightsError, match=f"lora.pth: is of {name} {right}, not {value.title()}: leave that out"):
            read_trained(path, asked)
        asked = typed({"model": f"aim_vit_demo,method=lora,{name}={right}"})
    assert read_trained(path, asked).model.config == model.config
    with pytest.raises(UsageError, match="has no argument '(adapters|foo)'"):
        read_trained(path, typed({"model": f"aim_vit_demo,method=lora,{['adapters=[spatial]', 'foo=3'][described]}"}))


def test_what_no_tensor_tells_is_taken_where_the_file_does_not_say_it_either(tmp_path):
    asked = {"model": "aim_vit_demo", "method": "lora", "lora_alpha": "3"}
    assert read_trained(lora(False, tmp_path)[0], asked).model.config["lora_alpha"] == 3
    with pytest.raises(WeightsError, match="is of lora_alpha 16.0, not 3.0: leave that out"):
        read_trained(lora(True, tmp_path)[0], asked)


def test_destinations_are_not_overwritten(aim_fast, tmp_path):
    path, *_ = published("aim_vit_clip_1t", tmp_path)
    before = path.read_bytes()
    status, _, err = aim_fast("convert", path, path)
    assert status == 2
    assert "is there already" in err
    assert path.read_bytes() == before
    status, _, err = aim_fast("convert", path, tmp_path / "no" / "folder.pth")
    assert status == 2
    assert "there is no folder" in err
