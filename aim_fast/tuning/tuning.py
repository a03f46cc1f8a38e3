"""Choosing for all the calls of a step on this card, once, and entering it where the operators look.

Calls that the card's record holds are taken from it; the others are tried in a child process, by one process of a card
at a time, and kept. A tuning that fails in part or whole stops nothing: the committed shapes run.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from aim_fast.errors import UsageError
from aim_fast.files import one_builder
from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.child import choose_in_child
from aim_fast.tuning.record import Card, card_of, read_record, write_record
from aim_fast.tuning.selection import PLAIN, Choice, Shapes
from aim_kernels import AIMSwinBlock, group_attention, spatial_attention
from aim_kernels.block_shapes import CHOSEN
from aim_kernels.optional_triton import forget
from aim_kernels.registration import OPERATORS, TRITON_DTYPES, architecture_of

_ATTENTIONS = {"spatial_attention": spatial_attention, "group_attention": group_attention}  # that can be forced
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
        plain = sum(choice.name == PLAIN for choice in self.choices.values())
        changed = f"{other} changed" + (f" ({plain} to plain torch)" if plain else "")
        how = f"in {self.seconds:.0f} s" if self.new else "before"
        return f"tuned {calls} for {self.card.name} {how}: {changed}, {self.gain:.0%} of their time saved"


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
        tuning.lines += choice.lines if tuning.new else choice.lines[-1:] if choice.replaced else []
    return tuning


def recall(device: torch.device) -> Tuning:
    """Enters all that the card's record holds, for a process that tunes nothing itself.

    Nothing is measured: what is not in the record, or in one of other versions, runs at the committed shapes.
    """
    card = card_of(device)
    tuning = Tuning(card, read_record(card)[0], {})
    enter(tuning.choices.values(), device)
    return tuning


def enter(choices: Iterable[Choice], device: torch.device) -> None:
    """Has the operators of this process run ``choices``. The first of those that share a kernel decides its shape, and
    of those whose operands differ in their rows alone, the implementation, unless it fails for another of them."""
    architecture = architecture_of(device)
    classes: dict[tuple[str, Hashable], list[Choice]] = defaultdict(list)
    for choice in choices:
        for launch, shape in choice.shapes.items():
            CHOSEN.setdefault(launch, shape)
        operator = OPERATORS[choice.call.operator]
        operands = [torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Layout) else x
                    for x in choice.call.operands]  # fmt: skip
        classes[operator.name, (architecture, *operator.shape_class(*operands)[1:])].append(choice)
        if attention := _ATTENTIONS.get(operator.name.removesuffix("_backward")):
            failed = {(architecture, name): fault for name, fault in choice.failed.items() if name != "reference"}
            attention.FAILED.update(failed)
    for (name, place), alike in classes.items():
        wrong = {failed for choice in alike for failed in choice.failed}
        taken = next((c.implementation for c in alike if c.implementation not in wrong), "reference")
        if taken == "triton":
            OPERATORS[name].chosen.pop(place, None)
        else:
            OPERATORS[name].chosen[place] = taken
    forget()


def check_backends(model: nn.Module, device: torch.device) -> None:
    """Raises UsageError where a part of ``model`` is to run an attention that failed its check on ``device``."""
    architecture = architecture_of(device)
    for part in model.modules():
        backend = getattr(part, "attention_backend", "auto")
        attention = group_attention if isinstance(part, AIMSwinBlock) else spatial_attention
        if (architecture, backend) in attention.FAILED:
            raise UsageError(f"attention_backend: {attention.backend_missing(backend, device)}")


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
    served = all(x in TRITON_DTYPES for x in floating)
    return served and (operator.fits is None or operator.fits(*operands))
