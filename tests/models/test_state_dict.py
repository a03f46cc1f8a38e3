"""``load_checkpoint``: prefixes, file kinds, and every difference named before anything is loaded."""

import pytest
import torch
from safetensors.torch import save_file

import aim_fast
from aim_fast.errors import WeightsError

SIZES = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "num_frames": 2,
    "num_classes": 3,
}


def small(**overrides):
    return aim_fast.create_model("aim_vit_demo", **{**SIZES, "num_classes": 3, **overrides}).eval()


def published(state, module=False):
    names = {n: f"cls_head.{n}" if n.startswith("fc_cls") else f"backbone.{n}" for n in state}
    return {("module." if module else "") + names[n]: tensor for n, tensor in state.items()}


@pytest.mark.parametrize("form", ["bare", "published", "module", "nested", "pth", "safetensors"])
def test_checkpoints_load_under_every_prefix_and_from_every_file(form, tmp_path):
    theirs, model = small(), small()
    state = theirs.state_dict()
    if form == "bare":
        source = state
    elif form == "published":
        source = published(state)
    elif form == "module":
        source = published(state, module=True)
    elif form == "nested":
        source = {"state_dict": published(state), "meta": {"epoch": 1}}
    elif form == "pth":
        source = tmp_path / "published.pth"
        torch.save({"state_dict": published(state), "meta": {"epoch": 1}}, source)
    else:
        source = tmp_path / "state.safetensors"
        save_file(state, source)
    aim_fast.load_checkpoint(model, source)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values()))


def test_every_difference_is_named_and_nothing_is_loaded():
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = published(small(num_classes=4).state_dict())
    del state["backbone.ln_pre.weight"], state["backbone.conv1.weight"]
    state |= {"backbone.extra": torch.zeros(1), "backbone.proj": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        aim_fast.load_checkpoint(model, state)
    message = str(caught.value)
    assert "missing conv1.weight, ln_pre.weight; unexpected extra, proj; of another shape" in message
    assert "fc_cls.bias (file [4], model [3]), fc_cls.weight (file [4, 16], model [3, 16])" in message
    assert "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_tensor_under_two_names_is_refused():
    model = small()
    state = model.state_dict()
    with pytest.raises(WeightsError, match=r"'ln_pre\.bias' twice"):
        aim_fast.load_checkpoint(model, state | {"backbone.ln_pre.bias": state["ln_pre.bias"]})


def test_an_empty_state_dict_names_everything():
    with pytest.raises(WeightsError, match=r"missing .*class_embedding.*temporal_embedding"):
        aim_fast.load_checkpoint(small(), {})


def test_tensors_take_the_dtype_of_the_model():
    theirs, model = small(), small().double()
    aim_fast.load_checkpoint(model, {name: tensor.bfloat16() for name, tensor in theirs.state_dict().items()})
    assert model.conv1.weight.dtype == torch.float64
    torch.testing.assert_close(model.conv1.weight, theirs.conv1.weight.bfloat16().double())


def test_values_that_are_not_finite_are_refused_by_name():
    model, state = small(), small().state_dict()
    state["ln_post.weight"][3] = float("nan")
    before = model.ln_post.weight.clone()
    with pytest.raises(WeightsError, match=r"not finite ln_post\.weight$"):
        aim_fast.load_checkpoint(model, state)
    assert torch.equal(model.ln_post.weight, before)
