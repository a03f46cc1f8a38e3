"""On a GPU: the loader's batches against the CPU's, with decoding on either, and nothing copied in the step."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index
from tests.gpu.under_way import comes_before_the_work_under_way

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU's pipeline is not run"),
]


@pytest.fixture
def index(class_folders, every_kind):
    """Files of every kind twice, in which a decoder cache could mistake one for another."""
    return load_or_build_index("folder", class_folders({"train/a": [*every_kind.values()] * 2}), "train")


def batches(index, device: str, **options) -> list:
    loader = ClipLoader(index, batch_size=4, img_size=96, device=device, **options)
    found = list(loader.batches(1))
    loader.close()
    return found


@pytest.mark.parametrize("decoder", ["auto", "shared", "cpu", "pyav"])
@pytest.mark.parametrize("train", [True, False])
def test_frames_and_order_are_those_of_the_cpu(index, decoder, train):
    options = {"train": train, "sampling": Sampling(4, crops=1 if train else 3)}
    options["augmentation"] = Augmentation(flip=0.5) if train else None
    for found, expected in zip(
        batches(index, "cuda", decoder=decoder, **options), batches(index, "cpu", **options), strict=True
    ):
        assert found.frames.device.type == found.labels.device.type == found.weights.device.type == "cuda"
        assert torch.equal(found.indices, expected.indices)
        for a, b in zip(found.frames.cpu().float(), expected.frames.float()):
            assert (a - b).abs().mean() < 8  # boxes of fractions of a pixel on blocks of random colour


JITTERED = {"jitter": (0.4, 0.4, 0.2, 0.1), "grayscale": 0.2, "crop_scales": (1, 0.875, 0.75), "repeats": 2}


@pytest.mark.parametrize("more", [{"randaug": (18, 7)}, JITTERED], ids=["randaug", "jitter"])
def test_every_augmentation_runs_on_the_gpu_as_on_the_cpu(index, more):
    augmentation = Augmentation(flip=0.5, color_jitter=0.1, erasing=0.5, **more)
    options = {"train": True, "sampling": Sampling(4), "augmentation": augmentation, "decoder": "pyav"}
    for found, expected in zip(batches(index, "cuda", **options), batches(index, "cpu", **options), strict=True):
        assert (found.frames.cpu().float() - expected.frames.float()).abs().mean() < 4


def test_the_gpu_decoder_is_trusted_only_with_what_it_decodes_as_pyav_does(index):
    from aim_fast.data.pixels.dali_pipelines import GPU_CODECS
    from aim_fast.data.pixels.gpu_decode import trusted_kinds

    trusted, remarks = trusted_kinds(index, 0, 2)
    kinds = {(row.codec, row.pixel_format) for row in index.rows if row.codec in GPU_CODECS}
    assert trusted <= kinds
    assert len(remarks) == (len(kinds - trusted) if trusted or "is not here" not in remarks[0] else 1)


def test_whatever_goes_to_the_gpu_decodes_within_three_levels_of_pyav(index):
    """Mixed widths and sizes in one stream first: the decoder cache finds by coded size what it keeps by display size.
    Variable rate and frames before time zero are among the files, which a comparison of a sample may not meet."""
    from aim_fast.data.pixels.clip_input import ClipInput
    from aim_fast.data.pixels.dali_pipelines import decode_inputs, decoding
    from aim_fast.data.pixels.route import Router
    from aim_fast.data.plan.clip_plan import ClipPlan
    from aim_fast.data.video.decode import decode_frames

    device = torch.device("cuda", torch.cuda.current_device())
    router = Router(index, decoder="auto", device=device, batch_size=4, img_size=96, augmentation=None, threads=2)
    rows = [row for row in index.rows if not router.takes_pixels(row)]
    if "DALI on the gpu" not in router.description:
        pytest.skip(f"this card decodes none of the files: {router.description}")
    pipeline = decoding(batch_size=len(rows), threads=2, device_id=device.index)
    for order in (rows, rows[::-1], *([row] for row in rows)):
        wanted = [np.unique([0, 1, row.frames // 2, row.frames - 1]).astype(np.int32) for row in order]
        box = (0.0, 0.0, 1.0, 1.0)
        clips = [
            ClipInput(ClipPlan(numbers, np.arange(len(numbers), dtype=np.int32), box), row.path)
            for row, numbers in zip(order, wanted)
        ]
        pipeline.start(decode_inputs(clips))
        for row, frames, numbers in zip(order, pipeline.wait().as_cpu(), wanted):
            found, expected = np.asarray(frames).astype(np.int16), decode_frames(row.path, numbers)
            assert found.shape == expected.shape, row.path
            assert np.abs(found - expected).mean((1, 2, 3)).max() <= 3, row.path


def test_a_card_that_decodes_nothing_leaves_it_to_the_cpu_in_the_same_order(index, monkeypatch):
    from aim_fast.data.pixels import gpu_decode

    monkeypatch.setattr(gpu_decode, "trusted_kinds", lambda *_: (frozenset(), ["no video library"]))
    options = {"train": True, "sampling": Sampling(4), "augmentation": Augmentation()}
    for found, expected in zip(batches(index, "cuda", **options), batches(index, "cpu", **options), strict=True):
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.weights.cpu(), expected.weights)


def copies(trace: dict) -> list[int]:
    """Bytes of each copy between host and device in a profiler's trace."""
    between = ("HtoD", "DtoH")
    return [
        int(event["args"].get("bytes", 0))
        for event in trace["traceEvents"]
        if event.get("cat") == "gpu_memcpy" and any(word in event["name"] for word in between)
    ]


