"""Exported files: a graph with its weights folded, written as pt2, read without running what it should not hold."""

import json
import pickle
import zipfile

import pytest
import torch

from aim_fast import create_model
from aim_fast.errors import CheckpointError, UsageError, WeightsError
from aim_fast.models.weights.files import read_weights
from aim_fast.training.devices import single_place
from aim_fast.training.exports import onnx_file, pt2_file
from aim_fast.training.exports.description import Description, read_description
from aim_fast.training.exports.graph import trace
from aim_fast.training.exports.opening import open_exported, open_model, read_exported

CPU = torch.device("cpu")
SHAPE = ["batch", 2, 16, 16, 3]
SAMPLING = {"frames": 2, "interval": 3, "clips": 2, "crops": 3, "ends": True, "short_side": 16}


def described(**others):
    fields = {"model": "aim_vit_demo", "options": OPTIONS, "classes": ["left", "right"], "format": "pt2"}
    fields |= {"precision": "float32", "input": {"shape": SHAPE, "mean": [1.0] * 3, "std": [2.0] * 3}}
    return Description(**fields | {"sampling": SAMPLING} | others)


OPTIONS = {"img_size": 16, "depth": 1, "num_frames": 2, "num_classes": 2, "embed_dim": 16, "num_heads": 2}


def tiny(**others):
    torch.manual_seed(0)
    model = create_model("aim_vit_demo", **OPTIONS, **others).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def clips_of(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *SHAPE[1:]), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny model, and its pt2 under a name that says nothing."""
    model, path = tiny(), tmp_path_factory.mktemp("exports") / "unnamed"
    pt2_file.write(trace(tiny(), torch.float32, CPU, written_out=False), described().to_json(), path)
    return model, path


def test_a_pt2_keeps_the_engines_operators_and_every_bit(exported):
    model, path = exported
    opened = open_model(path, read_exported(path), CPU, run_code=False)
    with torch.no_grad():
        for count in (1, 5):
            assert (opened(clips_of(count)) - model(clips_of(count))).abs().max() == 0
    with zipfile.ZipFile(path) as archive:
        content = next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json")).decode()
    assert "torch.ops.aim.layer_norm" in content
    assert __file__.partition("/tests/")[0] not in content  # no folder of this machine


@pytest.mark.slow
def test_what_follows_from_weights_alone_is_computed_once():
    program = trace(tiny(), torch.float32, CPU, written_out=True)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in called if name.startswith("aim.")}
    assert not {"aten.addmv.default", "aten.div.Tensor"} & called  # b1 + W1 bo, and the division by std
    read = {spec.target for spec in program.graph_signature.input_specs if spec.target}
    assert read == set(program.state_dict) | set(program.constants)
    assert not any("T_Adapter.D_fc1" in name for name in read)  # swallowed Wo
    with torch.no_grad():
        torch.testing.assert_close(program.module()(clips_of(3)), tiny()(clips_of(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pickle", "function", "size", "guard", "machine code", "damaged"])
def test_a_pt2_that_could_run_code_is_not_opened(exported, tmp_path, kind):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(exported[1]) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("models/model.json"):
                graph = json.loads(content)
                if kind == "function":
                    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
                elif kind == "guard":
                    graph["guards_code"] = [f"open({str(ran)!r}, 'w')"]
                content = json.dumps(graph).encode()
                if kind == "size":
                    content = content.replace(b"Symbol('s", b"open('s")
            if kind == "pickle" and "sample_inputs" in name:
                content = pickle.dumps(Evil())
            bad.writestr(name, content)
        if kind == "machine code":
            bad.writestr("x/data/aotinductor/model/code.so", b"")
    if kind == "damaged":
        content = bytearray(exported[1].read_bytes())
        at = content.index(b"torch.ops.aim")
        content[at] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged" if kind == "damaged" else "holds .* is not opened"):
        open_model(path, read_exported(path), CPU, run_code=False)
    assert not ran.exists()


def test_an_exported_file_brings_its_sampling_and_refuses_what_contradicts_it(aim_fast, exported):
    path, place = exported[1], single_place("cpu", "fp32")
    run = open_exported(path, read_exported(path), {"workers": 2, "views": "1x1"}, place, run_code=False)
    assert (run.recipe.data.frames, run.recipe.data.interval, run.recipe.evaluation.view_starts) == (2, 3, "ends")
    assert run.recipe.evaluation.views == "1x1"
    assert run.classes == ["left", "right"]
    for typed in ({"frames": 4}, {"precision": "bf16"}, {"weights": "w.pt"}, {"wise_ft": 0.5}):
        with pytest.raises(UsageError, match="exported file"):
            open_exported(path, read_exported(path), typed, place, run_code=False)
    status, _, err = aim_fast("predict", path, "clip.mp4", "--frames", 4)
    assert (status, err.count("\n")) == (2, 1)
    assert "is an exported file, which says itself what its model is: leave --frames out, it takes 2" in err


def test_machine_code_is_run_where_the_user_says_so_alone(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        about = {"aim_fast": described(format="aoti").to_json()}
        archive.writestr("m/data/aotinductor/model/x.wrapper_metadata.json", json.dumps(about))
    assert read_exported(path).format == "aoti"
    with pytest.raises(CheckpointError, match="--run-code"):
        open_model(path, read_exported(path), CPU, run_code=False)
    with pytest.raises(CheckpointError, match="holds no machine code"):
        open_model(path, read_exported(path), CPU, run_code=True)


def test_other_files_are_no_exports(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt2")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("model")
    for name in ("weights.pt2", "empty.onnx", "text.onnx", "missing.onnx"):
        assert read_exported(tmp_path / name) is None


def test_a_foreign_program_is_named_where_a_run_and_where_weights_are_wanted(tmp_path):
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(CheckpointError, match="other.pt2: is a program of torch.export that says no classes"):
        read_exported(tmp_path / "other.pt2")
    with pytest.raises(WeightsError, match="a program of torch.export; torch.save its state_dict"):
        read_weights(tmp_path / "other.pt2")


def test_a_description_that_is_newer_or_cut_short_is_refused():
    text = described().to_json()
    assert read_description(text, "m.onnx") == described()
    for wrong, reason in (
        (text[:50], "damaged"),
        ("[]", "damaged"),
        (text.replace('"version": 1', '"version": 2'), "newer"),
    ):
        with pytest.raises(CheckpointError, match=f"m.onnx: .*{reason}"):
            read_description(wrong, "m.onnx")


def test_onnx_without_its_packages_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnxruntime: pip install .aim-fast\[export\]"):
        onnx_file.check_packages()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(UsageError, match=r"needs onnxruntime: pip install .aim-fast\[export\]"):
        read_exported(path)
