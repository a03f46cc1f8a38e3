"""Operators and inductor: known to it once it is there, and nothing imported for it."""

import subprocess
import sys

import pytest
import torch
from torch._inductor.exc import OperatorIssue

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
