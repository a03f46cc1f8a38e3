"""A block runs through the GPU's implementation of every operator, its kernels in Triton's interpreter, on a CPU.

The kernels' own tests call launchers one by one; here the sub-blocks hand them what they will on a GPU: views, factors,
weights and streams of their own dtypes. In a process of its own, because the interpreter is chosen at decoration.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.stack

TRAIN = """
import torch
from aim_kernels import AIMBlock, AIMSwinBlock, formed_together, frozen_trunk, hold_trunk, registration, shared_norms
from aim_kernels import scaled_norm, scaled_rows, widened_mlp
from aim_kernels.adaptation import spatial_adaptation_reference
from aim_kernels.rotation import Rotation
from aim_kernels.spatial_adaptation import spatial_adaptation

dtypes, ran, lent_to = (torch.float16, torch.float32), set(), []
registration.runs_triton = lambda *typed: all(getattr(x, "dtype", x) in dtypes for x in typed)

def counted(name, triton):
    def run(*operands):
        ran.add(name)
        return triton(*operands)
    return run

for operator in registration.OPERATORS.values():
    operator.triton = operator.triton and counted(operator.name, operator.triton)

def gradients(block, x, flow, backend, half, **options):
    block.backend = backend
    block.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=half), formed_together.formed_together(lent_to, leaf):
        out = block(leaf, **options)
    out.backward(flow[:, :, : out.shape[2]].to(out.dtype))
    return [out.detach(), leaf.grad, *(p.grad for p in block.parameters() if p.requires_grad)]

def compare(block, x, memory, half, allowed, **options):
    flow = torch.randn_like(x)
    for parameter in block.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    truth = gradients(block, x, flow, "reference", False, **options)
    block.memory = memory
    if half:
        hold_trunk(block, torch.float16)
    for got, wanted in zip(gradients(block, x, flow, "fused", half, **options), truth, strict=True):
        error = ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()
        assert error <= allowed, (type(block).__name__, memory, half, options, tuple(wanted.shape), error)

class GatedBlock(AIMBlock):
    def _make_trunk(self, hidden):
        super()._make_trunk(hidden)
        self.mlp.c_gate = torch.nn.Linear(self.dim, hidden)

    def mlp_weights(self):
        norm, mlp = super().mlp_weights()
        return norm, mlp._replace(gate_weight=self.mlp.c_gate.weight, gate_bias=self.mlp.c_gate.bias)

shared_norms.gains = lambda x: True
torch.manual_seed(0)
for memory in ("fast", "balanced"):
    for half, allowed in ((False, 1e-5), (True, 0.01)):
        block = AIMBlock(48, 2, num_tadapter=2, drop_path=0.3, adapter_scale=0.5)
        compare(block, torch.randn(2, 3, 6, 48), memory, half, allowed)
block = AIMBlock(48, 2, drop_path=0.3, drop_path_mode="clip", activation="gelu")
compare(block, torch.randn(2, 3, 6, 48), "fast", False, 1e-5, cls_only=True)
block = AIMBlock(48, 2, drop_path=0.3, adapters=("joint",), activation="gelu_tanh")
compare(block, torch.randn(2, 3, 6, 48), "fast", True, 0.01)
formed_together._gains = frozen_trunk._reads_folded = lambda x: True
lent_to.append(AIMBlock(48, 2, drop_path=0.3, adapter_scale=0.5))
for norm in (lent_to[0].ln_1, lent_to[0].ln_2):
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    torch.nn.init.normal_(norm.bias, std=0.3)
shared_norms._packs = lambda x, dtype: x.dtype == torch.float32 and dtype == torch.float16  # in place of bfloat16
compare(*lent_to, torch.randn(1, 3, 5, 48), "fast", True, 0.01)
assert lent_to.pop().held_norms is not None
for module in (scaled_rows, scaled_norm, shared_norms):
    module.EIGHT_BITS = torch.float32  # the interpreter's e4m3 is not a card's
lent_to.append(AIMBlock(48, 2, drop_path=0.3, adapter_scale=0.5))
frozen_trunk._quantise(*lent_to)
compare(*lent_to, torch.randn(1, 3, 5, 48), "fast", True, 0.01)
assert all(lent_to.pop().held_norms.scaled)
block = GatedBlock(48, 2, drop_path=0.3, adapters=("joint",))
block.activation = "swiglu"
for memory, half, allowed in (("balanced", False, 1e-5), ("fast", True, 0.01)):
    compare(block, torch.randn(2, 3, 6, 48), memory, half, allowed)
compare(AIMSwinBlock(32, 2, 4, 4, window_size=2, shifted=True), torch.randn(2, 4, 16, 32), "fast", False, 1e-5)

block = AIMBlock(48, 2)
norm, attention = block.attention_weights()
angles = torch.randn(5, 12)
turn = Rotation(torch.cat([angles.sin(), angles.cos()], -1))
for memory in ("fast", "balanced"):
    x, flow = torch.randn(2, 3, 6, 48).requires_grad_(), torch.randn(2, 3, 6, 48)
    frozen = (norm._replace(bias=None), attention, 2, block.S_Adapter.weights)
    scores = {"rotation": turn, "bias": torch.randn(1, 2, 6, 6)}
    sides = spatial_adaptation(x, *frozen, memory=memory, **scores), spatial_adaptation_reference(x, *frozen, **scores)
    got, wanted = (torch.autograd.grad(out, (x, *frozen[3]), flow) for out in sides)
    torch.testing.assert_close((sides[0], *got), (sides[1], *wanted), rtol=1e-4, atol=1e-4)
print(*sorted(ran))
"""


@pytest.mark.interpreter
@pytest.mark.slow
def test_a_block_on_the_gpus_operators_gives_the_references_gradients():
    process = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env=dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    parts = {"temporal_attention", "spatial_attention", "group_attention", "layer_norm", "residual_add"}
    parts |= {"wide_slope", "wide_swiglu", "rotation", "residual_norm", "residual_norm_backward"}
    parts |= {"scaled_rows", "scaled_norm", "scaled_wide_product", "scaled_wide_product_backward", "gelu_gradients"}
    assert parts <= set(process.stdout.split())
