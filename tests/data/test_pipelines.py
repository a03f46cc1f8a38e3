"""The pipelines of a GPU, run on the CPU: the same clips as the host's, with PyTorch's resize between its two."""

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
from aim_fast.errors import UsageError

pytest.importorskip("nvidia.dali")
from aim_fast.data.pixels.batch_pipeline import DevicePipeline, HostPipeline
from aim_fast.data.pixels.dali_pipelines import decoding

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
            made.append(ClipInput(plan, path, pixels, size=(found.height, found.width)))
        return made

    return make


def both_ways(batches, augmentation):
    """The batches as the host's pipeline gives them, and as the device's does, on a CPU here."""
    options = {"batch_size": 6, "img_size": SIZE, "augmentation": augmentation, "threads": 2}
    host = HostPipeline(**options)
    device = DevicePipeline(**options, device=torch.device("cpu"), decode_on="cpu")
    found = [list(pipeline.run(batches)) for pipeline in (host, device)]
    host.close()
    device.close()
    return found


@pytest.mark.parametrize(
    "augmentation",
    [None, Augmentation(flip=0.5), Augmentation(flip=0.5, color_jitter=0.1, erasing=1.0)],
    ids=["view", "crop", "augmented"],
)
def test_the_device_pipelines_give_the_clips_of_the_host(clips, augmentation):
    """Batches of files and of what PyAV decoded, of files alone and of PyAV's alone."""
    mixed = clips(augmentation)
    batches = [mixed, [mixed[i] for i in (0, 1, 3, 4, 1, 0)], [mixed[i] for i in (2, 5, 5, 2, 2, 5)], mixed[::-1]]
    for batch, expected, found in zip(batches, *both_ways(batches, augmentation), strict=True):
        assert found.shape == expected.shape
        for clip, a, b in zip(batch, found.float(), expected.float()):
            if clip.pixels is not None:
                assert torch.equal(a, b)
            # Boxes of whole pixels there, of fractions here: on blocks of random colour that is a few levels.
            assert (a - b).abs().mean() < 8


def test_randaugment_in_the_one_pipeline_runs_on_what_the_host_runs_it_on(clips):
    augmentation = Augmentation(randaug=(4, 7))
    batch = [clip for clip in clips(augmentation) if clip.pixels is not None] * 3
    ((expected,), (found,)) = both_ways([batch], augmentation)
    assert torch.equal(found, expected)


def test_a_gpu_decodes_files_of_one_size_behind_one_another_and_gives_the_same_clips(clips, monkeypatch):
    """The decoder's cache on a GPU makes one anew where the size of the file before it was another."""
    augmentation = Augmentation(flip=0.5, erasing=1.0, randaug=(2, 7))
    mixed = clips(augmentation)
    batch = [mixed[i] for i in (0, 3, 1, 0, 2, 3)]
    assert len({clip.size for clip in batch}) > 1
    decoded: list[list[tuple[int, int]]] = []

    class OnGpu(DevicePipeline):
        """Its decoding on a CPU, as there is none other."""

        def _made(self, resized):
            monkeypatch.setattr(self, "_decode_on", "cpu")
            made = super()._made(resized)
            monkeypatch.setattr(self, "_decode_on", "gpu")
            return made

        def _inputs(self, clips, resized):
            decoded.append([clip.size for clip in clips])
            return super()._inputs(clips, resized)

    options = {"batch_size": 6, "img_size": SIZE, "augmentation": augmentation, "threads": 2}
    found = []
    for kind, where in ((DevicePipeline, "cpu"), (OnGpu, "gpu")):
        pipeline = kind(**options, device=torch.device("cpu"), decode_on=where)
        found += pipeline.run([batch])
        pipeline.close()
    files = decoded[0]
    assert files == sorted(files) != [clip.size for clip in batch if clip.pixels is None]
    assert torch.equal(*found)


NO_VIDEO = """[/opt/dali/dali/operators/video/decoder.h:66] Assert on "lib_handle_" failed: Failed to load
 libnvcuvid.so, needed by the VideoReader operator.
Stacktrace (27 entries):
[frame 0]: /usr/lib/libdali_operators.so(+0x39790e) [0x7f8ea60d290e]
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (NO_VIDEO, "GPU 0: Failed to load libnvcuvid.so, needed by the VideoReader operator; update"),
        (
            "CUDA driver version is insufficient\nfor CUDA runtime version",
            "insufficient for CUDA runtime version; update",
        ),
    ],
)
def test_a_gpu_that_dali_cannot_use_is_one_line(said, reason, monkeypatch):
    def build(self):
        raise RuntimeError(said)

    monkeypatch.setattr("nvidia.dali.Pipeline.build", build)
    with pytest.raises(UsageError) as caught:
        decoding(batch_size=1, threads=1, device_id=0)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError):
        decoding(batch_size=1, threads=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_one_line_of_dalis_own():
    with pytest.raises(UsageError, match=r"DALI does not start on GPU 0: You are trying to create a GPU DALI pipeline"):
        decoding(batch_size=1, threads=1, device_id=0)
