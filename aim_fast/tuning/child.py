"""Choosing in a process of its own: a kernel that faults there takes nothing with it.

The parent writes the calls to the child's stdin; the child (``python -m aim_fast.tuning``) prints a line before each
candidate that it tries and one for each choice. Where it ends before its time, or says nothing for long, the candidate
named last is left out, and another child goes on with the calls that are left.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from aim_fast.timing import take_turns
from aim_fast.tuning.calls import Call, decoded, encoded
from aim_fast.tuning.compiling import compile_candidates
from aim_fast.tuning.record import choice_of, content_of, content_of_shapes, shapes_of
from aim_fast.tuning.selection import Choice, Clock, Selection, Shapes

_COMMAND = (sys.executable, "-m", "aim_fast.tuning")
_SILENCE = 180.0  # seconds, in which some hundred kernels are compiled
_ROUNDS = 9
_CHILDREN = 4  # one after another


def choose_in_child(
    calls: Sequence[Call], device: torch.device, settled: Shapes, command: Sequence[str] = _COMMAND
) -> tuple[list[Choice], list[str]]:
    """The choices for ``calls``, as far as they were made, and a line for each that was not.

    ``settled`` are shapes that were chosen before, which stay.
    """
    made: list[Choice] = []
    lines: list[str] = []
    skip: list[str] = []
    left = list(calls)
    settled = dict(settled)
    for _ in range(_CHILDREN):
        asked = {
            "device": str(device),
            "calls": [encoded(call) for call in left],
            "settled": content_of_shapes(settled),
            "skip": skip,
        }
        under_way, reason = "", "ended"
        for message in _messages(command, json.dumps(asked)):
            if "choice" in message:
                made.append(choice := choice_of(message["choice"]))
                settled |= choice.shapes
                left.remove(choice.call)
            elif "left" in message:
                call = decoded(message["left"])
                lines.append(f"{call.operator}: not tuned: {message['reason']}")
                left.remove(call)
            under_way, reason = message.get("trying", under_way), message.get("ended", reason)
        if not left:
            return made, lines
        if not under_way or under_way in skip:
            break
        skip.append(under_way)
    return made, [*lines, f"{len(left)} of {len(calls)} calls were not tuned: the process that tries them {reason}"]


def run() -> None:
    """The child: reads what it is asked from stdin, and prints."""
    asked = json.load(sys.stdin)
    device = torch.device(asked["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    calls, settled = [decoded(call) for call in asked["calls"]], shapes_of(asked["settled"])
    compile_candidates(calls, device, settled)
    selection = Selection(
        device, card_clock(device), settled, announce=lambda name: _say({"trying": name}), skip=asked["skip"]
    )
    for call in calls:
        try:
            _say({"choice": content_of(selection.choose(call))})
        except (RuntimeError, ValueError, TypeError) as error:  # such as out of memory, or a call that cannot be made
            _say({"left": encoded(call), "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
            if device.type == "cuda":
                torch.cuda.empty_cache()


def card_clock(device: torch.device) -> Clock:
    """Medians over rounds in which all take turns, of the kernels alone, with a cold cache; elsewhere one round."""
    rounds, warm = (_ROUNDS, 2) if device.type == "cuda" else (1, 0)

    def clock(functions: Any) -> dict[str, float]:
        timings = take_turns(functions, rounds, str(device), warm=warm, ahead=True)
        return {name: timing.median for name, timing in timings.items()}

    return clock


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _messages(command: Sequence[str], asked: str) -> Iterator[dict[str, Any]]:
    """What a child prints, the last of it how it ended where that was not as it should."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in child.stdout or ():
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            with suppress(BrokenPipeError):
                if child.stdin:
                    child.stdin.write(asked)
                    child.stdin.close()
            while (line := lines.get(timeout=_SILENCE)) is not None:
                if line.startswith("{"):
                    yield json.loads(line)
            if child.wait():
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"with exit status {child.returncode}"])[-1]
                yield {"ended": f"ended: {last[:160]}"}
        except queue.Empty:
            yield {"ended": f"said nothing for {_SILENCE:.0f} s"}
        finally:
            child.kill()
            child.wait()
            reader.join()
