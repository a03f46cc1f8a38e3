"""LoRA and BitFit: what trains, what they start as, their counts, LoRA's merge, and attention over time beside them."""

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
TAIL = {"temporal_embedding", "ln_post.weight", "ln_post.bias", "fc_cls.weight", "fc_cls.bias"}
both = pytest.mark.parametrize("method", ["lora", "bitfit"])
over_time = pytest.mark.parametrize("attention_over_time", [False, True])


def make(trunk="vit_demo", *, draw=True, **arguments):
    torch.manual_seed(0)
    model = create_model(trunk, **TINY, **arguments).double().eval()
    for parameter in model.parameters() if draw else ():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def clips():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 32, 32, dtype=torch.float64, generator=generator)


@over_time
def test_bitfit_trains_every_bias_and_nothing_else_of_the_trunk(attention_over_time):
    model = make(method="bitfit", attention_over_time=attention_over_time)
    trained = {name for name, _ in model.trainable_parameters()}
    assert {name for name, _ in model.named_parameters() if "bias" in name.rpartition(".")[2]} <= trained
    rest = {name for name in trained if not name.endswith("bias") and "T_Adapter" not in name} - TAIL
    assert not rest
    assert any("T_Adapter" in name for name in trained) is attention_over_time


@over_time
def test_lora_trains_its_factors_and_the_tail(attention_over_time):
    model = make(method="lora", attention_over_time=attention_over_time)
    trained = {name for name, _ in model.trainable_parameters()}
    assert {name for name in trained if "T_Adapter" not in name and ".lora." not in name} == TAIL
    assert sum(".lora." in name for name in trained) == 8
    assert any("T_Adapter" in name for name in trained) is attention_over_time


@both
@over_time
@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo"])
@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_fused_is_the_plain_form_with_every_gradient(method, attention_over_time, trunk, memory):
    found = []
    for running in ({"memory": memory}, {"backend": "reference"}):
        model = make(trunk, method=method, attention_over_time=attention_over_time, **running)
        F.cross_entropy(model(clips()), torch.tensor([0, 1])).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-7, atol=1e-10, msg=name)


@both
@over_time
def test_starts_as_the_trunk_frame_by_frame(method, attention_over_time):
    model = make(draw=False, method=method, attention_over_time=attention_over_time)
    probe = make(draw=False, method="probe")
    probe.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(clips()), probe(clips()))


@both
def test_knows_the_order_of_frames_by_attention_over_time_or_the_temporal_embedding(method):
    x = clips()
    for attention_over_time, embedded, knows in ((False, False, False), (False, True, True), (True, True, True)):
        model = make(method=method, attention_over_time=attention_over_time)
        if not embedded:
            torch.nn.init.zeros_(model.temporal_embedding)
        assert torch.allclose(model(x), model(x.flip(2)), rtol=1e-9) is not knows
        other = x.clone()
        other[:, :, 3] = 0
        same = torch.allclose(model.forward_features(x)[:, 0], model.forward_features(other)[:, 0])
        assert same is not attention_over_time


@over_time
@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo"])
def test_lora_merges_exactly(attention_over_time, trunk):
    model = make(trunk, method="lora", attention_over_time=attention_over_time)
    merged = model.merged()
    assert not [name for name in merged.state_dict() if ".lora." in name]
    torch.testing.assert_close(merged(clips()), model(clips()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "overrides", "own", "tail"),
    [
        ("vit_b16_clip", {"method": "lora"}, 294_912, True),
        ("vit_l14_clip", {"method": "lora"}, 786_432, True),
        ("vit_b16_clip", {"method": "bitfit"}, 417_424, False),
    ],
)
def test_trains_as_many_parameters_as_there_should_be(model, overrides, own, tail):
    width = 768 if "b16" in model else 1024
    beside = 400 * (width + 1) + 8 * width + 2 * width if tail else 0
    _, trainable, products = count_costs(model, overrides)
    assert trainable == own + beside
    if "b16" in model:
        assert products / 1e9 == pytest.approx(140.5, rel=0.005)


def test_one_method_s_weights_are_refused_by_another(tmp_path):
    torch.save(make(method="lora").state_dict(), tmp_path / "lora.pth")
    for method in ("aim", "bitfit", "probe"):
        with pytest.raises(WeightsError, match="is a checkpoint of method lora: take --method lora"):
            load_weights(make(method=method), tmp_path / "lora.pth")
    with pytest.raises(WeightsError, match="make the model with lora_rank=8"):
        load_weights(make(method="lora", lora_rank=4), tmp_path / "lora.pth")
