"""The GPU's one pipeline, run on the CPU: the same clips as the host's two with PyTorch's resize between them."""

from __future__ import annotations

import pytest
import torch

from aim_fast.data.pixels.clip_input import ClipInput
from aim_fast.data.pixels.resize import resize_box
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import plan_clip
from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.probe import probe

pytest.importorskip("nvidia.dali")
from aim_fast.data.pixels.batch_pipeline import HostPipeline
from aim_fast.data.pixels.dali_pipelines import augment_inputs, box_inputs, decode_inputs, whole

pytestmark = pytest.mark.stack

SIZE = 64


@pytest.fixture
def clips(videos):
    """Plan the clips of a batch: files for DALI, and every third one decoded and resized by PyAV."""

    def make(augmentation: Augmentation | None) -> list[ClipInput]:
        made = []
        for number, kind in enumerate(["vp9", "vp8", "h264", "vp9_other", "mjpeg", "mpeg4"]):
            path = str(videos[kind])
            found = probe(path)
            plan = plan_clip(
                found.frames,
                found.height,
                found.width,
                sampling=Sampling(4),
                augmentation=augmentation,
                img_size=SIZE,
                index=number,
            )
            pixels = resize_box(decode_frames(path, plan.frames), plan, SIZE) if number % 3 == 2 else None
            made.append(ClipInput(plan, path, pixels))
        return made

    return make


@pytest.mark.parametrize(
    "augmentation",
    [None, Augmentation(flip=0.5), Augmentation(flip=0.5, color_jitter=0.1, erasing=1.0)],
    ids=["view", "crop", "augmented"],
)
def test_one_pipeline_gives_the_clips_of_the_host(clips, augmentation):
    batch = clips(augmentation)
    host = HostPipeline(batch_size=6, img_size=SIZE, augmentation=augmentation, threads=2)
    (expected,) = host.run([batch])
    host.close()
    pipeline = whole(SIZE, augmentation, batch_size=6, threads=2, device_id=None)
    pixels = [clip.pixels for clip in batch]
    for _ in range(2):
        pipeline.start(decode_inputs(batch) | box_inputs(batch) | augment_inputs(batch, pixels, augmentation))
        found = torch.from_dlpack(pipeline.wait().as_tensor()).clone()
        assert found.shape == expected.shape
        for number, (a, b) in enumerate(zip(found.float(), expected.float())):
            if number % 3 == 2:
                assert torch.equal(a, b)
            # Boxes of whole pixels there, of fractions here: on blocks of random colour that is a few levels.
            assert (a - b).abs().mean() < 8


def test_randaugment_in_the_one_pipeline_runs_on_what_the_host_runs_it_on(clips):
    augmentation = Augmentation(randaug=(4, 7))
    batch = [clip for clip in clips(augmentation) if clip.pixels is not None] * 3
    host = HostPipeline(batch_size=6, img_size=SIZE, augmentation=augmentation, threads=2)
    (expected,) = host.run([batch])
    host.close()
    pipeline = whole(SIZE, augmentation, batch_size=6, threads=2, device_id=None)
    pixels = [clip.pixels for clip in batch]
    pipeline.start(decode_inputs(batch) | box_inputs(batch) | augment_inputs(batch, pixels, augmentation))
    assert torch.equal(torch.from_dlpack(pipeline.wait().as_tensor()), expected)
