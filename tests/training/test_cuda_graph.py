"""The captured step, as far as a CPU goes: where it is refused, and learning rates that a captured step would read."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aim_fast.errors import UsageError
from aim_fast.models.registry import create_model
from aim_fast.training.cuda_graph import WARM_UP, captures, check_cuda_graph, set_capturable
from aim_fast.training.devices import Place
from aim_fast.training.flat_step import FlatStep
from aim_fast.training.loop import train
from aim_fast.training.optimizer import set_learning_rate
from aim_fast.training.recipe import Recipe

pytestmark = pytest.mark.stack


def test_refused_on_a_cpu_in_one_line_and_nowhere_else():
    with pytest.raises(UsageError, match="on a CUDA device, not on cpu") as caught:
        check_cuda_graph(Place(0, 1, torch.device("cpu"), torch.bfloat16))
    assert "\n" not in str(caught.value)
    for world, dtype in ((1, torch.bfloat16), (2, torch.float32), (1, torch.float16)):
        check_cuda_graph(Place(0, world, torch.device("cuda"), dtype))


@pytest.mark.parametrize(
    ("asked", "device", "world", "mib", "does"),
    [
        ("auto", "cuda", 1, 1000, True),
        ("auto", "cuda", 8, 57, True),
        ("auto", "cuda", 8, 1000, False),
        ("on", "cuda", 8, 1000, True),
        ("off", "cuda", 1, 57, False),
        ("auto", "cpu", 1, 57, False),
    ],
)
def test_a_step_is_captured_on_a_gpu_unless_that_is_off_or_too_much_is_exchanged(asked, device, world, mib, does):
    trained = [torch.empty(mib * 2**20, dtype=torch.uint8, device="meta")]
    assert captures(asked, Place(0, world, torch.device(device), torch.bfloat16), trained) == does


def test_training_on_a_cpu_refuses_before_any_work(tmp_path):
    recipe = Recipe().replace(
        device="cpu", cuda_graph="on", dataset="ssv2", data_root=str(tmp_path), output=str(tmp_path / "run")
    )
    with pytest.raises(UsageError, match="not on cpu"):
        train(recipe, quiet=True)
    assert not (tmp_path / "run").exists()


def test_learning_rates_are_set_in_place_and_given_back():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [parameter], "lr_factor": 0.5}], lr=0.1)
    set_capturable(optimizer, True)
    held = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.2)
    assert held is optimizer.param_groups[0]["lr"]
    assert held.item() == pytest.approx(0.1)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    set_capturable(optimizer, False)
    assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert not optimizer.param_groups[0]["capturable"]


def test_a_compiled_step_is_compiled_once_before_it_would_be_captured():
    """The steps that run before a capture settle what --compile makes: a recompilation within one would break it."""
    torch.compiler.reset()
    model = create_model("aim_vit_demo", img_size=32, depth=2, num_frames=2, num_classes=3, drop_path=0.3).train()
    replica = torch.compile(model, fullgraph=True, backend="aot_eager")
    trained = [parameter for _, parameter in model.trainable_parameters()]
    before = model.fc_cls.weight.detach().clone()
    optimizer = torch.optim.AdamW([{"params": trained, "lr_factor": 1.0}], lr=0.01, fused=True)
    step = FlatStep(lambda x, y: F.cross_entropy(replica(x), y), optimizer, trained, clip_norm=1.0)
    clips, losses = torch.randint(0, 256, (3, 2, 32, 32, 3), dtype=torch.uint8), []
    for number in range(WARM_UP + 1):
        set_learning_rate(optimizer, 0.01 / (1 + number))
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            losses.append(step(clips, torch.tensor([0, 1, 2])).item())
    assert all(parameter.grad is None for parameter in trained)
    assert all(math.isfinite(loss) for loss in losses)
    assert (model.fc_cls.weight - before).abs().max() > 0.01


class _HostTensors(TorchDispatchMode):
    """Names the operations that read or make a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if any(x.device.type == "cpu" for x in tensors) or "local_scalar" in str(function):
            self.found.add(str(function))
        return out


@pytest.mark.parametrize(
    ("name", "tune"),
    [("aim_vit_demo", "adapters"), ("aim_vit_demo", "all"), ("aim_vit_imagenet_demo", "adapters"),
     ("timesformer_demo", None), ("aim_swin_demo", "adapters")],
)  # fmt: skip
def test_the_forward_of_a_step_stays_on_the_device(name, tune, monkeypatch):
    """A copy from or to the host cannot be captured. On tensors that only claim to be on a GPU: shapes, no values."""
    # torch 2.14 draws a truncated normal again until a look at the values says that all lie within
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", torch.nn.init.normal_)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = create_model(name, **({"tune": tune} if tune else {})).train()
        clips = torch.zeros(2, model.num_frames, 48, 48, 3, dtype=torch.uint8, device="cuda")
        with _HostTensors() as host:
            model(clips).float().sum()
            model.normalize(clips)
    assert not host.found
