"""Damaged files are named, never fatal: no crash, no hang, no nameless error."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aim_fast.data.formats import read_dataset
from aim_fast.data.index.scan import scan
from aim_fast.data.video.decode import decode_frames
from aim_fast.errors import AimFastError, DataError
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from tests.soak.mutations import mutated

AMOUNTS = [pytest.param(1, id="few"), pytest.param(20, id="many", marks=pytest.mark.soak)]


def one_line(message: str) -> bool:
    return bool(message.strip()) and "\n" not in message


@pytest.mark.parametrize("amount", AMOUNTS)
def test_mutated_videos_are_decoded_or_named(amount, videos, tmp_path):
    """100 files times `amount`: each is scanned in a process with a time limit, and what scanning lets through is
    decoded here, in this process, as training would."""
    random = np.random.default_rng(amount)
    sources = list(videos.values())
    paths = []
    for number in range(100 * amount):
        source = sources[number % len(sources)]
        path = tmp_path / f"{number:05d}{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), random))
        paths.append(str(path))
    found = scan(paths, seconds_a_file=20)
    assert len(found) == len(paths)
    assert not [probe.error for probe in found if probe.error and "hangs" in probe.error]
    rejected = [probe for probe in found if probe.error]
    assert len(paths) // 4 < len(rejected) < len(paths)
    assert all(probe.error and "\n" not in probe.error for probe in rejected)
    messages = {}
    for path, probe in zip(paths, found):
        if probe.error is None:
            wanted = sorted({0, probe.frames // 2, probe.frames - 1})
            try:
                frames = decode_frames(path, wanted)
                assert frames.shape == (len(wanted), *frames.shape[1:3], 3)
            except DataError as error:
                messages[path] = str(error)
    assert all(path in message and one_line(message) for path, message in messages.items())


def annotations(root: Path) -> dict[str, Path]:
    """Small data sets in the layouts with annotation files, the videos empty: only the tables are read."""
    entries = [{"id": str(i), "label": "a cup", "template": f"Doing [something] {i % 3}"} for i in range(12)]
    ssv2 = root / "ssv2"
    (ssv2 / "20bn-something-something-v2").mkdir(parents=True)
    for entry in entries:
        (ssv2 / "20bn-something-something-v2" / f"{entry['id']}.webm").touch()
    (ssv2 / "labels.json").write_text(json.dumps({f"Doing something {i}": str(i) for i in range(3)}))
    (ssv2 / "train.json").write_text(json.dumps(entries))
    (ssv2 / "validation.json").write_text(json.dumps(entries))
    listed = root / "list"
    listed.mkdir()
    lines = "".join(f"clip {i}.mp4 {i % 3}\n" for i in range(12))
    for name in ("train.txt", "val.txt"):
        (listed / name).write_text(lines)
    return {"ssv2": ssv2 / "train.json", "list": listed / "train.txt"}


@pytest.mark.parametrize("amount", AMOUNTS)
def test_mutated_annotations_are_read_or_refused_in_one_line(amount, tmp_path):
    random = np.random.default_rng(amount)
    messages = []
    for dataset, path in annotations(tmp_path).items():
        whole = path.read_bytes()
        root = tmp_path / dataset
        for _ in range(8 * amount):
            path.write_bytes(mutated(whole, random))
            try:
                read_dataset(dataset, root, "train")
            except AimFastError as error:
                messages.append(str(error))
        path.write_bytes(whole)
        assert len(read_dataset(dataset, root, "train").clips) == 12
    assert len(messages) >= 4 * amount
    assert all(map(one_line, messages))


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.filterwarnings("ignore")
def test_mutated_weights_are_loaded_or_refused_in_one_line_and_the_model_is_left_as_it_was(amount, tmp_path):
    random = np.random.default_rng(amount)
    model = create_model("aim_vit_demo", depth=1)
    changed: list[str] = []
    state = {name: tensor for name, tensor in model.state_dict().items() if not model.is_adaptation(name)}
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(state, tmp_path / "whole.pt")
    messages = []
    for whole in (tmp_path / "whole.safetensors", tmp_path / "whole.pt"):
        path = tmp_path / f"mutated{whole.suffix}"
        for _ in range(5 * amount):
            path.write_bytes(mutated(whole.read_bytes(), random))
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            try:
                load_weights(model, path)
            except AimFastError as error:
                messages.append(str(error))
                changed += [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]
        load_weights(model, whole)
    assert len(messages) >= 2 * amount
    assert all(map(one_line, messages))
    assert not changed
