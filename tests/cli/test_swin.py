"""AIM on Swin from end to end: trained from an image checkpoint on videos, evaluated, and its own options refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

SIZES = ("--model", "aim_swin_demo", "--frames", 4, "--batch-size", 8)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """A file of image weights for `aim_swin_demo` in timm's names."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(img_size=48, window_size=6, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=3)
    path = tmp_path_factory.mktemp("swin") / "timm.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def test_train_from_timms_weights_and_evaluate(aim_fast, motion_set, swin, tmp_path):
    run = tmp_path / "run"
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    status, _, err = aim_fast("train", *data, "--weights", swin, *SIZES, "--epochs", 1, "--output", run, "--quiet")
    assert status == 0, err
    with safe_open(run / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
        table = file.get_tensor("layers.0.blocks.0.attn.temporal_position_bias_table")
        assert table.shape == (3, 2)
        assert file.get_tensor("layers.1.blocks.1.S_Adapter2.D_fc2.weight").any()
        assert not [name for name in file.keys() if "qkv" in name or "relative" in name]  # noqa: SIM118
    scores = tmp_path / "scores.json"
    status, _, err = aim_fast("eval", run, "--json", scores)
    assert status == 0, err
    assert json.loads(scores.read_text())["videos"] == 16


def test_options_of_other_models_are_refused(aim_fast, motion_set, swin, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", swin)
    status, _, err = aim_fast("train", *data, *SIZES, "--num-tadapter", 2, "--output", tmp_path / "run")
    assert status
    assert "aim_swin_demo takes no --num-tadapter" in err
