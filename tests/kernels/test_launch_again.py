"""Remembered calls do what the function as written does, or leave it to that: plans in Python, kernels that only note.

A GPU's tensors are those of a CPU that say otherwise. test_replays.py runs plans in C++ and Triton's own launcher.
"""

import ctypes
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from aim_kernels import _launch_again as launch_again
from aim_kernels import _replays as replays
from aim_kernels.block_shapes import trying


class OnGPU(Tensor):
    """A tensor that says that it is on a GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = True

    def get_device(self):
        return 0


def on_gpu(length, dtype=torch.float32, offset=0, step=1):
    return torch.ones(100, dtype=dtype)[offset : offset + length * step : step].as_subclass(OnGPU)


class Compiled:
    """A compiled kernel that notes what it is handed."""

    packed_metadata = (4, 1, 0)
    metadata = SimpleNamespace(global_scratch_size=0)

    def __init__(self, number, handed):
        self.function, self._run = number, lambda *values: handed.append(values)

    @property
    def run(self):
        return self._run


@pytest.fixture
def machine(monkeypatch):
    """What kernels were ``handed``, of these how often through Triton (``runs``), and a ``kernel``."""
    made = SimpleNamespace(handed=[], runs=0, form=lambda *values: values)
    compiled, numbers = {}, count(7)

    def run(self, *unnamed, grid, warmup, **operands):
        values = [operands[name] for name in self.arg_names]
        kind = tuple(x.dtype if isinstance(x, Tensor) else (type(x), x) for x in values)
        kernel = compiled.setdefault(kind, None) or Compiled(next(numbers), made.handed)
        compiled[kind] = kernel
        if not warmup:
            made.runs += 1
            hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
            head = (*grid, *(1,) * (3 - len(grid)), 11, kernel.function, kernel.packed_metadata, None, *hooks)
            kernel.run(*made.form(*head, *values))
        return kernel

    tensors = frozenset((Tensor, OnGPU))
    for module in (launch_again, replays):
        monkeypatch.setattr(module, "TENSORS", tensors)
        monkeypatch.setattr(module, "Plans", replays.PlansInPython)
        monkeypatch.setattr(module, "pause", lambda by: setattr(replays, "_paused", replays._paused + by))
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 11, raising=False)
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 11)
    monkeypatch.setattr(driver, "_active", active)

    def add_kernel(x_ptr, y_ptr, out_ptr, M, eps):
        pass

    made.kernel = launch_again.Kernel(add_kernel)
    return made


def add_of(machine):
    """x + y, y of one element less or None, and as a column."""

    @launch_again.Remembered
    def add(x, y, eps, M=5):
        out, column = torch.empty_like(x), torch.empty(len(x), dtype=torch.bfloat16)
        y = x if y is None else y
        machine.kernel[(M,)](x_ptr=x, y_ptr=y[1:], out_ptr=out.view(1, -1), M=M, eps=eps)
        machine.kernel[(2, M)](x_ptr=out, y_ptr=y, out_ptr=column, M=M, eps=eps)
        return out, column.view(-1, 1)

    return add


def plain(handed):
    return [[x.data_ptr() if isinstance(x, Tensor) else x for x in values[:6] + values[9:]] for values in handed]


def test_a_fourth_call_hands_over_what_triton_would(machine):
    add = add_of(machine)
    for _ in range(3):
        add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 6
    x, y = on_gpu(4), on_gpu(5)
    out, column = add(x, y, 1e-5)
    assert machine.runs == 6
    assert (out.shape, column.shape, column.dtype) == ((4,), (4, 1), torch.bfloat16)
    assert plain(machine.handed[-2:]) == [
        [5, 1, 1, 11, 7, (4, 1, 0), x.data_ptr(), y.data_ptr() + 4, out.data_ptr(), 5, 1e-5],
        [2, 5, 1, 11, 8, (4, 1, 0), out.data_ptr(), y.data_ptr(), column.data_ptr(), 5, 1e-5],
    ]


@pytest.mark.parametrize(
    "other",
    [
        lambda: (on_gpu(3), on_gpu(5), 1e-5),
        lambda: (on_gpu(4), on_gpu(5, dtype=torch.float16), 1e-5),
        lambda: (on_gpu(4, offset=1), on_gpu(5), 1e-5),
        lambda: (on_gpu(4), on_gpu(5, step=2), 1e-5),
        lambda: (on_gpu(4), torch.ones(5), 1e-5),
        lambda: (on_gpu(4), None, 1e-5),
        lambda: (on_gpu(4), on_gpu(5), 0.0),
        lambda: (on_gpu(4), on_gpu(5), 1e-5, 5.0),
        lambda: (on_gpu(4), on_gpu(5), 1e-5, True),
        lambda: (on_gpu(4), on_gpu(5), 1e-5, 1 << 70),
    ],
)
def test_other_operands_run_as_written(machine, other):
    add = add_of(machine)
    for _ in range(4):
        add(on_gpu(4), on_gpu(5), 1e-5, 1 if other()[3:] == (True,) else 5)
    assert machine.runs == 6
    add(*other())
    assert machine.runs == 8


def test_one_tensor_given_twice_is_watched_as_two_others_are(machine):
    add, x = add_of(machine), on_gpu(5)
    for _ in range(4):
        add(x, x, 1e-5)
    assert machine.runs == 8  # whose a pointer is would not be clear
    for _ in range(3):
        add(on_gpu(5), on_gpu(5), 1e-5)
    assert machine.runs == 14
    add(x, x, 1e-5)
    assert machine.runs == 14
    assert machine.handed[-2][9:11] == (x.data_ptr(), x.data_ptr() + 4)


@pytest.mark.parametrize(
    "other",
    [
        lambda x, out: out.zero_(),
        lambda x, out: out.copy_(x),
        lambda x, out: x.clone(),
        lambda x, out: x.sum().item(),
        lambda x, out: torch._foreach_add_([out], 1.0),
    ],
)
def test_a_function_that_does_more_is_never_remembered(machine, other):
    @launch_again.Remembered
    def more(x):
        out = torch.empty_like(x)
        other(x.as_subclass(Tensor), out)
        machine.kernel[(1,)](x_ptr=x, y_ptr=x, out_ptr=out, M=5, eps=1e-5)
        return out

    for _ in range(5):
        more(on_gpu(4))
    assert machine.runs == 5


def test_a_function_that_changes_its_mind_is_never_remembered(machine):
    sizes = count(1)

    @launch_again.Remembered
    def grows(x):
        out = torch.empty_like(x)
        machine.kernel[(next(sizes),)](x_ptr=x, y_ptr=x, out_ptr=out, M=5, eps=1e-5)
        return out

    for _ in range(5):
        grows(on_gpu(4))
    assert machine.runs == 5


def test_a_tensor_from_elsewhere_is_never_remembered(machine):
    held = torch.empty(4)

    @launch_again.Remembered
    def reads(x):
        out = torch.empty_like(x)
        machine.kernel[(1,)](x_ptr=x, y_ptr=held, out_ptr=out, M=5, eps=1e-5)
        return out

    for _ in range(5):
        reads(on_gpu(4))
    assert machine.runs == 5


def test_a_kernel_that_asks_for_memory_is_never_remembered(machine, monkeypatch):
    monkeypatch.setattr(Compiled, "metadata", SimpleNamespace(global_scratch_size=128))
    add = add_of(machine)
    for _ in range(4):
        add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 8  # another thread has another allocator, or none


def test_a_view_that_begins_where_another_operand_does_is_never_remembered(machine):
    @launch_again.Remembered
    def tail(x, y):
        out = torch.empty_like(x)
        machine.kernel[(1,)](x_ptr=x[4:], y_ptr=y, out_ptr=out, M=5, eps=1e-5)
        return out

    for _ in range(3):
        x = on_gpu(8)
        tail(x, x[4:].as_subclass(OnGPU))
    x, y = on_gpu(8), on_gpu(4)
    tail(x, y)
    assert machine.runs == 4


def test_a_part_of_what_an_operand_lies_in_is_never_remembered(machine):
    held = on_gpu(8)

    @launch_again.Remembered
    def reads(x):
        out = torch.empty_like(x)
        machine.kernel[(1,)](x_ptr=x, y_ptr=held[4:], out_ptr=out, M=5, eps=1e-5)
        return out

    for _ in range(3):
        reads(held[:4].as_subclass(OnGPU))
    reads(on_gpu(4))
    assert machine.runs == 4


def test_what_no_record_sees_is_never_remembered(machine):
    @launch_again.Remembered
    def fills(x):
        out = torch.empty_like(x)
        ctypes.memset(out.data_ptr(), 0, 16)
        return out

    for _ in range(4):
        assert not fills(on_gpu(4)).any()
        torch.full((4,), 7.0)  # what memory is given again is not zero
    assert [*fills._plans._plans.values()] == [None]


def test_a_function_whose_kinds_are_forgotten_meanwhile_begins_anew(machine):
    calls = count(1)

    @launch_again.Remembered
    def chooses(x):
        out = torch.empty_like(x)
        machine.kernel[(1,)](x_ptr=x, y_ptr=x, out_ptr=out, M=5, eps=1e-5)
        if next(calls) in (2, 5):  # the first that is watched, then the second
            launch_again.forget()
        return out

    for _ in range(8):
        chooses(on_gpu(4))
    assert machine.runs == 8
    chooses(on_gpu(4))
    assert machine.runs == 8


def test_who_calls_while_another_is_watched_does_not_wait(machine):
    add = add_of(machine)
    add(on_gpu(4), on_gpu(5), 1e-5)
    with launch_again._one:
        add(on_gpu(4), on_gpu(5), 1e-5)
    for _ in range(3):
        add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 8


def test_a_fault_while_a_call_is_watched_leaves_nothing_held(machine):
    faults = [False, True, False, False, False]

    @launch_again.Remembered
    def fails(x):
        out = torch.empty_like(x)
        machine.kernel[(1,)](x_ptr=x, y_ptr=x, out_ptr=out, M=5, eps=1e-5)
        if faults.pop(0):
            raise KeyboardInterrupt
        return out

    fails(on_gpu(4))
    with pytest.raises(KeyboardInterrupt):
        fails(on_gpu(4))
    for _ in range(3):
        fails(on_gpu(4))
    assert machine.runs == 4
    assert not launch_again._one.locked()
    assert not replays._paused


def test_an_operand_is_written_and_returned(machine):
    @launch_again.Remembered
    def scale(x, eps):
        machine.kernel[(1,)](x_ptr=x, y_ptr=x, out_ptr=x, M=5, eps=eps)
        return x

    for _ in range(4):
        x = on_gpu(4)
        assert scale(x, 1.0) is x
    assert machine.runs == 3


@pytest.mark.parametrize(
    "form",
    [
        lambda *handed: (*handed[:3], *reversed(handed[3:6]), *handed[6:]),
        lambda *handed: (*handed[:6], *handed[9:]),
        lambda *handed: (*handed, object()),
    ],
)
def test_another_triton_is_left_its_own_form(machine, form):
    machine.form, add = form, add_of(machine)
    for _ in range(5):
        add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 10


@pytest.mark.parametrize("when", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(machine, monkeypatch, when):
    add = add_of(machine)
    for _ in range(4):
        add(on_gpu(4), on_gpu(5), 1e-5)
    monkeypatch.setattr(getattr(knobs.runtime, when), "calls", [lambda told: None])
    add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 8


def test_a_trial_and_a_new_choice_run_as_written(machine):
    add = add_of(machine)
    for _ in range(4):
        add(on_gpu(4), on_gpu(5), 1e-5)
    with trying({}):
        add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 8
    launch_again.forget()
    add(on_gpu(4), on_gpu(5), 1e-5)
    assert machine.runs == 10
