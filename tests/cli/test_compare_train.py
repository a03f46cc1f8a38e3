"""`aim-fast compare --train`: methods trained one after another as one job, into one table."""

import csv
import json
import signal

import pytest
import torch

from tests.cli.processes import adapters, finish, losses, signal_after, start


@pytest.fixture
def options(motion_set, trunk):
    """Of rows that take about a second each."""
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--trunk", "vit_demo", "--frames", 4)
    return (*data, "--batch-size", 8, "--log-every", 1, "--checkpoint-every", 2, "--device", "cpu")


def rows_of(folder):
    return {row["title"]: row for row in json.loads((folder / "table.json").read_text())["rows"]}


def test_rows_of_methods_heads_and_models_end_in_one_table(aim_fast, options, tmp_path):
    words = ("probe", "lora,lora_rank=2", "attentive", "timesformer_demo")
    folder, table, plot = tmp_path / "study", tmp_path / "table.csv", tmp_path / "plot.png"
    command = ("compare", "--train", *words, *options, "--budget", "epochs=1", "--output", folder, "--quiet")
    status, out, err = aim_fast(*command, "--csv", table, "--plot", plot)
    assert status == 0, err
    rows = rows_of(folder)
    assert list(rows) == list(words)
    assert rows["probe"]["trained"] == 8 * 65
    assert len({row["trained"] for row in rows.values()}) == 4
    for row in rows.values():
        assert 0 <= row["top1"] <= 100
        assert min(row["hours"], row["clips_per_s"], row["memory_gib"], row["gflops"]) > 0
        assert (row["epochs"], row["recipe"], row["failed"]) == (1, "demo, ours", None)
    assert rows["timesformer_demo"]["gflops"] > rows["probe"]["gflops"]
    assert (folder / "table.txt").read_text() in out
    assert list(csv.DictReader(table.open())) == list(csv.DictReader((folder / "table.csv").open()))
    assert (folder / "table.md").read_text().count("\n| ") == len(words) + 1
    assert plot.read_bytes() == (folder / "table.png").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    status, out, _ = aim_fast(*command, "--json")
    assert status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row["title"] for row in json.loads(out)["rows"]] == list(words)


def test_a_row_that_fails_is_named_and_the_others_go_on(aim_fast, options, tmp_path):
    """PromptCLIP's text tower is not in the trunk's file."""
    command = (
        "compare",
        "--train",
        "promptclip",
        "probe",
        *options,
        "--budget",
        "epochs=1",
        "--output",
        tmp_path / "a",
    )
    status, out, err = aim_fast(*command, "--quiet")
    assert status == 1, err
    rows = rows_of(tmp_path / "a")
    assert rows["promptclip"]["top1"] is None
    assert str(options[5]) in rows["promptclip"]["failed"]
    assert rows["promptclip"]["failed"] in out
    assert rows["probe"]["top1"] is not None
    assert "promptclip failed; the same command begins them again" in err
    assert "1 of 2 runs are finished" in aim_fast(*command)[2]


def test_seeds_give_a_mean_and_a_spread(aim_fast, options, tmp_path):
    command = ("compare", "--train", "probe", *options, "--budget", "epochs=1", "--output", tmp_path / "a", "--quiet")
    assert aim_fast(*command, "--seeds", 0, 1, 2)[0] == 0
    (row,) = rows_of(tmp_path / "a").values()
    found = [result["top1"] for result in json.loads((tmp_path / "a" / "study.json").read_text())["results"]]
    assert (row["seeds"], len(found)) == (3, 3)
    assert row["top1"] == pytest.approx(100 * sum(found) / 3, abs=0.01)
    assert row["spread"] == pytest.approx(100 * torch.tensor(found).std().item(), abs=0.01)


def test_a_budget_of_hours_is_epochs_that_are_measured_once(aim_fast, options, tmp_path):
    command = ("compare", "--train", "probe", *options, "--output", tmp_path / "a", "--quiet")
    assert aim_fast(*command, "--budget", "hours=0.0005")[0] == 0
    saved = json.loads((tmp_path / "a" / "study.json").read_text())
    (row,) = rows_of(tmp_path / "a").values()
    assert row["epochs"] == saved["epochs"]["probe"] >= 1
    assert not list((tmp_path / "a").glob("*-speed"))
    assert aim_fast(*command, "--budget", "hours=0.0005")[0] == 0
    assert json.loads((tmp_path / "a" / "study.json").read_text()) == saved
    status, _, err = aim_fast(*command, "--budget", "hours=0.001")
    assert (status, "hours: 0.0005 -> 0.001" in err) == (2, True)


