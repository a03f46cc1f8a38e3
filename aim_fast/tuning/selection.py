"""The fastest candidate of an operator's call that is right: block shapes of its kernels, libraries, and plain torch.

The committed shapes come first. Each kernel's candidates are tried with what is chosen of the others; then the
libraries beside them, and the operator's reference, which is plain torch, or smaller operators. A candidate that does
not compile or launch, or breaks the error rule, is left out with its reason. Where none is right the reference runs.
Nothing is chosen that is not faster than the committed one by more than :data:`WORTH`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aim_fast.tuning.calls import Call
from aim_fast.tuning.operands import Standard, Verdict, checked_rows, make_operands
from aim_kernels.block_shapes import BlockShape, Launch, candidates, committed, trying
from aim_kernels.registration import OPERATORS
from aim_kernels.spatial_attention import XFORMERS, xformers_missing

WORTH = 0.02
PLAIN = "plain"  # the name of what "reference" runs
Shapes = dict[Launch, BlockShape]
# seconds of each named function, on a device that it keeps the rest of the machine out of
Clock = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]


@dataclass
class Tried:
    """A candidate, by its name: the seconds of a call, None where it was not timed, and why it was left out."""

    name: str
    seconds: float | None = None
    error: float = 0.0
    plain: float = 0.0
    fault: str | None = None


@dataclass
class Choice:
    """What runs for a call: "triton" with ``shapes``, a library, or "reference"."""

    call: Call
    implementation: str = "triton"
    shapes: Shapes = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)

    @property
    def name(self) -> str:
        return named(self.shapes, self.implementation)

    @property
    def default(self) -> Tried | None:
        """The committed shapes, which were tried first."""
        return self.tried[0] if self.tried else None

    @property
    def taken(self) -> Tried | None:
        """The figures of what was chosen."""
        return next((tried for tried in self.tried if tried.name == self.name), None)

    @property
    def failed(self) -> dict[str, str]:
        """The implementations that are wrong here or do not run, and why; "triton" where no shape of it is right."""
        others = {name: name for name in OPERATORS[self.call.operator].libraries} | {PLAIN: "reference"}
        faults = {tried.name: tried.fault for tried in self.tried if tried.fault}
        found = {others[name]: fault for name, fault in faults.items() if name in others}
        kernels = [tried.name for tried in self.tried if tried.name not in others]
        return found | ({"triton": faults[kernels[-1]]} if kernels and faults.keys() >= set(kernels) else {})

    @property
    def replaced(self) -> bool:
        """Whether plain torch runs for want of a kernel that is right, and not because it is faster."""
        return self.implementation == "reference" and "triton" in self.failed

    @property
    def lines(self) -> list[str]:
        """What is wrong here, a sentence for each candidate that was left out for it."""
        faults = [f"{self.call.operator}: {tried.name}: {tried.fault}" for tried in self.tried if tried.fault]
        if self.replaced:
            faults.append(f"{self.call.operator}: no kernel is right for {self.call}: plain torch runs in its place")
        return faults


def named(shapes: Shapes, implementation: str = "triton") -> str:
    """One name for a candidate: of a kernel's shapes, those that are the committed ones left out."""
    if implementation != "triton":
        return PLAIN if implementation == "reference" else implementation
    words = [f"{launch.kernel} {tuple(shape)}" for launch, shape in shapes.items() if shape != committed(launch)]
    return ", ".join(words) or "committed"


