"""TokenLearner: its costs, and what it reads of a clip."""

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.registry import create_model


def test_has_the_parameters_and_products_that_are_counted_for_the_published_one():
    found, trained, products = count_costs("tokenlearner_l10", {"num_frames": 64})
    assert found == trained
    assert found / 1e6 == pytest.approx(450.60, rel=0.0005)
    assert 12 * products / 1e9 == pytest.approx(48390, rel=0.0005)


def test_pixels_beyond_the_last_whole_patch_are_not_read():
    model = create_model("tokenlearner_demo", img_size=52).eval()
    torch.nn.init.normal_(model.fc_cls.weight)
    frames = torch.randint(0, 256, (1, 8, 52, 52, 3), dtype=torch.uint8)
    other = frames.clone()
    other[:, :, 48:] = 0
    other[:, :, :, 48:] = 0
    assert torch.equal(model(frames), model(other))
    other[:, :, :48] = 0
    assert not torch.equal(model(frames), model(other))


def test_what_cannot_be_is_said():
    for wrong, said in (({"learner_at": 4}, "none of the 4 blocks"), ({"num_frames": 7}, "frames of a tubelet")):
        with pytest.raises(UsageError, match=said):
            create_model("tokenlearner_demo", **wrong)
