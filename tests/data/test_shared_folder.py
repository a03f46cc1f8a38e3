"""Files beside a shared data set, and copies of one: other users can read them as the umask of the first says."""

import os
import shutil
import stat

import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Sampling, decoder_choice, load_or_build_index
from aim_fast.data.copies.frame_cache import load_or_build_frame_cache
from aim_fast.data.copies.shard import write_shards
from aim_fast.data.copies.transcode import transcode
from aim_fast.data.features.store import FeatureSource, write_features
from aim_fast.data.video.encode import Encoding

SOURCE = FeatureSource("frame features", "ab" * 32, 4, 0, 32, "gelu", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))


def write_everything(root, made, monkeypatch):
    indices = [load_or_build_index("folder", root, split) for split in ("train", "validation")]
    index = indices[0]
    loader = ClipLoader(index, train=False, batch_size=2, img_size=32, sampling=Sampling(4), decoder="pyav", workers=1)
    write_features(made / "features", SOURCE, loader, lambda frames: frames.float().mean((2, 3)))
    loader.close()
    load_or_build_frame_cache(index, made / "cache")
    write_shards(indices, made / "shards", workers=1)
    shutil.rmtree(made / "shards" / ".aim-fast")
    load_or_build_index("webdataset", made / "shards", "train")  # which reads each shard into its index
    transcode("folder", root, made / "transcoded", Encoding(short_side=32), workers=1)
    # timing itself has its own tests; here two routes are there whatever this machine has
    monkeypatch.setattr(decoder_choice, "routes", lambda *_: ["cpu", "pyav"])
    monkeypatch.setattr(decoder_choice, "measure_decoders", lambda *_, **__: {"cpu": 1.0, "pyav": 2.0})
    options = {"sampling": Sampling(4), "img_size": 32, "batch_size": 4, "threads": 1, "device": torch.device("cpu")}
    decoder_choice.choose_decoder(index, augmentation=Augmentation(), worth=1, **options)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_written_has_the_mode_of_the_umask(class_folders, videos, tmp_path, monkeypatch, mask, file, folder):
    root = class_folders({"train/a": [videos["vp9"], videos["h264"]], "val/a": [videos["vp9_other"]]})
    (root / "train" / "a" / "notes.csv").touch(mode=0o400)
    made, before = tmp_path / "made", os.umask(mask)
    try:
        made.mkdir()
        write_everything(root, made, monkeypatch)
    finally:
        os.umask(before)
    paths = [*made.rglob("*"), *(root / ".aim-fast").rglob("*")]
    names = " ".join(path.name for path in paths)
    for written in ("-train.npz", "decoder.json", ".tar.json", ".tar", ".bin", "store.json", ".mp4", "transcode.jsonl"):
        assert written in names
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    odd = {path.name: oct(mode) for path, mode in modes.items() if mode != (folder if path.is_dir() else file)}
    assert not odd
