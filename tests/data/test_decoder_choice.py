"""The decoder is chosen by timing a data set's own clips, once, and changes no frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Index, Sampling, load_or_build_index
from aim_fast.data import decoder_choice as module
from aim_fast.data.decoder_choice import choose_decoder, measure_decoders, prefetch_depth
from aim_fast.data.pixels import route as routing
from aim_fast.data.pixels.dali_pipelines import decoding
from aim_fast.data.pixels.gpu_decode import trusted_kinds
from aim_fast.data.pixels.route import Router, routes
from aim_fast.errors import UsageError

pytest.importorskip("nvidia.dali")
CPU = torch.device("cpu")
OPTIONS = {"sampling": Sampling(4), "img_size": 32, "batch_size": 4, "threads": 2, "device": CPU}


@pytest.fixture
def index(class_folders, videos, rotated) -> Index:
    kinds = ["vp9", "vp9_other", "vp9_gop", "vp8", "h264"]
    return load_or_build_index(
        "folder", class_folders({"train/a": [*(videos[kind] for kind in kinds), rotated]}), "train"
    )


def test_both_cpu_decoders_are_timed_on_the_sets_own_clips(index):
    rates = measure_decoders(index, ["cpu", "pyav"], augmentation=Augmentation(), seconds=0.0, **OPTIONS)
    assert rates.keys() == {"cpu", "pyav"}
    assert all(rate > 0 for rate in rates.values())


def test_a_route_that_is_slow_is_judged_by_what_it_gave_until_then(index, monkeypatch):
    given = []
    whole_epoch = ClipLoader.batches

    def counted(self, epoch=0, start=0):
        given.append(0)
        for batch in whole_epoch(self, epoch, start):
            given[-1] += 1
            yield batch

    monkeypatch.setattr(ClipLoader, "batches", counted)
    monkeypatch.setattr(module, "_LONGEST", 0.0)
    longer = replace(index, rows=index.rows * 3)
    rates = measure_decoders(longer, ["pyav"], augmentation=None, seconds=0.0, **OPTIONS)
    assert set(given) == {1}
    assert rates["pyav"] > 0


@pytest.mark.parametrize(("fastest", "rates"), [("pyav", (10.0, 30.0)), ("cpu", (10.0, 10.2)), ("cpu", (30.0, 10.0))])
def test_the_clearly_fastest_is_taken_and_remembered_until_the_files_or_the_machine_change(
    index, monkeypatch, fastest, rates
):
    calls = []

    def timed(index, candidates, **options):
        calls.append(candidates)
        return dict(zip(candidates, rates))

    monkeypatch.setattr(module, "measure_decoders", timed)
    train = {**OPTIONS, "augmentation": Augmentation(), "worth": 1}
    first = choose_decoder(index, **train)
    assert (first.decoder, first.measured, calls) == (fastest, True, [["cpu", "pyav"]])
    again = choose_decoder(index, **train)
    assert (again.decoder, again.measured, len(calls)) == (fastest, False, 1)
    assert choose_decoder(index, **{**train, "augmentation": None, "sampling": Sampling(8)}).decoder == fastest
    assert len(calls) == 1  # evaluation takes what training found
    choose_decoder(index, **{**train, "sampling": Sampling(8)})
    choose_decoder(index, **{**train, "threads": 1})
    choose_decoder(replace(index, rows=index.rows[1:]), **train)
    assert len(calls) == 4
    (stored,) = Path(index.root, ".aim-fast").glob("*decoder*.json")
    assert len(json.loads(stored.read_text())) == 4
    stored.write_text("[{")
    assert choose_decoder(index, **train).decoder == fastest
    assert len(calls) == 5


def test_nothing_is_timed_where_there_is_nothing_to_choose(index, monkeypatch):
    monkeypatch.setattr(module, "measure_decoders", None)
    assert choose_decoder(index, augmentation=Augmentation(), **OPTIONS).decoder == "cpu"  # too few clips
    h264 = replace(index, rows=[row for row in index.rows if row.codec == "h264"])
    assert routes(h264, CPU, 2) == ["pyav"]
    assert choose_decoder(h264, augmentation=Augmentation(), worth=1, **OPTIONS).decoder == "pyav"
    monkeypatch.setattr(routing, "dali_available", lambda: False)
    assert routes(index, CPU, 2) == ["pyav"]


def test_every_choice_gives_the_same_bits_on_a_cpu(index):
    def frames(decoder: str) -> list[torch.Tensor]:
        loader = ClipLoader(
            index, train=True, batch_size=3, img_size=32, num_frames=4, decoder=decoder, workers=2,
            augmentation=Augmentation(flip=0.5, randaug=(2, 7)),
        )  # fmt: skip
        found = [batch.frames for batch in loader.batches(1)]
        loader.close()
        return found

    auto = frames("auto")
    for decoder in ("cpu", "pyav"):
        assert all(torch.equal(*pair) for pair in zip(frames(decoder), auto, strict=True))
    with pytest.raises(UsageError, match="decodes on a GPU"):
        frames("gpu")


def test_prefetch_follows_threads_and_stays_within_memory():
    assert prefetch_depth(8, 8, 224, 2, CPU) == 2
    assert prefetch_depth(2, 4, 48, 16, CPU) == 8
    assert prefetch_depth(512, 64, 1024, 4096, CPU) == 2  # 100 GB a batch


def test_what_the_gpu_is_trusted_with_goes_there_and_the_rest_to_pyav(index, monkeypatch):
    """Routing alone, with a card that is trusted with H.264 and VP8: no GPU is needed to decide."""
    from aim_fast.data.pixels import gpu_decode

    trusted = frozenset({("h264", "yuv420p"), ("vp8", "yuv420p")})
    monkeypatch.setattr(gpu_decode, "trusted_kinds", lambda *_: (trusted, ["vp9 (yuv420p) is not decoded: a fault"]))
    options = {"batch_size": 4, "img_size": 32, "augmentation": None, "threads": 2}
    card = torch.device("cuda", 0)
    assert routes(index, card, 2) == ["gpu", "shared", "cpu", "pyav"]

    def by_pyav(decoder: str) -> list[bool]:
        router = Router(index, decoder=decoder, device=card, **options)
        return [router.takes_pixels(row) for row in index.rows]

    assert by_pyav("gpu") == [True, True, True, False, False, True]  # the last is rotated
    assert by_pyav("cpu") == [False, False, False, False, True, True]
    assert by_pyav("pyav") == [True] * 6
    shared = by_pyav("shared")
    assert all(half or not whole for half, whole in zip(shared, by_pyav("gpu")))
    assert sum(shared) > sum(by_pyav("gpu"))
    router = Router(index, decoder="gpu", device=card, **options)
    assert "DALI on the gpu" in router.description
    assert "a fault" in router.description
    avoided = index.rows[4]
    router.avoid(avoided.path)
    assert router.takes_pixels(avoided)


def cpu_decoding(*, batch_size: int, threads: int, device_id: int):
    """The pipeline of the comparison on the CPU: right for what DALI decodes there, an error for the rest."""
    return decoding(batch_size=batch_size, threads=threads)


def test_the_comparison_trusts_what_decodes_right_and_says_what_does_not(index):
    trusted, remarks = trusted_kinds(index, 0, 2, decoder=cpu_decoding, library="libc.so.6")
    assert trusted == {("vp9", "yuv420p"), ("vp8", "yuv420p")}
    (line,) = remarks
    assert line.startswith("h264 (yuv420p) is not decoded on the GPU: ")
    assert "\n" not in line


class _OfAnotherSize:
    """The decoder cache's fault: a file comes out with the width of the one before it."""

    def __init__(self, **options) -> None:
        self.inner = cpu_decoding(**options)

    def start(self, inputs) -> None:
        self.inner.start(inputs)

    def wait(self):
        found = [np.asarray(frames) for frames in self.inner.wait()]
        width = min(frames.shape[2] for frames in found)
        cropped = [frames[:, :, :width] for frames in found]

        class Batch:
            def as_cpu(self):
                return cropped

        return Batch()


