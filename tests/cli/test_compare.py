"""`aim-fast compare`: models side by side."""

import csv
import io
import json

import pytest

SPEED = ("--batch-size", 2, "--rounds", 1, "--device", "cpu", "--precision", "fp32", "--num-classes", 8)


def rows_of(aim_fast, *arguments):
    status, out, err = aim_fast("compare", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)["rows"]


def test_models_runs_and_overrides_are_measured_side_by_side(aim_fast, trained, tmp_path):
    """A run has its best validation top-1; the frozen rung keeps nothing for backward below its head."""
    from aim_fast.training.metrics import read_metrics

    models = (
        "aim_vit_demo,num_frames=4,num_tadapter=2,adapter_ratio=0.5",
        "aim_vit_demo,num_frames=4,adapters=none",
        "aim_vit_demo,tune=all",
        trained,
    )
    table, plot = tmp_path / "table.csv", tmp_path / "plot.png"
    full, frozen, all_trained, run = rows_of(aim_fast, *models, *SPEED, "--csv", table, "--plot", plot)
    for row in (full, frozen, all_trained, run):
        assert min(row["forward"], row["train"]) > 0
        assert row["note"] is None
    assert frozen["memory_mib"] < 0.1 * full["memory_mib"] < all_trained["memory_mib"]
    assert frozen["trainable"] == 65 * 8
    assert all_trained["trainable"] == all_trained["params"]
    best = max(row["top1"] for row in read_metrics(trained) if row["kind"] == "eval")
    assert run["top1"] == round(100 * best, 2)
    assert run["scored"] == "16 validation videos, 1x1 views"
    assert (run["params"], run["gflops"]) == (full["params"], full["gflops"])
    written = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [float(row["train"]) for row in written] == [row["train"] for row in (full, frozen, all_trained, run)]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_kernels_that_a_card_runs_are_said(aim_fast, monkeypatch):
    from aim_fast.studies import comparison

    line, asked = "tuned 3 calls of operators for Some Card before", []
    monkeypatch.setattr(comparison, "run_recalled", lambda model, place: asked.append(model.embed_dim) or line)
    status, out, _ = aim_fast("compare", "aim_vit_demo", *SPEED)
    assert (status, asked) == (0, [64])
    assert f"Kernels: {line}" in out.splitlines()


def test_a_model_that_reads_class_names_is_measured_with_as_many(aim_fast):
    (row,) = rows_of(aim_fast, "promptclip_demo,num_frames=2,max_names=4", *SPEED)
    assert row["train"] > 0
    assert row["trainable"] < row["params"]


def test_what_does_not_fit_into_memory_together_is_refused(aim_fast, monkeypatch):
    from aim_fast.studies import comparison

    monkeypatch.setattr(comparison, "free_memory", lambda: 2**20)
    status, out, err = aim_fast("compare", "aim_vit_demo,tune=all", "aim_vit_demo", *SPEED)
    assert (status, out) == (2, "")
    assert "compare fewer at a time" in err.splitlines()[-1]


def test_a_checkpoint_of_a_run_compares_as_the_run(aim_fast, trained):
    file = trained / "checkpoints" / "last" / "adapters.safetensors"
    by_run, by_file = rows_of(aim_fast, trained, file, "--no-speed")
    assert by_run | {"model": ""} == by_file | {"model": ""}


