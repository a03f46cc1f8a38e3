"""The page of a run: what stands in it, in a real browser where there is one, and how large it gets."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from aim_fast.cli import cli
from aim_fast.data import Sampling
from aim_fast.data.index.rows import Index, Row
from aim_fast.report import write_page
from aim_fast.report.calibration import Calibration
from aim_fast.training.evaluation import Evaluation
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.report import Report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a & b", "{{ 7 * 7 }}", "\udcff"]


def made_report(folder: Path, classes: list[str], videos: int) -> Report:
    """Random scores of videos that are not there."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(classes), (videos,), generator=generator)
    scores = torch.randn(videos, len(classes), generator=generator)
    scores[torch.arange(videos), labels] += 1.5
    rows = [
        Row(f"{folder}/{number}.mp4", int(label), str(number), 30, 240, 320, "h264", "yuv420p", 0, 1, 1, None)
        for number, label in enumerate(labels)
    ]
    index = Index("ssv2", "validation", str(folder), classes, rows)
    evaluation = Evaluation(scores.softmax(1), labels, torch.arange(videos), 0)
    return Report(folder, "a protocol", classes, evaluation, index, load_recipe("demo", {}), Sampling(8), 48)


class Text(HTMLParser):
    """Tags, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.addresses = ["none"], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.tags[-1] not in ("script", "style"):
            self.text += data


def browse(page: Path, *options: str) -> tuple[str, str]:
    """(document after its scripts have run, what the console said) of a page in headless Chromium."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--disable-quic",
               "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}"]  # fmt: skip
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_run_has_its_page_at_the_end_of_training_and_again_when_asked(trained, tmp_path):
    made = (trained / "report.html").read_text()
    page = tmp_path / "page.html"
    found = CliRunner().invoke(cli, ["report", str(trained), "--output", str(page)], catch_exceptions=False)
    assert f"report: {page}" in found.output
    for text in map(Text, (made, page.read_text())):
        assert all(address.startswith("data:") for address in text.addresses)  # nothing is fetched
        assert sum(address.startswith("data:image/jpeg") for address in text.addresses) >= 3  # frames
        for heading in ("Training", "Confusion matrix", "Classes", "Most confident mistakes", "Calibration", "Recipe"):
            assert heading in text.text
        assert f"aim-fast train --recipe {trained / 'recipe.yaml'}" in text.text
    top1 = re.search(r"top-1 ([\d.]+) %", found.output)[1]
    assert f"{float(top1):.1f} %top-1" in Text(page.read_text()).text


def test_names_are_text_whatever_is_in_them(tmp_path):
    write_page(made_report(tmp_path, HOSTILE, 60), tmp_path / "report.html")
    text = Text((tmp_path / "report.html").read_text())
    assert text.tags.count("script") == 2
    assert "img" not in text.tags or not any("onerror" in str(address) for address in text.addresses)
    assert "</script><script>alert(1)</script>" in text.text
    assert "\ufffd" in text.text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_browser_shows_it_without_an_error(tmp_path, size):
    write_page(made_report(tmp_path, HOSTILE, 60), tmp_path / "report.html")
    document, console = browse(tmp_path / "report.html", f"--window-size={size}", "--dump-dom")
    assert not console
    body = document.split('id="classes"')[1]
    assert body.count("<tr data-class=") == len(HOSTILE)  # the script has listed the classes
    browse(tmp_path / "report.html", f"--window-size={size}", f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_twenty_thousand_videos_of_four_hundred_classes_stay_small(tmp_path):
    write_page(made_report(tmp_path, [f"class {i}" for i in range(400)], 20_000), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 15e6
    document, console = browse(tmp_path / "report.html", "--dump-dom")
    assert not console
    assert document.split('id="classes"')[1].count("<tr data-class=") == 400


def test_calibration_is_that_worked_out_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.92, 0.08], [0.6, 0.4], [0.45, 0.55]])
    found = Calibration.of(Evaluation(probabilities, torch.tensor([0, 1, 0, 0]), torch.arange(4), 0))
    assert found.videos == [1, 1, 2]
    assert found.top1 == [0.0, 1.0, 0.5]
    assert found.confidence == pytest.approx([0.55, 0.6, 0.91])
    assert found.error == pytest.approx((0.55 + 0.4 + 2 * 0.41) / 4)


def test_a_run_of_nothing_but_right_answers_has_a_page(tmp_path):
    report = made_report(tmp_path, ["a", "b"], 4)
    labels = report.scores.labels
    sure = Evaluation(torch.eye(2)[labels], labels, torch.arange(4), 0)
    write_page(replace(report, scores=sure), tmp_path / "report.html")
    assert "Most confident mistakes" not in Text((tmp_path / "report.html").read_text()).text


def test_the_script_gets_the_confusion_matrix(tmp_path):
    report = made_report(tmp_path, ["a", "b", "c"], 50)
    write_page(report, tmp_path / "report.html")
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)[1]
    dense = torch.zeros(3, 3, dtype=torch.int64)
    for true, predicted, count in json.loads(data)["confusion"]:
        dense[true, predicted] = count
    assert dense.equal(report.scores.confusion)
