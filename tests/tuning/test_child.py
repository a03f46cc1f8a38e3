"""The process that tries: the real one in Triton's interpreter, and one that a candidate ends."""

import os
import subprocess
import sys

import pytest
import torch

from aim_fast.tuning import child
from aim_fast.tuning.child import choose_in_child
from aim_fast.tuning.selection import Choice
from tests.tuning.conftest import norm_call

CPU = torch.device("cpu")

TRIED = """
import torch
from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.child import choose_in_child

half = torch.float16
qkv = Layout((1, 1, 9, 48), (432, 432, 48, 1), half)
out, lse = Layout((1, 1, 9, 16), (144, 144, 16, 1), half), Layout((1, 1, 1, 9), (9, 9, 9, 1), torch.float32)
vector = Layout((40,), (1,), torch.float32)
calls = [
    Call("layer_norm", (Layout((600, 40), (40, 1), half), vector, vector, 1e-5, half)),
    Call("spatial_attention", (qkv, 1, "auto", None)),
    Call("spatial_attention_backward", (out, qkv, out, lse, 1, "auto", None)),
]
choices, lines = choose_in_child(calls, torch.device("cpu"), {})
assert [choice.call for choice in choices] == calls and not lines, (choices, lines)
for choice in choices:
    own = [tried for tried in choice.tried if tried.name not in ("sdpa", "cudnn")]
    assert choice.name == own[-1].name == "plain" and len(own) > 3, choice  # the interpreter is slower by far
    assert all(tried.fault is None and tried.seconds >= choice.taken.seconds for tried in own), own
    assert all("CPU" in tried.fault for tried in choice.tried if tried not in own), choice.tried
    print(choice.call.operator, len(choice.shapes))
"""


@pytest.mark.interpreter
@pytest.mark.slow
def test_real_kernels_are_tried_in_a_process_of_their_own():
    process = subprocess.run(
        [sys.executable, "-c", TRIED],
        env=dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    found = process.stdout.split()
    assert found[:-1] == ["layer_norm", "1", "spatial_attention", "1", "spatial_attention_backward"]
    assert found[-1] in ("1", "3")  # one kernel, or that there are two, and theirs


MORTAL = """
import json, os, sys
asked = json.load(sys.stdin)
for call in asked["calls"]:
    name = call[1][0]["shape"][0]
    print(json.dumps({"trying": f"{name} a"}), flush=True)
    print("what a library prints", flush=True)
    print(json.dumps({"trying": f"{name} b"}), flush=True)
    if name == MORTAL and f"{name} b" not in asked["skip"]:
        print("an illegal memory access was encountered", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps({"choice": {"call": call, "implementation": "triton", "shapes": [], "tried": []}}), flush=True)
"""


def test_a_candidate_that_ends_the_process_is_left_out_and_the_rest_goes_on():
    calls = [norm_call(rows) for rows in (300, 400, 500)]
    made, lines = choose_in_child(calls, CPU, {}, [sys.executable, "-c", MORTAL.replace("MORTAL", "400")])
    assert (made, lines) == ([Choice(call) for call in calls], [])


def test_a_process_that_cannot_start_stops_nothing():
    command = [sys.executable, "-c", "import sys; sys.exit('no CUDA-capable device is detected')"]
    made, lines = choose_in_child([norm_call()], CPU, {}, command)
    assert made == []
    assert lines == [
        "1 of 1 calls were not tuned: the process that tries them ended: no CUDA-capable device is detected"
    ]


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(child, "_SILENCE", 1.0)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert choose_in_child([norm_call()], CPU, {}, command) == (
        [],
        ["1 of 1 calls were not tuned: the process that tries them said nothing for 1 s"],
    )
