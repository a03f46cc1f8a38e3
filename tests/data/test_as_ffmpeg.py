"""Every route shows the frames that FFmpeg's command line shows: number, order and pixels, over all kinds of files.

Pixels are compared as means of 8 x 8: FFmpeg 5 places the chroma of 4:2:0 by half a pixel otherwise than DALI, which
is what the difference of up to four levels beside sharp edges of saturated colours is; turning and mirroring the
encoded planes, as transcoding does, moves it likewise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aim_fast.data.copies.frame_cache import load_or_build_frame_cache
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.plan.clip_plan import ClipPlan
from aim_fast.data.video.decode import decode_frames, stream_frames
from aim_fast.data.video.encode import Encoding, encode_file
from aim_fast.data.video.probe import Probe, probe
from tests.data.conftest import SHARED_VIDEOS
from tests.data.ffmpeg_files import make_all, needs_ffmpeg, shown_by_ffmpeg

pytestmark = [needs_ffmpeg, pytest.mark.slow, pytest.mark.stack]

_LEVELS = 5.5
# FFmpeg's command line (5.1) and the FFmpeg in PyAV (8) differ, and why
_REASONS = {
    "hevc_late_start.ts": "FFmpeg before 7 shows HEVC pictures whose references are missing, grey",
    "cut_frames.mp4": "truncated: refused",
    "cut_index.mp4": "truncated: refused",
    "long_notes.txt": "a text that FFmpeg draws: refused",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = make_all(tmp_path_factory.mktemp("made"))
    if SHARED_VIDEOS.is_dir():
        made += [path for path in SHARED_VIDEOS.rglob("*") if path.is_file()]
        cases = SHARED_VIDEOS.parent / "cases"
        made += [path for part in ("videos", "real") for path in sorted((cases / part).glob("*")) if path.is_file()]
    return [path for path in made if path.name not in _REASONS]


@pytest.fixture(scope="module")
def found(files: list[Path]) -> dict[Path, Probe]:
    return {path: probe(str(path)) for path in files}


@pytest.fixture(scope="module")
def shown(files: list[Path]) -> dict[Path, np.ndarray]:
    """Every frame of each, as the decoder streams them."""
    return {path: np.stack([frame.pixels.copy() for frame in stream_frames(str(path))]) for path in files}


def coarse(frames: np.ndarray) -> np.ndarray:
    count, height, width = frames.shape[:3]
    blocks = frames[:, : height // 8 * 8, : width // 8 * 8].reshape(count, height // 8, 8, width // 8, 8, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def test_there_are_at_least_sixty_files_of_at_least_fifteen_containers(files):
    assert len(files) >= 60
    assert len({path.suffix for path in files}) >= 15


def test_the_index_and_streaming_show_ffmpegs_frames(files, found, shown):
    wrong = []
    for path in files:
        theirs = shown_by_ffmpeg(path, *shown[path].shape[1:3])
        if found[path].error is not None:
            wrong.append(f"{path.name}: {found[path].error}")
        elif not found[path].frames == len(theirs) == len(shown[path]):
            wrong.append(f"{path.name}: FFmpeg {len(theirs)}, index {found[path].frames}, streamed {len(shown[path])}")
        else:
            levels = np.abs(coarse(theirs) - coarse(shown[path])).mean(axis=(1, 2, 3)).max()
            if levels > _LEVELS:
                wrong.append(f"{path.name}: {levels:.1f} levels off")
    assert not wrong


def test_frames_taken_at_random_are_those_of_the_stream(files, found, shown):
    wrong = []
    draw = np.random.default_rng(0)
    for path in files:
        for count in (1, 1, 2, 4, 8):
            picks = np.sort(draw.choice(len(shown[path]), count, replace=False))
            theirs = decode_frames(str(path), picks, rotate=True, seek=found[path].seekable)
            if not np.array_equal(theirs, shown[path][picks]):
                wrong.append((path.name, picks))
    assert not wrong


def test_dali_shows_the_same_of_what_it_is_given(files, found, shown):
    pytest.importorskip("nvidia.dali")
    from aim_fast.data.pixels.clip_input import ClipInput
    from aim_fast.data.pixels.dali_pipelines import CPU_CODECS, decode_inputs, decoding

    taken = [path for path in files if found[path].codec in CPU_CODECS and row(path, found[path]).plain]
    assert len(taken) >= 8
    for path in taken:
        frames = np.arange(found[path].frames, dtype=np.int32)
        pipeline = decoding(batch_size=1, threads=1)
        pipeline.start(decode_inputs([ClipInput(ClipPlan(frames, frames, (0, 0, 1, 1)), str(path))]))
        assert np.array_equal(np.asarray(pipeline.wait()[0]), shown[path]), path.name


def test_the_frame_cache_holds_them_all(files, found, shown, tmp_path):
    index = Index("list", "train", "/", ["a"], [row(path, found[path]) for path in files])
    cache = load_or_build_frame_cache(index, tmp_path, short_side=0)
    for number, path in enumerate(files):
        side = min(shown[path].shape[1:3])
        frames = np.array([0, len(shown[path]) // 2, len(shown[path]) - 1])
        height, width = shown[path].shape[1:3]
        box = (0.0, 0.0, side / height, side / width)
        pixels = cache.box(number, ClipPlan(frames, frames, box), side)
        assert len(cache.entries[number].offsets) - 1 == found[path].frames
        assert np.array_equal(pixels, shown[path][frames, :side, :side]), path.name


def test_transcoding_keeps_them_all(files, found, shown, tmp_path):
    wrong = []
    for number, path in enumerate(files):
        made = tmp_path / f"{number}.mp4"
        size = row(path, found[path]).display_size
        encode_file(str(path), str(made), Encoding(short_side=10_000, quality=12), found[path].frames)
        theirs = np.stack([frame.pixels.copy() for frame in stream_frames(str(made))])
        assert abs(np.array(theirs.shape[1:3]) - size).max() <= 1, path.name
        if found[path].aspect == 1:
            height, width = theirs.shape[1:3]
            ours = shown[path][:, :height, :width]
            levels = np.abs(coarse(theirs) - coarse(ours)).mean(axis=(1, 2, 3)).max()
            if levels > _LEVELS:
                wrong.append(f"{path.name}: {levels:.1f} levels off")
    assert not wrong


def row(path: Path, facts: Probe) -> Row:
    values = {name: getattr(facts, name) for name in Probe.__dataclass_fields__}
    return Row(str(path), 0, path.name, **values)
