"""Training clips from a set in which one file in twenty is broken: every batch is full, memory stays flat."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index
from tests.data.conftest import write_video

WHOLE = 190


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ten_broken_kinds(broken, videos, folder: Path) -> list[Path]:
    """Ten files, each of no use in another way; what a webm holds after its first kilobyte is what varies."""
    data = bytearray(videos["vp9"].read_bytes())
    made = {
        "noise.webm": os.urandom(4000),
        "headless.webm": bytes(data[600:]),
        "zeroed.webm": bytes(data[:1500]) + bytes(len(data) - 1500),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [*broken.values(), *(folder / name for name in made)]


@pytest.mark.parametrize("clips", [pytest.param(1_000, id="few"), pytest.param(20_000, marks=pytest.mark.soak)])
def test_five_percent_broken_files_cost_nothing_but_their_count(clips, videos, broken, tmp_path):
    kinds = ten_broken_kinds(broken, videos, tmp_path)
    assert len(kinds) == 10
    source = write_video(tmp_path / "whole.webm", "libvpx-vp9", frames=10, width=64, height=48)
    root = tmp_path / "set"
    for label, split in itertools.product(("jump", "sit"), ("train", "val")):
        (root / split / label).mkdir(parents=True)
    for number in range(WHOLE):
        shutil.copy(source, root / "train" / ("jump", "sit")[number % 2] / f"{number:04d}.webm")
    for number, path in enumerate(kinds):
        shutil.copy(path, root / "train" / ("jump", "sit")[number % 2] / f"broken{number}{path.suffix}")
    shutil.copy(source, root / "val" / "jump" / "0.webm")
    index = load_or_build_index("folder", root, "train")
    assert (len(index), len(index.broken)) == (WHOLE + 10, 10)
    loader = ClipLoader(
        index, train=True, batch_size=20, img_size=32, sampling=Sampling(4), augmentation=Augmentation(), workers=2
    )
    resident, seen = [], 0
    for epoch in itertools.count():
        for batch in loader.batches(epoch):
            assert batch.frames.shape == (20, 4, 32, 32, 3)
            assert batch.frames.float().std() > 1
            seen += int(batch.weights.sum())
        resident.append(resident_bytes())
        if seen >= clips:
            break
    assert seen == (epoch + 1) * (WHOLE + 10)
    assert loader.counts.replaced == (epoch + 1) * 10
    loader.close()
    # the first fifth is warm-up: decoders, threads' arenas and caches are made there
    warm = resident[len(resident) // 5]
    assert resident[-1] - warm < 24 * 2**20
