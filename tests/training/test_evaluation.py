"""Scores against values worked out by hand."""

import math
import warnings

import pytest
import torch

from aim_fast.training.drawing import drawing
from aim_fast.training.evaluation import Evaluation, draw_confusion

PROBABILITIES = torch.tensor(
    [[0.7, 0.2, 0.1, 0.0], [0.1, 0.6, 0.3, 0.0], [0.5, 0.1, 0.4, 0.0], [0.2, 0.3, 0.5, 0.0], [0.6, 0.4, 0.0, 0.0]]
)
LABELS = torch.tensor([0, 1, 2, 2, 1])


def test_scores_are_those_worked_out_by_hand():
    scores = Evaluation(PROBABILITIES, LABELS, torch.arange(5), excluded=2)
    assert scores.top(1) == pytest.approx(3 / 5)
    assert scores.top(2) == 1.0
    assert scores.top(5) == 1.0
    summary = scores.summary()
    assert summary["mean_class"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)  # class 3 has no videos
    assert summary["loss"] == pytest.approx(-sum(map(math.log, (0.7, 0.6, 0.4, 0.5, 0.4))) / 5)
    assert (summary["videos"], summary["excluded"]) == (5, 2)
    assert scores.confusion.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_nothing_to_score_is_no_crash():
    scores = Evaluation(torch.zeros(0, 4), *torch.zeros(2, 0, dtype=torch.int64), excluded=3)
    assert scores.summary()["videos"] == 0
    assert scores.top(1) == 0.0


def test_the_confusion_matrix_is_drawn(tmp_path):
    from PIL import Image

    path = tmp_path / "confusion.png"
    draw_confusion(Evaluation(PROBABILITIES, LABELS, torch.arange(5), 0), list("abcd"), path)
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_a_class_with_dollar_signs_in_its_name_is_drawn_as_it_is_written(tmp_path, capsys):
    path = tmp_path / "confusion.png"
    with drawing(path):
        scores = Evaluation(PROBABILITIES, LABELS, torch.arange(5), 0)
        draw_confusion(scores, ["a", r"$\frac$", "counting $5 and $10", "d"], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


def test_letters_that_the_font_has_not_are_drawn_without_a_warning(tmp_path):
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings(action="error"), drawing(path):
        draw_confusion(Evaluation(PROBABILITIES, LABELS, torch.arange(5), 0), ["日本", "b", "c", "d"], path)
    assert path.is_file()


def test_a_picture_that_fails_is_named_and_costs_nothing_else(tmp_path, capsys):
    path = tmp_path / "confusion.png"
    path.mkdir()
    with drawing(path):
        draw_confusion(Evaluation(PROBABILITIES, LABELS, torch.arange(5), 0), list("abcd"), path)
    assert capsys.readouterr().err == f"aim-fast: {path}: not drawn (Is a directory)\n"
