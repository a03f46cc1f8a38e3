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