@pytest.mark.slow
def test_a_job_that_is_killed_in_two_rows_ends_as_an_unbroken_one(options, tmp_path):
    command = ("compare", "--train", "st_adapter", "lora", *options, "--epochs", 3, "--quiet", "--output")
    finish(start(*command, tmp_path / "whole"))
    broken = tmp_path / "broken"
    for row in ("st_adapter", "lora"):
        process = start(*command, broken)
        signal_after(process, broken / row, "train", 8, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    first = (broken / "st_adapter" / "metrics.jsonl").stat().st_mtime_ns
    out = finish(start(*command, broken))
    assert (broken / "st_adapter" / "metrics.jsonl").stat().st_mtime_ns == first
    assert (broken / "table.txt").read_text() in out
    for row in ("st_adapter", "lora"):
        assert losses(broken / row) == losses(tmp_path / "whole" / row)
        ours, theirs = adapters(broken / row), adapters(tmp_path / "whole" / row)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for title, row in rows_of(broken).items():
        whole = rows_of(tmp_path / "whole")[title]
        for name in ("top1", "trained", "gflops", "epochs", "recipe"):
            assert row[name] == whole[name]
        assert row["hours"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("aim", "evil", "swin_t,foo=3"),
            ["evil: no method, head or model of that name", "swin_t,foo=3: model swin_t"],
        ),
        (("probe", "timm:nothing", "--lora-rank", 2), ["timm:nothing: timm has no model"]),
        (("probe", "--lora-rank", 2), ["--lora-rank: no row takes it"]),
        (("aim", "probe", "--trunk", "swin_t"), ["all methods on one trunk"]),
        (("lora,lora_rank=x",), ["lora_rank"]),
        (("aim", "mvit", "--weights", "none.pt"), ["nothing is trained: aim: no file none.pt"]),
        (("aim", "--budget", "days=3"), ["write published, epochs=N or hours=H"]),
        (("aim", "--budget", "epochs=3", "--epochs", 3), ["keep one"]),
        (("aim", "--rounds", 3), ["--rounds is of counting and measuring alone"]),
        (("aim", "--seeds", "1", "1"), ["not different whole numbers"]),
        ((), ["Missing argument"]),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(aim_fast, options, tmp_path, words, says):
    status, _, err = aim_fast("compare", *options, "--train", *words, "--output", tmp_path / "a", "--quiet")
    assert status == 2
    assert all(line in err for line in says)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_methods_on_a_trunk_that_cannot_have_them_are_refused_together(aim_fast, tmp_path):
    words = ("aim", "lora", "probe", "--trunk", "swin_demo", "--dataset", "ssv2", "--data-root", tmp_path)
    status, _, err = aim_fast("compare", "--train", *words, "--output", tmp_path / "a")
    assert status == 2
    for word in ("lora", "probe"):
        assert f"{word}: model swin_demo is of method aim, with a head of its own" in err


def test_options_of_training_are_refused_without_it(aim_fast):
    status, _, err = aim_fast("compare", "vit_demo", "--epochs", 3, "--demo")
    assert (status, "--demo, --epochs" in err) == (2, True)


def test_a_study_of_methods_has_every_one_of_the_trunk(aim_fast, options, tmp_path, monkeypatch):
    from aim_fast.studies.ablation import Study

    seen = []
    monkeypatch.setattr(Study, "run", lambda self, say, quiet: seen.extend(cell.key for cell in self.cells) or True)
    study = ("ablate", "--study", "methods", *options[:6], "--model", "vit_demo", "--output", tmp_path / "a")
    assert aim_fast(*study)[0] == 0
    assert {"aim", "probe", "full", "timesformer", "st_adapter", "zeroi2v", "bitfit", "lora", "attentive"} <= {*seen}