@pytest.mark.parametrize("on_gpu", [True, False], ids=["decoded on the GPU", "decoded on the CPU"])
def test_the_training_step_copies_no_pixels_between_host_and_device(index, tmp_path, on_gpu):
    """Where the GPU decodes, nothing of a frame's size is copied at all, by the loader's threads included; where the
    CPU does, the loader copies ahead of the step, and the step finds its clips on the device."""
    from torch.profiler import ProfilerActivity, profile

    from aim_fast import create_model
    from aim_fast.data.pixels.gpu_decode import trusted_kinds
    from aim_fast.training.clock import Clock
    from aim_fast.training.devices import Place
    from aim_fast.training.optimization import Optimization
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.steps import Steps

    device = torch.device("cuda", torch.cuda.current_device())
    rows = index.rows
    if on_gpu:
        trusted, remarks = trusted_kinds(index, device.index, 2)
        rows = [row for row in rows if (row.codec, row.pixel_format) in trusted and row.rotation == 0]
        if not rows:
            pytest.skip(f"this card decodes none of the files: {remarks}")
    shown = type(index)(index.dataset, index.split, index.root, index.classes, (rows * 8)[:16])
    model = create_model("aim_vit_demo", num_frames=4, num_classes=8).to(device).train()
    recipe = load_recipe("demo", {"frames": 4, "batch_size": 4})
    optimization = Optimization(model, recipe, Place(0, 1, device, torch.bfloat16), 8)
    loader = ClipLoader(
        shown, train=True, batch_size=4, img_size=model.img_size, num_frames=4, device=device,
        decoder="gpu" if on_gpu else "cpu", prefetch=4,
    )  # fmt: skip
    steps = Steps(clips=16, batch_size=4, world=1, accumulate=1)
    list(loader.batches(0))  # builds the pipeline
    ready = loader.batches(1) if on_gpu else iter(list(loader.batches(1)))
    optimization.step(islice(ready, 1), 0, steps, 1e-4, Clock())
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for number in (1, 2, 3):
            optimization.step(ready, number, steps, 1e-4, Clock())
        torch.cuda.synchronize()
    loader.close()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])  # the device was traced at all
    assert max(copies(trace), default=0) < model.img_size**2 * 3  # less than one frame


@pytest.mark.parametrize("policy", ["", "rand-m9-mstd0.5-inc1"])
def test_batches_do_not_wait_for_the_steps_before_them(index, policy):
    """Labels and weights, and with a policy the frames, are copied beside what the consumer has launched."""
    options = {"train": True, "sampling": Sampling(4), "augmentation": Augmentation(policy=policy), "decoder": "pyav"}
    loader = ClipLoader(index, batch_size=4, img_size=96, device="cuda", **options)
    list(loader.batches(0))  # makes the pipeline
    assert comes_before_the_work_under_way(lambda: next(loader.batches(1)))
    loader.close()
