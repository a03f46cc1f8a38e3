"""The methods and heads of docs/methods.md and docs/heads.md, as they are printed there."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from aim_fast.models.heads import HEADS
from aim_fast.models.methods import METHODS
from aim_fast.models.registry import create_model

DOCS = Path(__file__).parents[2] / "docs"
TRUNKS = {
    "vit_demo": {"img_size": 32},
    "vit_imagenet_demo": {"img_size": 32},
    "timm:vit_small_patch16_dinov3": {"img_size": 32, "embed_dim": 32, "num_heads": 2},
}
every_trunk = pytest.mark.parametrize("trunk", TRUNKS)


def printed(page, name):
    names = {}
    exec(re.search(r"```python\n(.+?)```", (DOCS / page).read_text(), re.DOTALL)[1], names)
    return names[name]


def make(trunk, **parts):
    torch.manual_seed(0)
    sizes = {"depth": 2, "num_frames": 3, "num_classes": 5, "head_dropout": 0.0}
    return create_model(trunk, **TRUNKS[trunk], **sizes, **parts)


@every_trunk
def test_the_documented_method_starts_as_the_trunk_and_trains(trunk, monkeypatch):
    monkeypatch.setitem(METHODS, "before", printed("methods.md", "Before"))
    model, probe = make(trunk, method="before", before_ratio=0.25), make(trunk, method="probe")
    probe.load_state_dict(model.state_dict(), strict=False)
    clips = torch.randn(2, 3, 3, 32, 32)
    torch.testing.assert_close(model(clips), probe(clips), rtol=1e-4, atol=1e-5)
    F.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.trainable_parameters()}
    assert sum("_Adapter.D_fc2.weight" in name for name in trained) == 4
    twin = create_model(trunk, **model.config)
    assert twin.config == model.config
    assert twin.state_dict().keys() == model.state_dict().keys()


@every_trunk
def test_the_documented_head_reads_the_change_and_trains(trunk, monkeypatch):
    monkeypatch.setitem(HEADS, "change", printed("heads.md", "Change"))
    model = make(trunk, method="probe", head="change").eval()
    still = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(model(still), model.fc_cls.bias.expand(2, 5), rtol=0, atol=1e-6)
    F.cross_entropy(model(torch.randn(2, 3, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert model.fc_cls.weight.grad.norm() > 0
    assert create_model(trunk, **model.config).config == model.config
