"""Choosing for all the calls of a step on this card, once, and entering it where the operators look.

Calls that the card's record holds are taken from it; the others are tried in a child process, by one process of a card
at a time, and kept. A tuning that fails in part or whole stops nothing: the committed shapes run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from aim_fast.errors import UsageError
from aim_fast.files import one_builder
from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.child import choose_in_child
from aim_fast.tuning.record import Card, card_of, read_record, write_record
from aim_fast.tuning.selection import Choice, Shapes
from aim_kernels import spatial_attention
from aim_kernels.block_shapes import CHOSEN
from aim_kernels.registration import OPERATORS, architecture_of

Chooser = Callable[[list[Call], torch.device, Shapes], tuple[list[Choice], list[str]]]


@dataclass
class Tuning:
    """The choices for the calls of a step, how many of them are new, and what is to be said of them."""

    card: Card
    choices: dict[Call, Choice]
    counts: Mapping[Call, int]
    new: int = 0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """Share of the time in tuned operators that the choices save."""
        before = after = 0.0
        for call, choice in self.choices.items():
            if (default := choice.default) and (taken := choice.taken) and default.seconds and taken.seconds:
                before += self.counts.get(call, 1) * default.seconds
                after += self.counts.get(call, 1) * taken.seconds
        return 1 - after / before if before else 0.0

    @property
    def summary(self) -> str:
        """One line."""
        if not self.choices:
            return f"kernels run at their committed shapes: none was tuned for {self.card.name}"
        calls = f"{len(self.choices)} calls of operators"
        other = sum(choice.name != "committed" for choice in self.choices.values())
        how = f"in {self.seconds:.0f} s" if self.new else "before"
        return f"tuned {calls} for {self.card.name} {how}: {other} changed, {self.gain:.0%} of their time saved"


def tune(counts: Counter[Call], device: torch.device, anew: bool = False, choose: Chooser | None = None) -> Tuning:
    """The choices for ``counts``, the calls of a step and how often each is made, entered for this process.

    ``anew``: whatever the record holds of them.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    card = card_of(device)
    calls = sorted((c for c in counts if _tunable(c, device)), key=lambda c: c.elements * counts[c], reverse=True)
    tuning = Tuning(card, {}, counts)
    known = {} if anew else read_record(card)[0]
    if any(call not in known for call in calls):
        _make(tuning, calls, device, anew, choose or choose_in_child)
    else:
        tuning.choices = {call: known[call] for call in calls}
    enter(tuning.choices.values(), device)
    for choice in tuning.choices.values():  # what is slower than it could be is said at every start
        tuning.lines += (
            choice.lines if tuning.new else choice.lines[-1:] if choice.implementation == "reference" else []
        )
    return tuning


def enter(choices: Iterable[Choice], device: torch.device) -> None:
    """Has the operators of this process run ``choices``. The first of those that share a kernel decides its shape."""
    architecture = architecture_of(device)
    for choice in choices:
        for launch, shape in choice.shapes.items():
            CHOSEN.setdefault(launch, shape)
        operator = OPERATORS[choice.call.operator]
        operands = [torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Layout) else x
                    for x in choice.call.operands]  # fmt: skip
        place = (architecture, *operator.shape_class(*operands)[1:])
        if choice.implementation == "triton":
            operator.chosen.pop(place, None)
        else:
            operator.chosen[place] = choice.implementation
        if choice.call.operator.startswith("spatial_attention"):
            for tried in choice.tried:
                if tried.fault and (tried.name in operator.libraries or choice.implementation == "reference"):
                    backend = tried.name if tried.name in operator.libraries else "triton"
                    spatial_attention.FAILED[architecture, backend] = tried.fault


def check_backends(model: nn.Module, device: torch.device) -> None:
    """Raises UsageError where a part of ``model`` is to run an attention that failed its check on ``device``."""
    architecture = architecture_of(device)
    for part in model.modules():
        backend = getattr(part, "attention_backend", "auto")
        if (architecture, backend) in spatial_attention.FAILED:
            raise UsageError(f"attention_backend: {spatial_attention.backend_missing(backend, device)}")


def _make(tuning: Tuning, calls: list[Call], device: torch.device, anew: bool, choose: Chooser) -> None:
    card, begin = tuning.card, time.monotonic()
    with one_builder([card.file.with_suffix(".lock")], f"the tuning of {card.name}"):
        known, reason = read_record(card)
        if reason:
            tuning.lines.append(f"{card.file}: made anew, as {reason}")
        kept = {call: choice for call, choice in known.items() if not (anew and call in calls)}
        missing = [call for call in calls if call not in kept]
        settled: Shapes = {}
        for call in calls:
            if call in kept:
                settled = kept[call].shapes | settled
        if missing:
            made, lines = choose(missing, device, settled)
            tuning.lines += lines
            kept |= {choice.call: choice for choice in made}
            tuning.new = len(made)
            try:
                write_record(card, kept)
            except OSError as error:
                tuning.lines.append(f"{card.file}: cannot be kept ({error.strerror}): made again at the next start")
        tuning.choices = {call: kept[call] for call in calls if call in kept}
    tuning.seconds = time.monotonic() - begin


def _tunable(call: Call, device: torch.device) -> bool:
    """Whether a kernel serves the call on ``device``."""
    operator = OPERATORS[call.operator]
    if operator.triton is None or not call.elements:
        return False
    operands = [torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Layout) else x
                for x in call.operands]  # fmt: skip
    typed = [x.dtype if isinstance(x, torch.Tensor) else x for x in operands]
    floating = [x for x in typed if isinstance(x, torch.dtype) and x.is_floating_point]
    if device.type == "cuda" and architecture_of(device) < 80:
        return False
    served = all(x in (torch.float16, torch.bfloat16, torch.float32) for x in floating)
    return served and (operator.fits is None or operator.fits(*operands))
