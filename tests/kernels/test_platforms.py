"""Without Triton, xformers or the C++ part, a block still trains on CPU: each case is a process of its own."""

import os
import subprocess
import sys

import pytest

TRAIN = """
import sys
from pathlib import Path
absent = {absent}
for name in absent - {{"_C"}}:
    sys.modules[name] = None
if "_C" in absent:
    glob = Path.glob
    Path.glob = lambda self, pattern: iter(()) if pattern.startswith("_C") else glob(self, pattern)
import torch
from aim_kernels import AIMBlock, extension, hold_trunk
from aim_kernels.optional_triton import INSTALLED
assert INSTALLED is ("triton" not in absent), "Triton's absence was not noticed"
if "_C" in absent:
    assert not extension.available(), "the C++ part was loaded"
torch.manual_seed(0)
block = AIMBlock(64, 2, num_tadapter=2, drop_path=0.2)
for parameter in block.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.05)
x = torch.randn(2, 3, 5, 64)

def gradients(backend, memory):
    block.backend, block.memory = backend, memory
    block.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    block(leaf).square().sum().backward()
    return [leaf.grad, *(p.grad for p in block.parameters() if p.requires_grad)]

expected = gradients("reference", "fast")
for memory in ("fast", "balanced", "lean"):
    for got, wanted in zip(gradients("fused", memory), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
hold_trunk(block, torch.bfloat16)
with torch.autocast("cpu", torch.bfloat16):
    loss = block(x.requires_grad_()).float().square().sum()
loss.backward()
assert torch.isfinite(x.grad).all()
"""


@pytest.mark.parametrize(
    "absent",
    [{"triton", "xformers"}, {"_C"}, {"triton", "xformers", "_C"}],
    ids=lambda absent: "without " + " ".join(sorted(absent)),
)
def test_a_block_trains_without(absent):
    process = subprocess.run(
        [sys.executable, "-c", TRAIN.format(absent=absent)],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]


def test_the_programs_for_a_gpu_need_no_video_libraries():
    """A GPU machine without PyAV, DALI, open_clip or xformers still runs tests/gpu and the benches of the engine."""
    modules = [f"tests.gpu.{name}" for name in ("test_cuda_graph", "test_operators", "test_training_step")]
    modules += [f"bench.{name}" for name in ("step", "kernels", "memory", "goals")]
    script = "import sys\nfor name in ('av', 'nvidia', 'open_clip', 'xformers'):\n    sys.modules[name] = None\n"
    process = subprocess.run(
        [sys.executable, "-c", script + f"import {', '.join(modules)}"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
