"""Views of one file for prediction, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from aim_fast.data import ClipLoader, Sampling, load_or_build_index, load_views
from aim_fast.data.video.decode import decode_frames
from aim_fast.errors import DataError


def test_views_have_the_stated_shape_and_content(videos):
    views = load_views(videos["vp9"], Sampling(4, clips=1, crops=3), 64)
    assert views.shape == (3, 4, 64, 64, 3)
    assert views.dtype == torch.uint8
    left, right, middle = views.float()
    assert not torch.equal(left, right)
    # Crops of 64 of 114 columns: what the left one has from column 25 on, the middle one has from its first.
    apart = [(left[:, :, by:] - middle[:, :, : 64 - by]).abs().mean() for by in range(15, 36)]
    assert min(range(21), key=apart.__getitem__) == 10


@pytest.mark.parametrize("kind", ["vp9", "h264", "mpeg4"])
def test_views_are_those_of_the_loaders_evaluation(class_folders, videos, kind):
    root = class_folders({"train/a": [videos[kind]]})
    sampling = Sampling(4, interval=4, clips=2, crops=3)
    loader = ClipLoader(
        load_or_build_index("folder", root, "train"), train=False, batch_size=6, sampling=sampling, img_size=48
    )
    (batch,) = loader.batches()
    loader.close()
    assert torch.equal(batch.frames, load_views(videos[kind], sampling, 48))


def test_an_unscaled_view_is_the_frames_themselves(videos):
    views = load_views(videos["h264"], Sampling(3), 96)  # 96 × 128, 60 frames: the centre squares of 10, 29 and 49
    expected = decode_frames(str(videos["h264"]), [10, 29, 49])
    assert torch.equal(views[0], torch.from_numpy(expected)[:, :, 16:112])


def test_rotation_metadata_is_respected(videos, rotated):
    upright = load_views(rotated, Sampling(2), 64)
    plain = load_views(videos["h264"], Sampling(2), 64)
    turned = torch.rot90(plain, -1, dims=(2, 3))
    assert (upright.float() - turned.float()).abs().mean() < 1


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "truncated_mp4", "audio", "one_frame"])
def test_unusable_files_are_refused_in_one_line(broken, kind):
    with pytest.raises(DataError) as error:
        load_views(broken[kind], Sampling(2), 32)
    assert str(broken[kind]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_views(tmp_path / "no.mp4", Sampling(2), 32)


def test_fewer_frames_than_the_model_takes_are_refused_unless_allowed(videos, broken):
    sampling = Sampling(32)
    with pytest.raises(DataError, match="has 30 frames but the model takes 32"):
        load_views(videos["vp9"], sampling, 32)
    views = load_views(videos["vp9"], sampling, 32, allow_short=True)
    assert views.shape[1] == 32
    assert sum(torch.equal(a, b) for a, b in zip(views[0], views[0, 1:])) >= 2  # frames are repeated
    still = load_views(broken["one_frame"], Sampling(4), 32, allow_short=True)
    assert all(torch.equal(still[0, 0], frame) for frame in still[0])


def test_real_clips_give_views(shared_videos):
    for path in shared_videos.values():
        views = load_views(path, Sampling(8, clips=2, crops=3), 112)
        assert views.shape == (6, 8, 112, 112, 3)
        assert views.float().std() > 10
