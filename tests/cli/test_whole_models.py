"""Models that are trained whole, from the command line: trained, evaluated, asked, and written in other forms."""

import json

import pytest
import torch
from safetensors.torch import load_file

from aim_fast.training.metrics import read_metrics
from aim_fast.training.run import load_run

MODELS = ("uniformer_demo", "vivit_fe_demo", "mtv_demo", "tokenlearner_demo")


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_predicts_evaluates_and_is_the_same_in_other_forms(aim_fast, motion_set, tmp_path, model):
    run, data = tmp_path / "run", ("--dataset", "ssv2", "--data-root", motion_set)
    options = ("--weights", "random", "--epochs", 1, "--batch-size", 8, "--total-batch-size", 16, "--output", run)
    status, out, err = aim_fast("train", "--model", model, *options, *data)
    assert status == 0, err
    assert ("batch norms see the clips that are taken at a time" in out + err) is (model == "uniformer_demo")

    video = next(path for path in sorted(motion_set.rglob("*")) if path.suffix in (".webm", ".mp4"))
    status, out, err = aim_fast("predict", run, video, "--json")
    assert status == 0, err
    assert json.loads(out)

    truth = load_run(run, "cpu", "fp32").model
    clip = torch.randint(0, 256, (2, truth.num_frames, truth.img_size, truth.img_size, 3), dtype=torch.uint8)
    for source, target in (("run", "m.pth"), ("run", "m.safetensors"), ("m.pth", "again")):
        status, _, err = aim_fast("convert", tmp_path / source, tmp_path / target)
        assert status == 0, err
        assert torch.equal(load_run(tmp_path / target, "cpu", "fp32").model(clip), truth(clip))
    scores = []
    for source in ("run", "m.pth"):
        status, out, err = aim_fast("eval", tmp_path / source, *data, "--json", "-")
        assert status == 0, err
        scores.append(json.loads(out)["loss"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # of other batches
    assert scores[0] == pytest.approx(read_metrics(run)[-1]["loss"], rel=0.01)  # of other views
    if model == "uniformer_demo":
        assert "norm.running_var" in load_file(tmp_path / "again" / "checkpoints" / "best" / "adapters.safetensors")


def test_a_method_a_head_or_an_option_of_others_is_refused_in_one_line(aim_fast, motion_set, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--output", tmp_path / "run", "--weights", "random")
    for option in (("--method", "aim"), ("--head", "attentive"), ("--adapter-ratio", 0.5), ("--head-dropout", 0.1)):
        status, _, err = aim_fast("train", "--model", "vivit_fe_demo", *data, *option)
        assert (status, err.count("\n")) == (2, 1), err
        assert "leave it out" in err