class Selection:
    """Chooses for one call after another; what was chosen for a kernel, or for operands that differ in nothing but how
    many rows they have, is not chosen again for another call, but checked.

    Args:
        announce: told the name of each candidate before it runs, which may be the last that this process does.
        skip: names, as announced, of those that ended a process before.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Clock,
        settled: Shapes | None = None,
        announce: Callable[[str], None] = lambda name: None,
        skip: Iterable[str] = (),
    ) -> None:
        self.device, self.clock, self.announce = device, clock, announce
        self.settled: Shapes = dict(settled or {})
        self.taken: dict[Hashable, str] = {}  # implementations, by operator and class of operands
        self.skip = frozenset(skip)

    def choose(self, call: Call) -> Choice:
        """The choice for ``call``, and all that was tried."""
        part = make_operands(call, self.device, checked_rows(call))
        attempt = _Attempt(self, call, part, Standard(call, part))
        attempt.try_kernels()
        place = (call.operator, OPERATORS[call.operator].shape_class(*part))
        attempt.try_others(self.taken.get(place))
        self.taken.setdefault(place, attempt.choice.implementation)
        self.settled |= attempt.choice.shapes
        return attempt.choice


class _Attempt:
    def __init__(self, selection: Selection, call: Call, part: list[Any], standard: Standard) -> None:
        self.selection, self.call, self.part, self.standard = selection, call, part, standard
        self.operator = OPERATORS[call.operator]
        self.choice = Choice(call)
        self.right: dict[str, tuple[str, Shapes]] = {}  # the candidates that are right, by name
        self.whole: list[Any] | None = None

    def try_kernels(self) -> None:
        asked: Shapes = {}
        self.check("triton", {}, asked)  # the committed shapes, whatever another call made of them
        if any(launch in self.selection.settled for launch in asked):
            known = {launch: self.selection.settled.get(launch, shape) for launch, shape in asked.items()}
            self.check("triton", known, asked)
            asked |= known
        done: set[Launch] = set()
        shapes = dict(asked)
        while launch := next((launch for launch in asked if launch not in done), None):
            done.add(launch)
            if launch not in self.right.get(named(shapes), ("", asked))[1]:
                continue  # what is the fastest so far does without it, as a product does that has the pass within
            shapes.setdefault(launch, asked[launch])
            if launch not in self.selection.settled:
                rivals = [{**shapes, launch: shape} for shape in candidates(launch)]
                for rival in rivals:
                    self.check("triton", rival, asked)
                shapes = self.fastest({named(rival): ("triton", rival) for rival in rivals})[1] or shapes
        if named(shapes) not in self.right:  # settled shapes that are wrong here: those committed, or any that is right
            shapes = next((found for _, found in self.right.values()), {})
        self.choice.shapes = shapes
        self.choice.implementation = "triton" if self.right else "reference"

    def try_others(self, taken: str | None) -> None:
        """Libraries and plain torch; of them and the kernel only the one that is ``taken`` already, where one is."""
        names = list(self.operator.libraries) if "auto" in self.call.operands else []
        if self.whole is not self.part:  # where kernels found no room on all of the operands, plain torch has none
            names.append("reference")
        missing = [x for x in XFORMERS if x in names and xformers_missing(self.selection.device, XFORMERS[x])]
        names = [name for name in names if name not in missing]  # doctor says why
        rivals = {named(self.choice.shapes): ("triton", self.choice.shapes)} if self.right else {}
        rivals |= {named({}, name): (name, {}) for name in names}
        if taken:
            rivals = {name: rival for name, rival in rivals.items() if rival[0] == taken}
        for implementation, shapes in rivals.values():
            self.check(implementation, shapes, {})
        implementation, shapes = self.fastest(rivals)
        self.choice.implementation = implementation or self.choice.implementation
        self.choice.shapes = shapes if implementation == "triton" else self.choice.shapes

    def check(self, implementation: str, shapes: Shapes, asked: Shapes) -> None:
        """Runs a candidate on the part that is checked; ``asked`` gets the shapes that it asked for."""
        name = named(shapes, implementation)
        if any(tried.name == name for tried in self.choice.tried):
            return
        announced = f"{self.call}: {name}"
        if announced in self.selection.skip:
            self.choice.tried.append(Tried(name, fault="ended the process that tried it"))
            return
        self.selection.announce(announced)
        verdict = Verdict(0.0, 0.0, None)
        with trying(shapes) as trial:
            try:
                verdict = self.standard.judge(_unwritten_is_nan(lambda: self.run(implementation, self.part)))
            except Exception as error:  # whatever a compiler, a driver or a library says of what it cannot do
                verdict = verdict._replace(fault=_reason(error))
        for launch, shape in trial.asked.items():
            asked.setdefault(launch, shape)
        self.choice.tried.append(Tried(name, None, *verdict))
        if verdict.fault is None:
            self.right[name] = implementation, dict(trial.asked)

    def fastest(self, rivals: dict[str, tuple[str, Shapes]]) -> tuple[str, Shapes]:
        """Of those that are right; the first unless another is faster by WORTH. ("", {}) where none is right."""
        right = {name: self.right[name] for name in rivals if name in self.right}
        if len(right) < 2:
            return next(iter(right.values()), ("", {}))
        functions = {name: self.timed(implementation, shapes) for name, (implementation, shapes) in right.items()}
        seconds: Mapping[str, float] = {}
        fault = ""
        try:
            self.whole = self.whole or make_operands(self.call, self.selection.device)
            seconds = self.selection.clock(functions)
        except RuntimeError as error:
            if PLAIN not in right and not isinstance(error, torch.OutOfMemoryError):
                raise
            fault = _reason(error)
        if fault and PLAIN in right:  # which may hold more than a kernel while it runs
            self.leave_out(PLAIN, fault)
            return self.fastest(rivals)
        if fault:  # beside a training process there is less room than the step itself will have
            self.whole = self.part
            seconds = self.selection.clock(functions)
        for tried in self.choice.tried:
            tried.seconds = seconds.get(tried.name, tried.seconds)
        first, best = next(iter(right)), min(right, key=lambda name: seconds[name])
        return right[best if seconds[best] < (1 - WORTH) * seconds[first] else first]

    def leave_out(self, name: str, fault: str) -> None:
        del self.right[name]
        next(tried for tried in self.choice.tried if tried.name == name).fault = fault

    def timed(self, implementation: str, shapes: Shapes) -> Callable[[], object]:
        def run() -> object:
            with trying(shapes):
                return self.run(implementation, self.whole or self.part)

        return run

    def run(self, implementation: str, operands: list[Any]) -> Any:
        return self.operator.run(implementation, *operands)


def _unwritten_is_nan(run: Callable[[], Any]) -> Any:
    """What ``run`` gives where fresh memory holds NaN: else what a kernel fails to write may be another's result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
