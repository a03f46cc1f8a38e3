"""PyAV decoding: the right frames, the same pixels as DALI's decoder, and errors in one line."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.picture import CONVERSION
from aim_fast.data.video.probe import probe
from aim_fast.errors import DataError
from tests.data.conftest import write_cut

pytestmark = pytest.mark.stack

KINDS = ["vp9", "vp9_other", "vp9_gop", "vp9_altref", "vp8", "mjpeg", "h264", "h264_long", "mpeg4"]


def all_frames(path: Path) -> np.ndarray:
    """Every frame that is shown, decoded from the start without any skipping."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    options = {"format": "rgb24", "src_colorspace": "ITU601", "interpolation": CONVERSION}
    return np.stack([frame.reformat(**options).to_ndarray() for frame in decoded])


def choices(count: int, random: np.random.Generator) -> list[np.ndarray]:
    picks = [np.sort(random.choice(count, size, replace=False)) for size in (1, 2, 5, 5, 5)]
    return [np.array([0]), np.array([count - 1]), np.arange(count), *picks]


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_frames_equal_a_whole_decode(videos, kind):
    whole = all_frames(videos[kind])
    for frames in choices(len(whole), np.random.default_rng(0)):
        assert np.array_equal(decode_frames(str(videos[kind]), frames), whole[frames])


def test_chosen_frames_of_real_clips_equal_a_whole_decode(shared_videos):
    for path in shared_videos.values():
        whole = all_frames(path)
        assert probe(str(path)).frames == len(whole)
        for frames in choices(len(whole), np.random.default_rng(1))[3:]:
            assert np.array_equal(decode_frames(str(path), frames), whole[frames])


@pytest.mark.parametrize("kind", ["vp9", "vp9_other", "vp9_gop", "vp9_altref", "vp8", "mjpeg"])
def test_pixels_equal_those_of_dalis_decoder(videos, kind):
    pytest.importorskip("nvidia.dali")
    from aim_fast.data.pixels.clip_input import ClipInput
    from aim_fast.data.pixels.dali_pipelines import decode_inputs, decoding
    from aim_fast.data.plan.clip_plan import ClipPlan

    count = probe(str(videos[kind])).frames
    frames = np.array([0, 3, count // 2, count - 1], np.int32)
    pipeline = decoding(batch_size=1, threads=1)
    pipeline.start(decode_inputs([ClipInput(ClipPlan(frames, frames, (0, 0, 1, 1)), str(videos[kind]))]))
    assert np.array_equal(np.asarray(pipeline.wait()[0]), decode_frames(str(videos[kind]), frames))


def test_dali_refuses_frames_that_are_not_there_instead_of_giving_black_ones(videos):
    pytest.importorskip("nvidia.dali")
    from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
    from aim_fast.data.pixels.dali_pipelines import decode_inputs, decoding
    from aim_fast.data.plan.clip_plan import ClipPlan

    frames = np.array([0, 30], np.int32)
    pipeline = decoding(batch_size=1, threads=1)
    pipeline.start(decode_inputs([ClipInput(ClipPlan(frames, frames, (0, 0, 1, 1)), str(videos["vp9"]))]))
    with pytest.raises(PipelineError):
        pipeline.wait()


def test_frames_before_time_zero_do_not_count(videos, tmp_path):
    path = tmp_path / "cut.mp4"
    write_cut(videos["h264"], path, 24)
    found = probe(str(path))
    assert found.error is None
    assert 30 <= found.frames < 60
    whole = all_frames(path)
    assert len(whole) == found.frames
    assert np.array_equal(whole, all_frames(videos["h264"])[-found.frames :])
    picks = np.array([0, 5, found.frames - 1])
    assert np.array_equal(decode_frames(str(path), picks), whole[picks])


def test_rotation_metadata_turns_the_frames_when_asked(videos, rotated):
    plain = decode_frames(str(rotated), [0, 7])
    assert np.array_equal(plain, decode_frames(str(videos["h264"]), [0, 7]))
    turned = decode_frames(str(rotated), [0, 7], rotate=True)
    assert np.array_equal(turned, np.rot90(plain, -1, axes=(1, 2)))


def test_threads_change_no_pixel(videos):
    for kind in ("h264", "vp9"):
        frames = [3, 11, 20]
        one, four = (decode_frames(str(videos[kind]), frames, threads=n) for n in (1, 4))
        assert np.array_equal(one, four)


@pytest.mark.parametrize("kind", ["empty", "text", "audio"])
def test_undecodable_files_are_named_in_one_line(broken, kind):
    with pytest.raises(DataError) as error:
        decode_frames(str(broken[kind]), [0])
    assert str(broken[kind]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_frame_that_is_not_there_is_an_error(videos):
    for kind in ("vp9", "mpeg4"):
        with pytest.raises(DataError, match="has no frame 99"):
            decode_frames(str(videos[kind]), [0, 99])
