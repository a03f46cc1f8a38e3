"""docs/python.md and its notebook run as they are printed, on clips that the demo makes."""

import inspect
import re
from pathlib import Path

import pytest

import aim_fast
from aim_fast.training.metrics import read_metrics

DOCS = Path(__file__).parents[2] / "docs"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, motion_set, trunk, capsys):
    """With the demo's model in place of the default one, which takes minutes."""
    videos, clips = tmp_path / "videos", sorted(motion_set.rglob("*.webm"))
    for number, clip in enumerate(clips[:12]):
        place = videos / ("train" if number < 8 else "val") / ("left", "right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / clip.name).symlink_to(clip)
    (tmp_path / "clip.mp4").symlink_to(clips[0])
    (tmp_path / "ViT-B-16.pt").symlink_to(trunk)
    monkeypatch.chdir(tmp_path)
    small = {"model": "aim_vit_demo", "epochs": 1, "batch_size": 4, "quiet": True}
    whole = aim_fast.train
    monkeypatch.setattr(aim_fast, "train", lambda **fields: whole(**fields, **small), raising=False)
    names: dict = {}
    page = (DOCS / "python.md").read_text()
    for code in re.findall(r"^```python\n(.+?)^```", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    assert names["report"].scores.videos == 4
    assert names["batch"].frames.shape[1:] == (8, 224, 224, 3)
    assert {"left", "right"} & set(capsys.readouterr().out.split())


def test_the_page_names_every_function_and_its_parameters():
    page = (DOCS / "python.md").read_text()
    for name in ("train", "evaluate", "predict", "load_run"):
        shown = re.search(rf"^\| `{name}\(([^`]*)\)` \|", page, re.MULTILINE)[1]
        taken = inspect.signature(getattr(aim_fast, name)).parameters.values()
        expected = [parameter.name for parameter in taken if parameter.kind is not parameter.VAR_KEYWORD]
        assert re.findall(r"(?:^|, )(\w+)", shown) == expected


@pytest.mark.slow
def test_the_notebook_runs_and_its_progress_is_one_line(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(DOCS / "notebooks" / "tutorial.ipynb", 4)
    assert not any(cell.get("outputs") for cell in book.cells), "committed with outputs"
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not any("\r" in str(output.get("text", "")) for output in outputs)
    (training,) = (cell.outputs for cell in book.cells if "aim_fast.train(" in cell.source)
    shown = [output.data["text/plain"] for output in training if output.output_type == "display_data"]
    assert len([line for line in shown if "clips/s" in line]) == 1
    (top1,) = re.findall(r"top-1 ([01]\.\d{3}),", str(training))
    scores = [row for row in read_metrics(tmp_path / "tutorial" / "run") if row["kind"] == "eval"]
    assert float(top1) == pytest.approx(scores[-1]["top1"], abs=1e-3)
    assert str(outputs[-1]).count("<img") == min(6, round((1 - scores[-1]["top1"]) * scores[-1]["videos"]))
