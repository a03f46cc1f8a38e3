"""Networks of other libraries: the structure that their library describes, counted and run as ours are."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model, list_models
from torchvision.models.video import mvit

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs, count_parameters, multiply_adds
from aim_fast.models.libraries import NETWORKS, is_library
from aim_fast.models.library_results import published_by_library
from aim_fast.models.loading import load_weights
from aim_fast.models.published import published_results
from aim_fast.models.registry import create_model
from aim_fast.training.optimizer import build_optimizer
from aim_fast.training.recipe_file import load_recipe

TORCHVISION = [f"torchvision:{name}" for name in list_models() if f"torchvision:{name}" in NETWORKS]
# Parameters that their papers or model cards give, in millions: TimeSformer 121, ViViT-B 89, VideoMAE-B 87.
TRANSFORMERS = {"transformers:timesformer": 121, "transformers:vivit": 89, "transformers:videomae": 87}


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_those_of_torchvisions_metadata(name):
    """Parameters to the last one, multiply-adds of 16 frames to the printed digit."""
    from torchvision.models import get_model_weights

    meta = get_model_weights(name.partition(":")[2]).DEFAULT.meta
    with torch.device("meta"):
        model = create_model(name, num_frames=16)
    assert count_parameters(model) == (meta["num_params"], meta["num_params"])
    assert multiply_adds(model) / 1e9 == pytest.approx(meta["_ops"], abs=0.001)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers_have_their_published_size(name):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        params, trained = count_parameters(create_model(name))
    assert trained == params
    assert params == pytest.approx(TRANSFORMERS[name] * 1e6, rel=0.01)


def test_x_clip_scores_every_class_without_its_text_tower():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = create_model("transformers:x_clip", num_classes=7, num_frames=4)
        assert model(torch.empty(2, 4, 224, 224, 3, dtype=torch.uint8)).shape == (2, 7)
    assert not any("token_embedding" in name for name, _ in model.named_parameters())
    with pytest.raises(WeightsError, match="train a CLIP with --method x_clip"):
        load_weights(model, "xclip.safetensors")


def test_uint8_clips_and_normalised_ones_give_the_same_logits():
    torch.manual_seed(0)
    model = create_model("torchvision:swin3d_t", num_classes=5, num_frames=2).eval()
    clips = torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(clips)
        torch.testing.assert_close(model(model.normalize(clips)), logits)
    assert logits.shape == (1, 5)


needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not here")
# Parameters in millions and 10⁹ multiply-adds of a view, as counted of the structures that the tables' rows are.
COUNTED = [
    ("torchvision:mvit_v1_b", 36.61, 70.6),
    ("torchvision:mvit_v1_b,frames=32", 36.61, 170.0),
    ("torchvision:mvit_v1_b,frames=64", 36.613, 4095.6 / 9),
    ("torchvision:mvit_v1_b24", 53.2, 236.2),
    ("torchvision:mvit_v2_s", 34.54, 64.2),
    ("torchvision:mvit_v2_b", 51.2, 224.5),
    ("torchvision:mvit_v2_l", 213.390, 42351 / 15),
    ("torchvision:swin3d_l", 196.954, 7239.2 / 12),
    ("transformers:timesformer", 121.57, 195.8),
    ("transformers:timesformer,frames=96", 121.634, 7139.6 / 3),
    ("transformers:timesformer,frames=16,image_size=448", 122.02, 1702.7),
    ("transformers:vivit_l", 307.5, 1436.0),
    ("transformers:vivit_l,image_size=320", 310.85, 3957),
    ("transformers:x_clip", None, 38.2),
    ("transformers:x_clip,frames=16", None, 74.1),
    ("transformers:x_clip_b16", None, 144.2),
    ("transformers:x_clip_l14", None, 7889 / 12),
]


@pytest.mark.parametrize(
    ("name", "params", "gflops"),
    [pytest.param(*row, marks=needs_transformers if row[0].startswith("transformers") else ()) for row in COUNTED],
)
def test_every_row_costs_what_its_table_says(name, params, gflops):
    counted, trained, products = count_costs(name, {"num_classes": 400})
    assert counted == trained
    assert params is None or counted / 1e6 == pytest.approx(params, rel=0.005)
    assert products / 1e9 == pytest.approx(gflops, rel=0.005)


@pytest.mark.parametrize(
    "row",
    [row for row in published_results() if row.printed_frames and row.gflops and is_library(row.model)],
    ids=lambda row: row.model,
)
def test_printed_gflops_are_those_of_the_true_frames(row):
    if row.model.startswith("transformers"):
        pytest.importorskip("transformers")
    clips, crops = map(int, row.views.split("x"))
    assert count_costs(row.model, row.arguments)[2] * clips * crops / 1e9 == pytest.approx(row.gflops, rel=0.005)
    assert row.frames != row.printed_frames


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_the_list_of_blocks_is_torchvisions_own(name, monkeypatch):
    """What our builder and torchvision's give torchvision's class."""
    seen = []

    class Recorded(mvit.MViT):
        def __init__(self, *arguments, **named):
            seen.append(dict(zip(("spatial_size", "temporal_size", "block_setting"), arguments), **named))
            super().__init__(*arguments, **named)

    monkeypatch.setattr(mvit, "MViT", Recorded)
    with torch.device("meta"):
        get_model(name, num_classes=400, dropout=0.0)
        create_model(f"torchvision:{name}", drop_path=0.2)
    theirs, ours = ([{**vars(block)} for block in one.pop("block_setting")] for one in seen)
    plain = {"stride_q": [1, 1, 1]}  # version 2 says a stride of 1, or none
    assert [plain | {k: v for k, v in block.items() if v} for block in ours] == [
        plain | {k: v for k, v in block.items() if v} for block in theirs
    ]
    assert seen[0] == seen[1]


def _block(heads, channels, kernel, query, stride):
    pooled = {"kernel_q": kernel, "kernel_kv": [3, 3, 3], "stride_q": query, "stride_kv": [1, stride, stride]}
    return mvit.MSBlockConfig(num_heads=heads, input_channels=channels[0], output_channels=channels[1], **pooled)


def _mvit(version):
    """An MViT of four blocks, doubled in blocks 1 and 3, written out."""
    two, three, half, same = version == 2, [3, 3, 3], [1, 2, 2], [1, 1, 1]
    widths = [(8, 8), (8, 16), (16, 16), (16, 32)] if two else [(8, 16), (16, 16), (16, 32), (32, 32)]
    kernels = [three if two or doubles else [] for doubles in (False, True, False, True)]
    queries = [half if doubles else same if two else [] for doubles in (False, True, False, True)]
    blocks = [_block(*row) for row in zip((1, 2, 2, 4), widths, kernels, queries, (8, 4, 4, 2))]
    return mvit.MViT((32, 32), 4, blocks, two, False, two, two, dropout=0.0, num_classes=5)


def _swin():
    from torchvision.models.video import SwinTransformer3d

    return SwinTransformer3d([2, 4, 4], 12, [2, 2], [1, 2], [2, 4, 4], stochastic_depth_prob=0.0, num_classes=5)


def _transformers(kind, **others):
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    config = getattr(transformers, f"{kind}Config")(image_size=32, num_frames=4, num_labels=5, **sizes, **others)
    return getattr(transformers, f"{kind}ForVideoClassification")(config)


SIZES = {"img_size": 32, "num_frames": 4, "num_classes": 5, "head_dropout": 0.0}
MVIT = {**SIZES, "depth": 4, "embed_dim": 8, "doubled": (1, 3), "drop_path": 0.0}
SWIN = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": (2, 4, 4), "drop_path": 0.0}
VIT = {**SIZES, "embed_dim": 48, "depth": 2, "num_heads": 2}
ORACLES = {
    "torchvision:mvit_v1_b": (MVIT, lambda: _mvit(1)),
    "torchvision:mvit_v2_s": (MVIT, lambda: _mvit(2)),
    "torchvision:swin3d_t": ({**SIZES, **SWIN}, _swin),
    "transformers:timesformer": (VIT, lambda: _transformers("Timesformer")),
    "transformers:vivit": (VIT, lambda: _transformers("Vivit")),
    "transformers:videomae": (VIT, lambda: _transformers("VideoMAE")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_transformers if "transformers" in name else ()) for name in ORACLES]
)
def test_logits_and_gradients_are_those_of_the_librarys_own_model(name):
    overrides, make = ORACLES[name]
    torch.manual_seed(0)
    theirs, ours = make().double().train(), create_model(name, **overrides).double().train()
    ours.network.load_state_dict(theirs.state_dict())
    clips = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    truth = theirs(clips if "torchvision" in name else clips.transpose(1, 2))
    truth = getattr(truth, "logits", truth)
    found, labels = ours(clips), torch.tensor([1, 3])
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    for logits in (truth, found):
        F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert {f"network.{name}" for name in gradients} == {name for name, _ in ours.trainable_parameters()}
    for name, parameter in ours.trainable_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name.removeprefix("network.")], rtol=1e-9, atol=1e-10)


@needs_transformers
@pytest.mark.parametrize("head", ["attentive", "linear"])
def test_v_jepa_2_gives_its_head_what_its_library_gives(head):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "pred_num_hidden_layers": 1}
    theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(crop_size=32, frames_per_clip=4, **sizes)).eval()
    ours = create_model("transformers:vjepa2_l", head=head, **VIT).eval()
    ours.network.encoder.load_state_dict(theirs.encoder.state_dict())
    clips = torch.randn(2, 3, 4, 32, 32)
    tokens = theirs(clips.transpose(1, 2), skip_predictor=True).last_hidden_state.unflatten(1, (2, 4))
    found = ours.frozen_features(clips)
    torch.testing.assert_close(found, tokens if head == "attentive" else tokens.mean(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(found), ours(clips))
    assert not [name for name, _ in ours.trainable_parameters() if name.startswith("network.")]


def test_a_library_that_is_too_old_is_said(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision, "__version__", "0.14.1")
    with pytest.raises(UsageError, match=r"needs torchvision 0.26 or later, and 0.14.1 is installed"):
        create_model("torchvision:mvit_v2_s")


@needs_transformers
@pytest.mark.parametrize("recipe", ["k400_videomae", "ssv2_videomae", "k400_videomae_l", "k400_swin3d_b"])
def test_every_rate_of_a_recipe_is_of_some_parameter_and_the_head_has_the_full_one(recipe):
    asked = load_recipe(recipe, {})
    with torch.device("meta"):
        model = create_model(asked.model.model)
    rates = {id(p): group["lr_factor"] for group in build_optimizer(model, asked).param_groups for p in group["params"]}
    assert len(set(rates.values())) == len({factor.rpartition("=")[2] for factor in asked.optimisation.lr_factors}) + 1
    head = {rates[id(parameter)] for name, parameter in model.named_parameters() if model.part_of(name) == "head"}
    assert head == {1.0}


def test_weight_decay_is_taken_off_as_each_network_is_published():
    free = {name: create_model(name, **ORACLES[name][0]).no_weight_decay() for name in list(ORACLES)[:3]}
    assert "network.pos_encoding.class_token" not in free["torchvision:mvit_v1_b"]
    assert {"network.norm.weight", "network.blocks.0.mlp.0.bias"} <= free["torchvision:mvit_v2_s"]
    assert "network.features.0.0.attn.relative_position_bias_table" in free["torchvision:swin3d_t"]
    assert "network.features.0.0.mlp.0.bias" not in free["torchvision:swin3d_t"]


def test_the_library_says_its_best_weights_for_the_clips_they_were_scored_on():
    best = published_by_library("torchvision:swin3d_b", "kinetics400", {"num_frames": 32})
    assert best["top1"] > published_by_library("torchvision:swin3d_s", "kinetics400", {"num_frames": 32})["top1"] > 79
    assert "IMAGENET22K" in best["source"]
    assert best["views"] == "12x1"
    assert published_by_library("torchvision:swin3d_b", "kinetics400", {"num_frames": 8}) is None
    assert published_by_library("torchvision:swin3d_b", "ssv2", {"num_frames": 32}) is None
    assert published_by_library("transformers:vivit", "kinetics400", {"num_frames": 32}) is None
