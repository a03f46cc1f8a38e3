"""On a GPU: the loader's batches against the CPU's, with decoding on either."""

from __future__ import annotations

import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU's graph is not run"),
]


@pytest.fixture
def index(class_folders, videos):
    """Files of mixed sizes and codecs, in which a decoder cache could mistake one for another."""
    kinds = ["vp9", "vp9_other", "vp9_gop", "vp8", "h264", "mpeg4"]
    root = class_folders({"train/a": [videos[kind] for kind in kinds] * 2})
    return load_or_build_index("folder", root, "train")


def batches(index, device: str, **options) -> list:
    loader = ClipLoader(index, batch_size=4, img_size=96, device=device, **options)
    found = list(loader.batches(1))
    loader.close()
    return found


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("train", [True, False])
def test_frames_are_those_of_the_cpu(index, decoder, train):
    options = {"train": train, "sampling": Sampling(4, crops=1 if train else 3)}
    options["augmentation"] = Augmentation(flip=0.5) if train else None
    for found, expected in zip(
        batches(index, "cuda", decoder=decoder, **options), batches(index, "cpu", **options), strict=True
    ):
        assert found.frames.device.type == found.labels.device.type == found.weights.device.type == "cuda"
        assert torch.equal(found.indices, expected.indices)
        for a, b in zip(found.frames.cpu().float(), expected.frames.float()):
            assert (a - b).abs().mean() < 8  # boxes of fractions of a pixel on blocks of random colour


def test_every_augmentation_runs_on_the_gpu_as_on_the_cpu(index):
    augmentation = Augmentation(flip=0.5, randaug=(18, 7), color_jitter=0.1, erasing=0.5)
    options = {"train": True, "sampling": Sampling(4), "augmentation": augmentation, "decoder": "pyav"}
    for found, expected in zip(batches(index, "cuda", **options), batches(index, "cpu", **options), strict=True):
        assert (found.frames.cpu().float() - expected.frames.float()).abs().mean() < 4


def test_the_gpu_decoder_is_trusted_only_with_what_it_decodes_as_pyav_does(index):
    from aim_fast.data.gpu_decode import trusted_kinds
    from aim_fast.data.pipelines import GPU_CODECS

    trusted, remarks = trusted_kinds(index, 0, 2)
    kinds = {(row.codec, row.pixel_format) for row in index.rows if row.codec in GPU_CODECS}
    assert trusted <= kinds
    assert len(remarks) == (len(kinds - trusted) if trusted or "is not here" not in remarks[0] else 1)
