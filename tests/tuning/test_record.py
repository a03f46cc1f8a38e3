"""What was chosen is kept by card and versions; what is damaged or of others is made anew; one process makes it."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from aim_fast.cli import doctor
from aim_fast.training import first_start
from aim_fast.training.devices import Place
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.trained_model import TrainedModel
from aim_fast.tuning import record
from aim_fast.tuning import tuning as module
from aim_fast.tuning.record import card_of, read_record, write_record
from aim_fast.tuning.selection import PLAIN, Selection
from aim_fast.tuning.tuning import recall, tune
from aim_kernels import block_shapes
from aim_kernels.block_shapes import committed
from tests.tuning.conftest import SHAPES, norm_call

CPU = torch.device("cpu")


@pytest.fixture
def chooser(planted):
    """Chooses in this process, the second candidate of every kernel; how many calls it was asked for each time."""
    planted({})
    asked = []

    def choose(calls, device, settled):
        asked.append(len(calls))
        clock = lambda functions: {x: 1.0 if x in ("committed", PLAIN) else 0.1 for x in functions}  # noqa: E731
        selection = Selection(device, clock, settled)
        return [selection.choose(call) for call in calls], []

    choose.asked = asked
    return choose


def test_the_second_start_reads_what_the_first_one_chose(chooser):
    calls = Counter({norm_call(): 24})
    first = tune(calls, CPU, choose=chooser)
    assert (first.new, chooser.asked) == (1, [1])
    assert first.gain > 0.5
    chosen = dict(block_shapes.CHOSEN)
    assert chosen
    block_shapes.CHOSEN.clear()
    second = tune(calls, CPU, choose=chooser)
    assert (second.new, chooser.asked, block_shapes.CHOSEN) == (0, [1], chosen)
    assert second.choices == first.choices
    assert second.summary.endswith("of their time saved")
    assert "before" in second.summary
    more = tune(calls + Counter([norm_call(width=48)]), CPU, choose=chooser)
    assert (more.new, chooser.asked, len(more.choices)) == (1, [1, 1], 2)
    assert tune(calls, CPU, anew=True, choose=chooser).new == 1


def test_what_takes_no_step_runs_what_was_chosen_before(chooser):
    assert (recall(CPU).choices, block_shapes.CHOSEN) == ({}, {})
    tune(Counter([norm_call(), norm_call(width=48)]), CPU, choose=chooser)
    chosen = dict(block_shapes.CHOSEN)
    block_shapes.CHOSEN.clear()
    assert len(recall(CPU).choices) == 2
    assert block_shapes.CHOSEN == chosen != {launch: committed(launch) for launch in chosen}
    assert chooser.asked == [2]


def test_a_record_of_other_versions_is_not_recalled(chooser):
    tune(Counter([norm_call()]), CPU, choose=chooser)
    block_shapes.CHOSEN.clear()
    file = card_of(CPU).file
    file.write_text(file.read_text().replace(torch.__version__, "1.0"))
    assert (recall(CPU).choices, block_shapes.CHOSEN) == ({}, {})


def test_a_model_runs_what_was_chosen_on_its_card_unless_its_recipe_keeps_the_committed(chooser, monkeypatch):
    tune(Counter([norm_call()]), CPU, choose=chooser)
    monkeypatch.setattr(first_start, "recall", lambda device: recall(CPU))  # the record of the only device that is here
    monkeypatch.setattr(first_start, "INSTALLED", True)
    monkeypatch.setattr(module, "architecture_of", lambda device: 0)
    cpu, card = (Place(0, 1, torch.device(name), torch.float32) for name in ("cpu", "cuda:0"))
    for place, kernels, entered in ((cpu, "tuned", False), (card, "committed", False), (card, "tuned", True)):
        block_shapes.CHOSEN.clear()
        recipe = load_recipe("demo", {"kernels": kernels})
        first_start.recall_kernels(TrainedModel(torch.nn.Linear(2, 2), None, recipe, "", []), place)
        assert bool(block_shapes.CHOSEN) == entered
    said = first_start.run_recalled(torch.nn.Linear(2, 2), card)
    assert said.startswith(f"tuned 1 calls of operators for {card_of(CPU).name} before: 1 changed, ")
    assert first_start.run_recalled(torch.nn.Linear(2, 2), cpu) is None


def test_doctor_shows_what_was_chosen_and_what_was_left_out(planted, monkeypatch):
    planted({SHAPES[1]: "wrong"})
    clock = lambda functions: {x: 0.5 if x == PLAIN else 1.0 for x in functions}  # noqa: E731
    tune(Counter([norm_call()]), CPU, choose=lambda calls, *_: ([Selection(CPU, clock).choose(*calls)], []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = card_of(CPU)
    monkeypatch.setattr(record, "card_of", lambda device: card)  # the only one that is here
    shown = doctor._tuned()
    assert shown[card.name] == f"1 calls in {card.file}: 1 changed"
    assert shown[f"{card.name}, 1"] == "layer_norm plain"
    assert "plain torch loses" in shown[f"{card.name}, left out 1"]
    assert len(shown) == 3


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"layer_norm"', '"no_such_operator"'), "damaged"),
        (lambda text: text.replace("bfloat16", "bfloat17"), "damaged"),
        (lambda text: text.replace(torch.__version__, "1.0"), "torch 1.0 made it"),
        (lambda text: json.dumps(json.loads(text) | {"made_by": {"name": "x"}}), "damaged"),
        (lambda text: "\0" * 100, "damaged"),
    ],
)  # fmt: skip
def test_a_record_that_is_damaged_or_of_other_versions_is_made_anew(damage, line, chooser):
    calls = Counter({norm_call(): 1})
    tune(calls, CPU, choose=chooser)
    file = card_of(CPU).file
    whole = file.read_text()
    file.write_text(damage(whole))
    made = tune(calls, CPU, choose=chooser)
    assert made.new == 1
    assert len([said for said in made.lines if line in said and "made anew" in said]) == 1
    assert json.loads(file.read_text())["made_by"] == json.loads(whole)["made_by"]
    assert tune(calls, CPU, choose=chooser).lines == []


@pytest.mark.parametrize("field", ["driver", "capability", "torch", "triton", "package", "kernels"])
def test_a_record_holds_for_nothing_else(field, chooser):
    tune(Counter({norm_call(): 1}), CPU, choose=chooser)
    card = card_of(CPU)
    assert len(read_record(card)[0]) == 1
    found, reason = read_record(replace(card, **{field: "other"}))
    assert (found, field in reason) == ({}, True)


def test_a_folder_that_cannot_be_written_stops_nothing(chooser, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = tune(Counter({norm_call(): 1}), CPU, choose=chooser)
    assert made.new == 1
    assert "cannot be kept" in made.lines[0]


def test_a_tuning_that_fails_leaves_the_committed_shapes(monkeypatch):
    made = tune(Counter({norm_call(): 1}), CPU, choose=lambda calls, device, settled: ([], ["it ended"]))
    assert (made.choices, made.lines, block_shapes.CHOSEN) == ({}, ["it ended"], {})
    assert made.summary.startswith("kernels run at their committed shapes")
    assert read_record(card_of(CPU)) == ({}, None)


TUNE = """
import sys, time
from collections import Counter
from pathlib import Path
import torch
from aim_fast.tuning.selection import Choice
from aim_fast.tuning.tuning import tune
from tests.tuning.conftest import norm_call

def choose(calls, device, settled):
    with open(sys.argv[1], "a") as file:
        file.write("chosen\\n")
    time.sleep(1)
    return [Choice(call) for call in calls], []

print(len(tune(Counter([norm_call()]), torch.device("cpu"), choose=choose).choices))
"""


def test_of_several_processes_one_tunes_and_the_others_read(tmp_path):
    log = tmp_path / "log"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TUNE, str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = [process.communicate() for process in started]
    assert [out.strip() for out, _ in found] == ["1"] * 3, found
    assert log.read_text() == "chosen\n"


def test_write_and_read_give_the_same(chooser):
    made = tune(Counter([norm_call(), norm_call(width=48)]), CPU, choose=chooser)
    write_record(made.card, made.choices)
    assert read_record(made.card) == (made.choices, None)
    assert module.card_of(CPU) == made.card
