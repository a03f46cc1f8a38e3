"""``aim_fast.train``, ``evaluate``, ``predict`` and ``load_run``: what the commands do, as functions."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import aim_fast as package
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.probe import probe
from aim_fast.errors import AimFastError, CheckpointError, DataError, UsageError
from aim_fast.training.metrics import read_metrics

UNLIKE = {"clips_per_s", "data_wait", "peak_memory", "time"}  # from run to run


@pytest.fixture(scope="module")
def frames(motion_set):
    """A video and all of its frames."""
    video = str(sorted(motion_set.rglob("*.webm"))[0])
    return video, decode_frames(video, range(probe(video).frames), rotate=True)


@pytest.fixture(scope="module")
def opened(trained):
    return package.load_run(trained, device="cpu", precision="fp32")


def figures(run: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in UNLIKE} for row in read_metrics(run)]


def test_five_lines_of_python_train_to_the_bit_what_the_command_does(trained, motion_set, trunk, tmp_path):
    result = package.train(
        dataset="ssv2", data_root=motion_set, weights=trunk, model="aim_vit_demo", frames=4, batch_size=8,
        log_every=1, eval_every=1, epochs=2, output=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert figures(tmp_path / "run") == figures(trained)
    assert result.last.items() <= [row for row in read_metrics(trained) if row["kind"] == "eval"][-1].items()
    for one in ("last", "best"):
        ours, theirs = (
            load_file(run / "checkpoints" / one / "adapters.safetensors") for run in (tmp_path / "run", trained)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (result.folder / "report.html").stat().st_size > 10000
    with pytest.raises(CheckpointError, match="already holds a run"):
        package.train(recipe=result.folder / "recipe.yaml", output=result.folder, quiet=True)


def test_evaluate_gives_the_commands_scores(aim_fast, trained, tmp_path):
    report = package.evaluate(trained, views="1x3", device="cpu")
    _, out, _ = aim_fast("eval", trained, "--views", "1x3", "--device", "cpu", "--json", "-", "--confusion",
                         tmp_path / "c.png")  # fmt: skip
    assert json.loads(out) == json.loads(json.dumps(report.to_dict()))
    assert len(report.videos) == report.scores.videos == 16
    wrong = report.scores.probabilities.argmax(1) != report.scores.labels
    assert sorted(report.mistakes(16)) == wrong.nonzero()[:, 0].tolist()


def test_predict_gives_the_commands_classes_of_a_file_and_of_its_frames(aim_fast, trained, opened, frames, tmp_path):
    video, array = frames
    np.save(tmp_path / "clip.npy", array)
    _, out, _ = aim_fast("predict", trained, video, tmp_path / "clip.npy", "--json", "--precision", "fp32")
    of_file, of_array = json.loads(out)
    assert of_file["predictions"] == of_array["predictions"]
    for given in (video, Path(video), array, torch.from_numpy(array), array[:, :, ::-1][:, :, ::-1]):
        assert package.predict(opened, given).to_dict()["predictions"] == of_file["predictions"]
    assert package.predict(trained, video, 2, precision="fp32").labels == opened.predict(array).labels[:2]


def test_a_list_gives_one_each_and_says_what_cannot_be_read(opened, frames, tmp_path):
    video, array = frames
    missing = str(tmp_path / "gone.mp4")
    first, second, third = package.predict(opened, [missing, video, array], top_k=1)
    assert first.error == f"{missing} does not exist; check the path"
    assert (second.label, second.video, third.video) == (third.label, video, "array")
    with pytest.raises(DataError, match="does not exist"):
        first.label  # noqa: B018
    with pytest.raises(DataError, match="does not exist"):
        package.predict(opened, missing)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 48, 48, 3), np.float32), "the array is float32 [8, 48, 48, 3]; give uint8"),
        (torch.zeros(8, 3, 48, 48, dtype=torch.uint8), "the array is uint8 [8, 3, 48, 48]; give uint8"),
        (np.zeros((48, 48, 3), np.uint8), "the array is uint8 [48, 48, 3]"),
        (np.zeros((0, 48, 48, 3), np.uint8), "the array is uint8 [0, 48, 48, 3]"),
        (np.zeros((2, 48, 48, 3), np.uint8), "the array has 2 frames but the model takes 4"),
    ],
)
def test_what_is_no_clip_is_refused(opened, array, said):
    with pytest.raises(DataError) as caught:
        package.predict(opened, array)
    assert said in str(caught.value)
    if len(array) == 2:
        assert len(package.predict(opened, array, repeat_frames=True).labels) == 5


def test_a_file_of_no_array_is_named(aim_fast, trained, tmp_path):
    files = {"text": b"no array", "empty": b"", "short": b""}
    np.save(tmp_path / "short.npy", np.zeros((8, 48, 48, 3), np.uint8))
    files["short"] = (tmp_path / "short.npy").read_bytes()[:-9]
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    files["objects"] = (tmp_path / "objects.npy").read_bytes()
    for name, content in files.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        status, _, err = aim_fast("predict", trained, tmp_path / f"{name}.npy")
        assert (status, err.count("\n")) == (2, 1), err
        assert f"{name}.npy cannot be read as an array" in err


def test_a_loaded_run_is_a_module_in_eval_mode_with_its_recipe(opened, trained):
    assert isinstance(opened.model, torch.nn.Module)
    assert not opened.model.training
    assert opened.recipe.data.frames == opened.model.num_frames == 4
    assert len(opened.classes) == opened.model.num_classes
    assert opened.place.device == next(opened.model.parameters()).device
    assert package.load_run(trained, views="1x3").recipe.evaluation.views == "1x3"


@pytest.mark.parametrize(
    ("call", "kind", "command"),
    [
        (lambda run: package.train(lerning_rate=1), UsageError, None),
        (lambda run: package.train(lr=-1), UsageError, ("train", "--lr", "-1")),
        (
            lambda run: package.train(model="aim_vit_demo,frames=4", frames=8),
            UsageError,
            ("train", "--model", "aim_vit_demo,frames=4", "--frames", "8"),
        ),
        (lambda run: package.train(trunk="x", model="y"), UsageError, ("train", "--trunk", "x", "--model", "y")),
        (lambda run: package.train(output=run), CheckpointError, None),
        (lambda run: package.evaluate("gone"), CheckpointError, ("eval", "gone")),
        (lambda run: package.evaluate(run, data_root="gone"), DataError, ("eval", "RUN", "--data-root", "gone")),
        (lambda run: package.evaluate(run, lr=1), UsageError, None),
        (lambda run: package.predict("gone", "x.mp4"), CheckpointError, ("predict", "gone", "x.mp4")),
        (
            lambda run: package.predict(run, "x.mp4", device="gpu"),
            UsageError,
            ("predict", "RUN", "x.mp4", "--device", "gpu"),
        ),
        (lambda run: package.predict(run, "x.mp4", seed=1), UsageError, None),
        (
            lambda run: package.load_run(run, weights="gone.pt"),
            AimFastError,
            ("predict", "RUN", "x.mp4", "--weights", "gone.pt"),
        ),
        (lambda run: package.load_run(run, lr="x"), UsageError, None),
    ],
)
def test_bad_input_raises_the_commands_line(aim_fast, trained, monkeypatch, tmp_path, call, kind, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        call(str(trained))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    if command:
        _, _, err = aim_fast(*(str(trained) if word == "RUN" else word for word in command))
        assert str(caught.value) in err


def test_every_public_name_is_documented_and_typed_and_comes_without_torch():
    assert sorted(package.__all__) == package.__all__ == sorted(package._HOMES)
    for name in package.__all__:
        public = getattr(package, name)
        assert len(inspect.getdoc(public) or "") > 40, name
        if inspect.isfunction(public):
            signature = inspect.signature(public)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name
    program = "import sys, aim_fast.api, aim_fast\nassert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
