"""The table of every video's scores, read back by the standard library and by pyarrow."""

import csv

import pytest
import torch
from click.testing import CliRunner

from aim_fast.cli import cli


def scored(trained, file):
    return CliRunner().invoke(cli, ["eval", str(trained), "--predictions", str(file)], catch_exceptions=False)


def test_every_video_is_in_the_file_with_what_eval_counts(trained, tmp_path):
    file = tmp_path / "scores.csv"
    printed = scored(trained, file).output
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in rows[0] if name.startswith("score/")]
    values = torch.tensor([[float(row[name]) for name in names] for row in rows])
    assert values.sum(1).allclose(torch.ones(len(rows)), atol=1e-5)
    assert [row["predicted"] for row in rows] == [names[i].removeprefix("score/") for i in values.argmax(1).tolist()]
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert f"top-1 {100 * right / len(rows):.2f} %" in printed
    assert len({row["video"] for row in rows}) == len(rows)


def test_parquet_holds_the_same(trained, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    scored(trained, tmp_path / "scores.csv")
    scored(trained, tmp_path / "scores.parquet")
    with (tmp_path / "scores.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["video"] for row in table] == [row["video"] for row in rows]
    assert all(row[name] == pytest.approx(float(other[name]), abs=1e-6)
               for row, other in zip(table, rows) for name in row if name.startswith("score/"))  # fmt: skip


def test_another_ending_is_refused_before_anything_is_scored(trained, tmp_path):
    found = CliRunner().invoke(cli, ["eval", str(trained), "--predictions", str(tmp_path / "scores.xlsx")])
    assert "name a file that ends in .csv or .parquet" in str(found.exception)
