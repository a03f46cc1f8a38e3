"""Weights of other libraries' networks: their files, folders and names; what is resized or left is said."""

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model

needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not here")
STILL = {"img_size": 32, "num_frames": 4, "num_classes": 5, "head_dropout": 0.0}
MVIT = {**STILL, "depth": 4, "embed_dim": 8, "doubled": (1, 3), "drop_path": 0.0}
SWIN = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": (4, 4, 4), "drop_path": 0.0}
VIT = {**STILL, "embed_dim": 48, "depth": 2, "num_heads": 2}


def made(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return create_model(name, **overrides).eval()


def bare(model):
    """The network's tensors, as its library names them."""
    return model.network.state_dict()


def test_a_file_of_torchvisions_with_another_head_frames_and_size(tmp_path):
    theirs = made("torchvision:mvit_v1_b", **MVIT)
    torch.save(bare(theirs), tmp_path / "mvit.pth")
    ours = made("torchvision:mvit_v1_b", 1, **MVIT | {"num_classes": 3, "num_frames": 8, "img_size": 48})
    head = ours.network.head[1].weight.clone()
    report = load_weights(ours, tmp_path / "mvit.pth")
    assert report.kind == "library"
    resized, replaced = report.lines
    assert "positions resized: pos_encoding.spatial_pos from [64, 8] to [144, 8]" in resized
    assert "pos_encoding.temporal_pos from [2, 8] to [4, 8]" in resized
    assert replaced == (
        f"{tmp_path / 'mvit.pth'} has a head of 5 classes, the model of 3: the head is left at its initialisation"
    )
    assert torch.equal(ours.network.head[1].weight, head)
    table = bare(theirs)["pos_encoding.temporal_pos"]
    wanted = F.interpolate(table.T[None], size=4, mode="linear")[0].T
    torch.testing.assert_close(bare(ours)["pos_encoding.temporal_pos"], wanted)
    assert torch.equal(bare(ours)["conv_proj.weight"], bare(theirs)["conv_proj.weight"])


def test_tables_of_offsets_are_brought_to_another_grid(tmp_path):
    theirs = made("torchvision:mvit_v2_s", **MVIT)
    torch.save({"state_dict": {f"module.{key}": value for key, value in bare(theirs).items()}}, tmp_path / "v2.pth")
    ours = made("torchvision:mvit_v2_s", 1, **MVIT | {"num_frames": 8})
    (line,) = load_weights(ours, tmp_path / "v2.pth").lines
    assert line.startswith("positions resized: blocks.0.attn.rel_pos_t from [3, 8] to [7, 8]")
    assert torch.equal(bare(ours)["blocks.0.attn.rel_pos_h"], bare(theirs)["blocks.0.attn.rel_pos_h"])


@pytest.mark.parametrize("window", [(2, 4, 4), (4, 2, 2)])
def test_windows_of_another_size_keep_the_offsets_that_both_have(window, tmp_path):
    """A table that grows with the distance stays so, whatever the window."""
    theirs = made("torchvision:swin3d_t", **STILL, **SWIN)
    name = "features.0.0.attn.relative_position_bias_table"
    grid = torch.stack(torch.meshgrid(*(torch.arange(-3.0, 4) for _ in range(3)), indexing="ij"))
    with torch.no_grad():
        bare(theirs)[name].copy_(grid[0 if window[0] == 2 else 1].reshape(-1, 1))
    torch.save(bare(theirs), tmp_path / "swin.pth")
    ours = made("torchvision:swin3d_t", 1, **STILL, **SWIN | {"window_size": window})
    (line,) = load_weights(ours, tmp_path / "swin.pth").lines
    sides = [2 * size - 1 for size in window]
    assert f"{name} from [343, 1] to [{sides[0] * sides[1] * sides[2]}, 1]" in line
    found = bare(ours)[name].reshape(sides)
    along = found[:, 0, 0] if window[0] == 2 else found[0, :, 0]
    assert along.diff().min() > 0
    torch.testing.assert_close(along, -along.flip(0), atol=1e-5, rtol=0)
    again = made("torchvision:swin3d_t", **STILL, **SWIN | {"window_size": window})
    index = "features.0.0.attn.relative_position_index"
    assert torch.equal(bare(ours)[index], bare(again)[index])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [({"embed_dim": 16}, "of another shape"), ({"depth": 3, "doubled": (1,)}, "unexpected network.blocks")],
)
def test_a_file_of_another_structure_is_refused_and_nothing_is_changed(overrides, says, tmp_path):
    torch.save(bare(made("torchvision:mvit_v1_b", **MVIT)), tmp_path / "mvit.pth")
    ours = made("torchvision:mvit_v1_b", 1, **MVIT | overrides)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(WeightsError, match=says):
        load_weights(ours, tmp_path / "mvit.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_torchvisions_names_are_fetched_and_bring_their_pixels(tmp_path, monkeypatch):
    """From the cache: no test fetches. The file that lies there is one of ours."""
    from torchvision.models.video import MViT_V2_S_Weights

    entry = MViT_V2_S_Weights.KINETICS400_V1
    theirs = made("torchvision:mvit_v2_s", **MVIT)
    (tmp_path / "checkpoints").mkdir()
    torch.save(bare(theirs), tmp_path / "checkpoints" / entry.url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    ours = made("torchvision:mvit_v2_s", 1, **MVIT, mean=(1, 2, 3), std=(4, 5, 6))
    (line,) = load_weights(ours, "torchvision:MViT_V2_S_Weights.KINETICS400_V1").lines
    assert "mean [114.75, 114.75, 114.75] and std [57.375, 57.375, 57.375]" in line
    assert ours.mean == (114.75,) * 3
    assert all(torch.equal(bare(ours)[name], tensor) for name, tensor in bare(theirs).items())
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(WeightsError, match=r"cannot be fetched \(OSError; offline\?\): download https://"):
        load_weights(ours, "torchvision:MViT_V1_B_Weights.KINETICS400_V1")


FOLDERS = {
    "transformers:timesformer": "TimesformerForVideoClassification",
    "transformers:vivit": "VivitForVideoClassification",
    "transformers:videomae": "VideoMAEForVideoClassification",
}


@needs_transformers
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_transformers_gives_its_logits_and_its_pixels(name, tmp_path):
    theirs = made(name, **VIT)
    theirs.network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    ours = made(name, 1, **VIT)
    (line,) = load_weights(ours, tmp_path).lines
    assert "mean [25.5, 25.5, 25.5] and std [51.0, 51.0, 51.0]" in line
    clips = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(ours(clips), theirs(clips), rtol=0, atol=0)
    for sizes, said in (({"num_frames": 8}, "positions resized"), ({"img_size": 48}, "positions resized")):
        other = made(name, 1, **VIT | sizes)
        assert said in " ".join(load_weights(other, tmp_path).lines) or name == "transformers:videomae"
    with pytest.raises(WeightsError, match="of another architecture: its num_attention_heads 2, the model's 3"):
        load_weights(made(name, **VIT | {"num_heads": 3}), tmp_path)
    another = next(other for other in FOLDERS if other != name)
    with pytest.raises(WeightsError, match="of another network: its configuration says"):
        load_weights(made(another, **VIT), tmp_path)


@needs_transformers
def test_pre_training_without_a_classifier_starts_one(tmp_path):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    config = transformers.VideoMAEConfig(image_size=32, num_frames=4, decoder_hidden_size=24, **sizes)
    pretrained = transformers.VideoMAEForPreTraining(config)
    pretrained.save_pretrained(tmp_path / "whole")
    pretrained.videomae.save_pretrained(tmp_path / "encoder")
    for folder in ("whole", "encoder"):
        ours = made("transformers:videomae", 1, **VIT)
        lines = load_weights(ours, tmp_path / folder).lines
        assert any("the head is left at its initialisation" in line for line in lines)
        assert any("beside its network: " in line for line in lines) == (folder == "whole")
        tensor = ours.network.videomae.encoder.layer[1].output.dense.weight
        assert torch.equal(tensor, pretrained.videomae.encoder.layer[1].output.dense.weight)


@needs_transformers
def test_v_jepa_2_leaves_its_predictor_and_its_own_probe_out(tmp_path):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(crop_size=32, frames_per_clip=4, num_pooler_layers=1, **sizes)
    for kind in ("VJEPA2Model", "VJEPA2ForVideoClassification"):
        theirs = getattr(transformers, kind)(config)
        theirs.save_pretrained(tmp_path / kind)
        ours = made("transformers:vjepa2_l", 1, **VIT | {"num_frames": 8, "img_size": 48})
        lines = load_weights(ours, tmp_path / kind).lines
        assert any("beside its network: " in line for line in lines)
        theirs = getattr(theirs, "vjepa2", theirs)
        assert all(torch.equal(t, theirs.encoder.state_dict()[n]) for n, t in ours.network.encoder.state_dict().items())
