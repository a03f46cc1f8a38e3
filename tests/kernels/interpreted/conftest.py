"""These tests call the Triton launchers on CPU tensors; without the interpreter there is nothing to run them."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fresh tensors hold NaN, so that an element a kernel fails to write is seen."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs in the interpreter's own process, started by test_interpreter.py")
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        fresh = new_empty(self, *args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def _loops_to_a_tensor(monkeypatch):
    """A loop's end may be a tensor: numpy from 2.4 on makes no integer of an array of one, as Triton 3.6 asks it to."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
