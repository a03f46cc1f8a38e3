"""Operators and inductor: known to it once it is there, and nothing imported for it; when the dispatcher is asked."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.exc import OperatorIssue
from torch.utils._python_dispatch import TorchDispatchMode

from aim_kernels.registration import _undispatched
from aim_kernels.temporal_attention import temporal_attention

pytestmark = pytest.mark.stack


def test_inductor_calls_an_operator_as_it_is_without_writing_out_what_led_to_it(no_graph_cache, monkeypatch):
    def refused(target, *_):
        raise AssertionError(f"inductor writes out the operands of {target}")

    monkeypatch.setattr(OperatorIssue, "operator_str", staticmethod(refused))
    found = []
    for function in (temporal_attention, torch.compile(temporal_attention, fullgraph=True)):
        qkv = torch.randn(1, 4, 3, 96, generator=torch.manual_seed(0)).requires_grad_()
        out = function(qkv, 2)
        out.square().sum().backward()
        found.append((out.detach(), qkv.grad))
    torch.testing.assert_close(*found)


def test_importing_the_operators_loads_no_compiler():
    script = "import sys, aim_kernels.vit_block, aim_kernels.swin_block, aim_kernels.patch_embed\n"
    script += "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


class _Listening(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_the_dispatcher_is_left_out_where_nothing_waits_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    low = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, get_device=lambda: 0)
    wide, on_cpu = (
        SimpleNamespace(**{**vars(low), **other}) for other in ({"dtype": torch.float32}, {"is_cuda": False})
    )

    def taken(first, autocast=False):
        return _undispatched(lambda *_: "implementation", lambda *_: "dispatcher", autocast)(first)

    assert taken(low) == "dispatcher"
    with torch.no_grad():
        assert taken(low) == taken(low, True) == taken(wide, True) == "implementation"
        assert taken(on_cpu) == "dispatcher"
        with _Listening():
            assert taken(low) == "dispatcher"
        torch.set_autocast_enabled("cuda", True)
        try:
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            assert taken(low, True) == taken(wide) == "implementation"
            assert taken(wide, True) == "dispatcher"
        finally:
            torch.set_autocast_enabled("cuda", False)
