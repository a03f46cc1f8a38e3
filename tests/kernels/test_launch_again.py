"""Remembered launches hand a compiled kernel what Triton would, or leave the launch to Triton."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
import triton.language as tl
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from aim_kernels import _launch_again as launch_again


def add_kernel(x_ptr, y_ptr, M, eps, ROWS: tl.constexpr):
    pass


class OnGPU:
    """What a launch asks of a tensor on a GPU."""

    addresses = count(1 << 20, 4096)

    def __init__(self, dtype=torch.float32, offset=0, device=0):
        self.dtype, self.address, self.device = dtype, next(self.addresses) + offset, device

    def get_device(self):
        return self.device

    def data_ptr(self):
        return self.address


class Compiled:
    """A compiled kernel that keeps what it is handed."""

    function, packed_metadata = 7, (4, 1, 0)

    def __init__(self, launched):
        self._run = lambda *handed: launched.append(handed)

    @property
    def run(self):
        return self._run


@pytest.fixture
def machine(monkeypatch):
    """A kernel on a GPU that runs nothing; what was ``launched``, and how often through Triton's own ``runs``."""
    made = SimpleNamespace(launched=[], runs=0, handed=lambda *told: told)
    compiled = {}

    def run(self, *unnamed, grid, warmup, **operands):
        made.runs += 1
        bound = dict(zip(self.arg_names, unnamed)) | operands
        values = [bound[name] for name in self.arg_names]
        specialised = tuple(
            (value.dtype, value.address % 16) if isinstance(value, OnGPU) else (type(value), value) for value in values
        )
        kernel = compiled.setdefault((specialised, bound.get("num_warps")), Compiled(made.launched))
        hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
        head = (*grid, *(1,) * (3 - len(grid)), 11, kernel.function, kernel.packed_metadata, None, *hooks)
        kernel.run(*made.handed(*head, *values))
        return kernel

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(launch_again, "_TENSORS", frozenset([OnGPU]))
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 11)
    monkeypatch.setattr(driver, "_active", active)
    made.kernel = launch_again.Kernel(add_kernel)
    return made


def launch(machine, x=None, y=None, grid=(3,), **others):
    x, y = x or OnGPU(), y or OnGPU(torch.bfloat16)
    machine.kernel[grid](**{"y_ptr": y, "ROWS": 16, "x_ptr": x, "M": 5, "eps": 1e-5, "num_warps": 4, **others})
    return x, y


def test_a_third_launch_hands_over_what_triton_would(machine):
    for _ in range(2):
        launch(machine)
    x, y = launch(machine, grid=(9, 2))
    assert machine.runs == 2
    head, values = machine.launched[-1][:6], machine.launched[-1][9:]
    assert head == (9, 2, 1, 11, Compiled.function, Compiled.packed_metadata)
    assert values == (x.address, y.address, 5, 1e-5, 16)


@pytest.mark.parametrize(
    "other",
    [
        {"M": 1},
        {"M": 16},
        {"M": 5.0},
        {"M": True},
        {"eps": 0.0},
        {"ROWS": 32},
        {"num_warps": 8},
        {"x": OnGPU(torch.float16)},
        {"x": OnGPU(offset=8)},
        {"x": OnGPU(device=1)},
        {"x": None, "y": OnGPU(torch.bfloat16, offset=2)},
        {"M": object()},
    ],
)
def test_other_operands_are_left_to_triton(machine, other):
    for _ in range(3):
        launch(machine, M=1 if other.get("M") is True else 5)
    before = machine.runs
    launch(machine, **other)
    assert machine.runs == before + 1


def test_another_triton_is_left_its_own_order(machine):
    machine.handed = lambda *told: (*told[:9], *reversed(told[9:]))
    for _ in range(5):
        launch(machine)
    assert machine.runs == 5


def test_a_triton_that_hands_over_more_is_left_alone(machine):
    machine.handed = lambda *told: (*told, None)
    for _ in range(5):
        launch(machine)
    assert machine.runs == 5


@pytest.mark.parametrize("when", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(machine, monkeypatch, when):
    for _ in range(3):
        launch(machine)
    monkeypatch.setattr(getattr(knobs.runtime, when), "calls", [lambda told: None])
    launch(machine)
    assert machine.runs == 3


def test_operands_without_names_are_left_to_triton(machine):
    for _ in range(4):
        machine.kernel[(1,)](OnGPU(), OnGPU(), M=5, eps=1.0, ROWS=16)
    assert machine.runs == 4
