"""Models of other libraries: the structure that their library describes, counted and run as ours are."""

import pytest
import torch

from aim_fast.models.counting.flops import count_parameters, multiply_adds
from aim_fast.models.peers import create_peer, list_peers, published_by_library

TORCHVISION = [name for name in list_peers() if name.startswith("torchvision:")]
# Parameters that their papers or model cards give, in millions: TimeSformer 121, ViViT-B 89, VideoMAE-B 87.
TRANSFORMERS = {"transformers:timesformer": 121, "transformers:vivit": 89, "transformers:videomae": 87}


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_those_of_torchvisions_metadata(name):
    """Parameters to the last one, multiply-adds of 16 frames to the printed digit."""
    from torchvision.models import get_model_weights

    meta = get_model_weights(name.partition(":")[2]).DEFAULT.meta
    with torch.device("meta"):
        model = create_peer(name, num_frames=16)
    assert count_parameters(model) == (meta["num_params"], meta["num_params"])
    assert multiply_adds(model) / 1e9 == pytest.approx(meta["_ops"], abs=0.001)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers_have_their_published_size(name):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        params, trained = count_parameters(create_peer(name))
    assert trained == params
    assert params == pytest.approx(TRANSFORMERS[name] * 1e6, rel=0.01)


def test_x_clip_scores_every_class_without_its_text_tower():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = create_peer("transformers:x_clip", num_classes=7, num_frames=4)
        assert model(torch.empty(2, 4, 224, 224, 3, dtype=torch.uint8)).shape == (2, 7)
    assert not any("token_embedding" in name for name, _ in model.named_parameters())


def test_uint8_clips_and_normalised_ones_give_the_same_logits():
    torch.manual_seed(0)
    model = create_peer("torchvision:swin3d_t", num_classes=5, num_frames=2).eval()
    clips = torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(clips)
        torch.testing.assert_close(model(model.normalize(clips)), logits)
    assert logits.shape == (1, 5)


def test_the_library_says_its_best_weights_for_the_clips_they_were_scored_on():
    best = published_by_library("torchvision:swin3d_b", "kinetics400", 32)
    assert best["top1"] > published_by_library("torchvision:swin3d_s", "kinetics400", 32)["top1"] > 79
    assert "IMAGENET22K" in best["source"]
    assert best["views"] == "12x1"
    assert published_by_library("torchvision:swin3d_b", "kinetics400", 8) is None
    assert published_by_library("torchvision:swin3d_b", "ssv2", 32) is None
    assert published_by_library("transformers:vivit", "kinetics400", 32) is None