def test_published_accuracies_stand_beside_what_is_counted(aim_fast):
    models = (
        "aim_vit_b16_clip",
        "ssv2_b16_8f",
        "aim_vit_b16_clip,adapter_ratio=0.125",
        "aim_vit_b16_clip,num_frames=4",
    )
    status, out, _ = aim_fast("compare", *models, "torchvision:mvit_v2_s", "--no-speed")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "83.9 (kinetics400 3x1)" in lines["aim_vit_b16_clip"]
    assert "66.4 (ssv2 1x3)" in lines["ssv2_b16_8f"]
    assert "83.4 (kinetics400 3x1)" in lines["aim_vit_b16_clip,adapter_ratio=0.125"]
    assert "kinetics400" not in lines["aim_vit_b16_clip,num_frames=4"]
    assert "clips/s" not in out
    assert "MViT_V2_S_Weights" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("aim_vit_b16_clp",), "did you mean 'aim_vit_b16_clip'"),
        (("torchvision:mvit_v2",), "did you mean 'torchvision:mvit_v2_s'"),
        (("aim_vit_demo,num_frame=4",), "did you mean 'num_frames'"),
        (("aim_vit_demo,4",), "write NAME,key=value"),
        (("aim_vit_demo,tune=some",), "tune 'some' is none of"),
        (("torchvision:mvit_v2_s,num_frames=7",), "num_frames 7 is not a multiple of 2"),
        (("aim_vit_demo", "--dataset", "kinetics40"), "did you mean 'kinetics400'"),
        (("aim_vit_demo", "--csv", "/none/x.csv"), "cannot be written"),
        (("runs/none",), "runs/none does not exist"),
        (("xyzzy",), "`aim-fast models` lists models"),
        ((), "Missing argument 'MODEL|RUN...' or --trunk"),
        (("--trunk", "vit_dem"), "did you mean 'vit_demo'"),
        (("--trunk", "torchvision:mvit_v9"), "unknown model 'torchvision:mvit_v9'"),
        (("--trunk", "vit_demo,tun=all", "--method", "aim,full"), "did you mean 'tune'"),
        (("vit_demo", "--method", "aim,prob"), "did you mean 'probe'"),
        (("vit_demo", "--head", "linear,txt"), "did you mean 'text'"),
        (("swin_demo", "--method", "probe,full"), "swin_demo is of method aim, with a head of its own"),
        (("vit_imagenet_demo", "--head", "text"), "no CLIP text tower"),
        (("vit_demo,method=promptclip,head=attentive",), "takes no head attentive"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(aim_fast, words, says):
    status, out, err = aim_fast("compare", *words, *SPEED)
    assert (status, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_trunks_under_methods_and_heads_are_every_combination_that_there_is(aim_fast):
    """Words as lists and repeated; a name keeps the method, head and overrides that it says itself."""
    words = ("aim_vit_demo,num_frames=2", "aim_vit_demo,method=full,head=attentive", "--trunk", "swin_demo")
    words += ("--trunk", "vit_imagenet_demo,depth=2,vit_demo,num_tadapter=2", "--method", "aim,probe")
    status, out, err = aim_fast("compare", *words, "--head", "linear", "--head", "text", "--no-speed", "--json")
    assert status == 0, err
    table = json.loads(out)
    demo, imagenet, two = "aim_vit_demo,num_frames=2", "vit_imagenet_demo,depth=2", "vit_demo,num_tadapter=2"
    assert [row["model"] for row in table["rows"]] == [
        *(f"{demo},method={method},head={head}" for method in ("aim", "probe") for head in ("linear", "text")),
        "aim_vit_demo,method=full,head=attentive",
        "swin_demo,method=aim,head=linear",
        *(f"{imagenet},method={method},head=linear" for method in ("aim", "probe")),
        *(f"{two},method=aim,head={head}" for head in ("linear", "text")),
    ]
    left_out = [line.partition(": ")[::2] for line in table["left_out"]]
    assert [name for name, _ in left_out] == [
        "swin_demo,method=aim,head=text",
        *(f"swin_demo,method=probe,head={head}" for head in ("linear", "text")),
        *(f"{imagenet},method={method},head=text" for method in ("aim", "probe")),
        *(f"{two},method=probe,head={head}" for head in ("linear", "text")),
    ]
    assert "no CLIP text tower" in dict(left_out)[f"{imagenet},method=aim,head=text"]
    assert "num_tadapter" in dict(left_out)[f"{two},method=probe,head=linear"]
    assert [line.removeprefix("left out: ") for line in err.splitlines()] == table["left_out"]
    alone = rows_of(aim_fast, *(row["model"] for row in table["rows"]), "--no-speed")
    assert alone == table["rows"]


def test_combinations_are_measured(aim_fast):
    words = ("--trunk", "vit_demo,num_frames=2", "--method", "probe,promptclip", "--head", "linear,attentive")
    rows = rows_of(aim_fast, *words, *SPEED)
    assert [row["model"].partition(",method=")[2] for row in rows] == [
        "probe,head=linear",
        "probe,head=attentive",
        "promptclip",
    ]
    assert all(min(row["forward"], row["train"]) > 0 for row in rows)


def test_a_library_that_is_not_installed_is_named(aim_fast, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = aim_fast("compare", "transformers:vivit", "--no-speed")
    assert status == 2
    assert 'pip install "aim-fast[peers]"' in err


def test_a_folder_without_a_run_is_refused(aim_fast, tmp_path):
    status, _, err = aim_fast("compare", tmp_path)
    assert status == 2
    assert "holds no checkpoint" in err
