"""The example of docs/adding_a_trunk.md, as it is printed there."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from aim_fast.errors import UsageError
from aim_fast.models import registry
from aim_fast.models.loading import load_weights

PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_trunk.md").read_text()


def test_the_documented_file_and_line_make_a_model_that_is_timms_frame_by_frame(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="unknown model 'aim_deit_b16_distilled'"):
        registry.create_model("aim_deit_b16_distilled")
    names = {**vars(registry)}
    exec(re.search(r"```python\n(.+?)```", PAGE, re.DOTALL)[1], names)
    name, line = re.search(r'^    "(aim_deit_b16_distilled)": (.+),$', PAGE, re.MULTILINE).groups()
    monkeypatch.setattr(registry, "MODELS", {**registry.MODELS, name: eval(line, names)})
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    torch.manual_seed(0)
    theirs = timm.create_model("deit_base_distilled_patch16_224", **sizes).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(theirs.state_dict(), tmp_path / "deit.safetensors")
    model = registry.create_model(name, **sizes, num_frames=2).double().eval()
    assert load_weights(model, tmp_path / "deit.safetensors").kind == "timm"
    clips = torch.randn(1, 3, 2, 32, 32, dtype=torch.float64)
    truth = theirs.forward_features(clips[0].transpose(0, 1))[:, 0]
    assert (model.forward_features(clips)[0] - truth).norm() <= 1e-9 * truth.norm()


def test_the_documented_line_of_a_registered_name_makes_timms_dinov2():
    name, line = re.search(r'^    "(aim_dinov2_s14)": (.+),$', PAGE, re.MULTILINE).groups()
    entry, truth = eval(line, {**vars(registry)}), registry.find_entry("timm:vit_small_patch14_reg4_dinov2")
    assert entry.model is truth.model
    assert {key: truth.arguments[key] for key in entry.arguments} == dict(entry.arguments), name
