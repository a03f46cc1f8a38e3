"""Replays hand Triton's launcher what the operators as written do: on the GPU that does nothing, which is beside the
project's checkout or not; a process of its own, as it takes CUDA's place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aim_kernels import extension

pytest.importorskip("triton")
TOOLS = Path(__file__).parents[2].parent / "shared" / "gpu_model"

STEPS = """
import sys
sys.path.insert(0, sys.argv[1])
from null_gpu import device
device.enter(90)
import torch
from torch import nn
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime.jit import JITFunction
from aim_kernels import AIMBlock, _replays, hold_trunk
from aim_kernels.formed_together import formed_together

if sys.argv[2] == "python":
    assert _replays.Plans is _replays.PlansInPython
launched, through_triton, launch = [], [], CudaLauncher.__call__

def noted(self, *handed):
    launched.append([x.data_ptr() if isinstance(x, torch.Tensor) else x for x in handed[:5] + handed[9:]])
    return launch(self, *handed)

CudaLauncher.__call__ = noted
torch.manual_seed(0)
blocks = nn.ModuleList(AIMBlock(64, 2, 4, drop_path=0.5) for _ in range(3)).cuda().train()
hold_trunk(blocks, torch.bfloat16)
inputs = [torch.randn(2, 4, 50, 64, device="cuda") for _ in range(2)]

def step(x):
    torch.manual_seed(1)
    with torch.autocast("cuda", torch.bfloat16), formed_together(blocks, x):
        for block in blocks:
            x = block(x)
    x.sum().backward()
    launched_now = [*launched]
    launched.clear()
    return launched_now

for i in range(6):
    step(inputs[i % 2])
_replays.pause(1)
written = [step(x) for x in inputs]
_replays.pause(-1)
run = JITFunction.run
JITFunction.run = lambda *args, **kwargs: (through_triton.append(1), run(*args, **kwargs))[1]
again = [step(x) for x in inputs]
assert written[0] and written[0] != written[1], len(written[0])
assert again == written, [(a, b) for a, b in zip(again[0], written[0]) if a != b][:1]
print(len(written[0]), len(through_triton) // 2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not TOOLS.is_dir(), reason="the GPU that does nothing is not beside this checkout")
@pytest.mark.parametrize("plans", ["cpp", "python"])
def test_a_replayed_step_launches_what_the_written_one_does(plans, tmp_path):
    if plans == "cpp" and extension.replays() is None:
        pytest.skip("aim_kernels._again is not built")
    script = tmp_path / "steps.py"
    block = "import sys; sys.modules['aim_kernels._again'] = None\n" if plans == "python" else ""
    script.write_text(block + STEPS)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, script, TOOLS, plans], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    launches, through_triton = map(int, ran.stdout.split())
    assert launches > 50
    assert through_triton < launches / 10


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")
def test_a_torch_built_without_cuda_has_plans_in_python():
    lines = (
        "import torch",
        "torch.backends.cuda.is_built = lambda: False",
        "del torch._C._cuda_getCurrentRawStream",
        "from aim_kernels import _replays",
        "assert _replays.Plans is _replays.PlansInPython",
    )
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
