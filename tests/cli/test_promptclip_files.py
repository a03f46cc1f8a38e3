"""Published PromptCLIP checkpoints as they are: told from their tensors, scored, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aim_fast import create_model
from aim_fast.models.heads.tokens import TextTokens
from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights
from aim_fast.models.weights.files import read_weights

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def published(tmp_path_factory, clip_file):
    """A checkpoint in the published names with a prompt, of the sizes of the demo, and the model in it."""
    torch.manual_seed(3)
    model = create_model("promptclip_demo", num_frames=4)
    load_weights(model, clip_file)
    for _, parameter in model.trainable_parameters():
        if parameter.ndim > 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("published") / "model.pth.tar"
    torch.save({"epoch": 40, "state_dict": model.state_dict(), "optimizer": {}}, path)
    return path, model


def scores(aim_fast, run, *options):
    status, out, err = aim_fast("eval", run, *options, "--json", "-")
    assert status == 0, err
    return json.loads(out), err


@pytest.mark.parametrize("case", ["promptclip_tfm2", "promptclip_notfm"])
def test_identified_models_compute_the_golden_logits(case, tmp_path):
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    torch.save({"state_dict": state}, tmp_path / "it.pth")
    found = identify(read_weights(tmp_path / "it.pth"), "it.pth")
    prompt = {"prompt_prefix": 4, "prompt_postfix": 4, "temporal_heads": 4}  # which no tensor tells
    model = create_model(found.model, **found.options, **prompt).double()
    report = load_weights(model, tmp_path / "it.pth")
    unread = [line for line in report.lines if "temporalEmbedding" in line]
    assert len(unread) == (case == "promptclip_notfm")
    ids = torch.stack([tensors[f"tokens/{name}"] for name in config["class_names"]])
    model.set_tokens(TextTokens(ids, ids.argmax(-1)))
    logits = model(tensors["input"].double().transpose(1, 2))
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-8, atol=1e-8)


def test_a_published_file_is_scored_on_the_classes_of_the_data_set(published, aim_fast, motion_set, tmp_path):
    """And so is the run made from it, with the same scores; no class counts as never trained on."""
    path, _ = published
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--batch-size", 8)
    direct, err = scores(aim_fast, path, *data)
    assert direct["videos"] == 16
    assert "say --prompt-prefix (16), --prompt-postfix (16) if not so" in err
    assert "zero-shot" not in err
    status, out, err = aim_fast("convert", path, tmp_path / "run")
    assert status == 0, err
    assert "names no classes: the data set's are scored" in out
    again, err = scores(aim_fast, tmp_path / "run", *data)
    assert (again["loss"], again["top1"]) == (direct["loss"], direct["top1"])
    assert "zero-shot" not in err
    shorter, _ = scores(aim_fast, path, *data, "--prompt-prefix", 2, "--prompt-postfix", 0)
    assert shorter["loss"] != pytest.approx(direct["loss"], rel=1e-4)


def test_classes_are_named_for_a_prediction(published, aim_fast, motion_set, tmp_path):
    path, _ = published
    video = next((motion_set / "20bn-something-something-v2").glob("*.webm"))
    (tmp_path / "names.txt").write_text("push left\npull right\n")
    status, _, err = aim_fast("predict", path, video)
    assert (status, err.splitlines()[-1].endswith("give --class-names FILE, one a line")) == (2, True)
    named = aim_fast("predict", path, video, "--class-names", tmp_path / "names.txt", "--json")
    assert named[0] == 0, named[2]
    assert aim_fast("convert", path, tmp_path / "run", "--classes", tmp_path / "names.txt")[0] == 0
    kept = aim_fast("predict", tmp_path / "run", video, "--json")
    assert kept[:2] == named[:2]
    assert {row["label"] for row in json.loads(kept[1])[0]["predictions"]} == {"push left", "pull right"}


def test_frames_of_another_number_are_interpolated(published):
    path, model = published
    other = create_model("promptclip_demo", num_frames=8)
    report = load_weights(other, path)
    assert "temporalEmbedding interpolated from 4 to 8 frames" in report.lines
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    whole, half = model.temporalEmbedding.weight, other.temporalEmbedding.weight
    torch.testing.assert_close(half.unflatten(0, (4, 2)).mean(1)[1:-1], (whole[:-2] + 6 * whole[1:-1] + whole[2:]) / 8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("learned", "holds PromptCLIP's temporal part but no CLIP (clipmodel.…)"),
        ("frozen", "holds PromptCLIP's CLIP but no prompt (embedding.weight)"),
        ("unprojected", "has no projection of its image tower (visual.proj)"),
    ],
)
def test_a_part_of_a_checkpoint_is_refused_in_one_line(kind, message, published, aim_fast, tmp_path):
    state = dict(published[1].state_dict())
    for name in list(state):
        learned = name.startswith(("embedding.", "temporal"))
        if name == "clipmodel.visual.proj" if kind == "unprojected" else learned == (kind == "frozen"):
            del state[name]
    torch.save({"state_dict": state}, tmp_path / "part.pth")
    status, _, err = aim_fast("convert", tmp_path / "part.pth", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_another_model_is_refused_and_a_run_says_its_prompt_itself(published, aim_fast, tmp_path):
    path, _ = published
    status, _, err = aim_fast("convert", path, tmp_path / "run", "--model", "aim_vit_b16_clip")
    assert (status, err.count("\n")) == (2, 1)
    assert "is a promptclip_demo checkpoint, not aim_vit_b16_clip: give --model promptclip_demo" in err
    assert aim_fast("convert", path, tmp_path / "run")[0] == 0
    status, _, err = aim_fast("convert", tmp_path / "run", tmp_path / "again.pth", "--prompt-prefix", 3)
    assert (status, err.count("\n")) == (2, 1)
    assert f"--prompt-prefix 3: {tmp_path / 'run'} was trained with 16" in err