def test_a_decoder_that_gives_one_file_the_crop_of_another_is_not_trusted(index):
    trusted, remarks = trusted_kinds(index, 0, 2, decoder=_OfAnotherSize, library="libc.so.6")
    assert ("vp9", "yuv420p") not in trusted
    assert any("comes out as 128x" in line for line in remarks)


def test_a_missing_video_library_is_one_remark(index):
    trusted, remarks = trusted_kinds(index, 0, 2, decoder=None, library="libnothere.so.1")
    assert not trusted
    (line,) = remarks
    assert "libnothere.so.1 is not here" in line
    assert "NVIDIA_DRIVER_CAPABILITIES" in line


def test_files_that_the_device_turns_out_not_to_decode_go_to_pyav_in_the_same_epoch_and_order(index, monkeypatch):
    """A device that is trusted with H.264 and fails on it: here DALI on the CPU, which refuses the codec."""

    def batches(decoder: str) -> list:
        loader = ClipLoader(index, train=True, batch_size=2, img_size=32, num_frames=4, decoder=decoder, workers=2)
        found = list(loader.batches(1))
        assert not loader.counts.failed
        return found

    expected = batches("pyav")
    trusted = frozenset((row.codec, row.pixel_format) for row in index.rows)
    monkeypatch.setattr(routing, "decoding_of", lambda *_: ("cpu", trusted, []))
    for found, wanted in zip(batches("cpu"), expected, strict=True):
        assert torch.equal(found.indices, wanted.indices)
        assert torch.equal(found.frames, wanted.frames)
        assert torch.equal(found.weights, wanted.weights)
