"""A run of each kind of model: stopped in the middle and resumed, it ends as one that was never stopped."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from aim_fast.models.registry import find_entry
from tests.cli.stopped_runs import train_and_resume

WHOLE = ("uniformer_demo", "vivit_fe_demo", "mtv_demo", "tokenlearner_demo")
MODELS = ("aim_vit_imagenet_demo", "aim_swin_demo", "timesformer_demo", "promptclip_demo", "text head", *WHOLE)
DROPS = ("--drop-path", 0.2, "--head-dropout", 0.5)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A file of image weights for `aim_vit_imagenet_demo`, as timm writes them."""
    torch.manual_seed(0)
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 3}
    path = tmp_path_factory.mktemp("vit") / "timm.safetensors"
    save_file(timm.create_model("vit_base_patch16_224", **sizes).state_dict(), path)
    return path


@pytest.mark.parametrize("case", MODELS)
def test_a_stopped_run_resumes_to_the_same_values_bit_for_bit(
    aim_fast, motion_set, vit, clip_file, towers, tmp_path, monkeypatch, case
):
    weights = {"aim_vit_imagenet_demo": vit, "promptclip_demo": clip_file, "text head": towers}.get(case, "random")
    model = "aim_vit_demo" if case == "text head" else case
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", weights, "--model", model, "--frames", 4)
    options += ("--batch-size", 8, "--total-batch-size", 8, "--epochs", 1, "--log-every", 1)
    drops = {"promptclip_demo": (), "text head": (*DROPS[:2], "--head", "text")} | dict.fromkeys(WHOLE, DROPS[:2])
    options += drops.get(case, DROPS)
    train_and_resume(aim_fast, monkeypatch, find_entry(model).model, options, tmp_path)


def test_a_file_of_another_kind_of_trunk_is_refused_in_one_line(aim_fast, motion_set, trunk, vit, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--output", tmp_path / "run")
    for model, file, hint in (("aim_vit_imagenet_demo", trunk, "a CLIP ViT"), ("aim_vit_demo", vit, "timm")):
        status, _, err = aim_fast("train", *data, "--model", model, "--weights", file)
        assert (status, err.count("\n")) == (2, 1)
        assert hint in err
