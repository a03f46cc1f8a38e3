"""Videos that are folders of pictures: the frames that were written, and each way in which a folder can be wrong."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aim_fast.data import ClipLoader, Sampling, load_or_build_index, load_views
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.frame_folder import picture_names
from aim_fast.data.video.probe import probe
from aim_fast.errors import DataError


@pytest.fixture
def folder(official):
    return official("jester") / "20bn-jester-v1" / "3"


def test_frames_are_the_pictures_in_the_order_of_their_numbers(folder):
    os.rename(folder / "00012.jpg", folder / "100.jpg")  # not in the order of names
    assert picture_names(str(folder))[-1] == "100.jpg"
    frames = decode_frames(str(folder), [0, 5, 11])
    for frame, name in zip(frames, ("00001.jpg", "00006.jpg", "100.jpg"), strict=True):
        assert np.array_equal(frame, np.asarray(Image.open(folder / name)))
    assert np.array_equal(decode_frames(str(folder), [0, 5, 11], threads=2), frames)


def test_a_healthy_folder_is_probed_and_predicted_like_a_file(folder):
    found = probe(str(folder))
    assert (found.frames, found.height, found.width, found.codec, found.error) == (12, 100, 132, "pictures", None)
    assert load_views(folder, Sampling(4, crops=3), 64).shape == (3, 4, 64, 64, 3)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "00004.jpg").unlink(), r"lacks 00004\.jpg"),
        (lambda folder: (folder / "00002.jpg").write_bytes(b"no picture"), r"00002\.jpg is no picture"),
        (lambda folder: (folder / "00002.jpg").write_bytes(b""), r"00002\.jpg is no picture"),
        (
            lambda folder: (folder / "00003.jpg").write_bytes((folder / "00003.jpg").read_bytes()[:2000]),
            r"00003\.jpg: .*truncated",
        ),
        (
            lambda folder: Image.new("RGB", (40, 30)).save(folder / "00005.jpg"),
            r"different sizes \(00005\.jpg is 40x30\)",
        ),
        (lambda folder: [path.unlink() for path in sorted(folder.iterdir())[1:]], r"only one frame"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], r"without pictures"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder, damage, said):
    damage(folder)
    error = probe(str(folder)).error
    assert error is not None
    assert re.search(said, error)


def test_a_frame_that_is_not_there_is_an_error(folder):
    with pytest.raises(DataError, match="has no frame 12"):
        decode_frames(str(folder), [3, 12])
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_frames(str(folder / "none"), [0])


def test_training_batches_come_from_folders_and_a_folder_that_goes_is_replaced(official):
    root = official("jester")
    index = load_or_build_index("jester", root, "train")
    loader = ClipLoader(index, train=True, batch_size=2, img_size=64, num_frames=4, workers=2)
    assert "4 pictures by Pillow" in loader.decoding
    first = [batch.frames for batch in loader.batches(0)]
    assert all(torch.equal(batch.frames, frames) for batch, frames in zip(loader.batches(0), first, strict=True))
    shutil.rmtree(index.rows[1].path)
    assert len(list(loader.batches(1))) == 2
    loader.close()
    assert loader.counts.replaced == 1
    assert list(loader.counts.names) == [index.rows[1].path]
