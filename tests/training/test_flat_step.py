"""A step in halves, as far as a CPU goes: it trains as the plain step does, alone, in two processes, and resumed."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing

from aim_fast import create_model
from aim_fast.data import Batch
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.training import cuda_graph
from aim_fast.training import optimization as module
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import WARM_UP, GraphedStep, renew_gradient_nodes
from aim_fast.training.devices import Place
from aim_fast.training.flat_step import FlatStep
from aim_fast.training.optimization import Optimization
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps

pytestmark = pytest.mark.stack

RECIPE = {"model": "aim_vit_demo", "frames": 2, "clip_norm": 0.5, "ema": 0.9, "precision": "fp32"}
GROUPED = {"lr_factors": ("head=2", "*resblocks.0.*=0.5"), "no_decay": ("norms", "biases")}
STILL = {"drop_path": 0.0, "head_dropout": 0.0}  # each process draws its own


def batch(number: int, first: int = 0, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(number)
    frames = torch.randint(0, 256, (8, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)[first : first + count]
    rows = torch.arange(8)[first : first + count]
    return Batch(frames, rows, rows, torch.ones(count), torch.zeros(count, dtype=torch.int64))


def optimization(flat: bool, place: Place | None = None, **fields) -> Optimization:
    """Where a step would be captured if this were a GPU: the capture fails, and the step goes on as it is."""
    torch.manual_seed(0)
    more = {name: value for name, value in (STILL | fields).items() if name in (*STILL, "tune")}
    model = create_model("aim_vit_demo", num_frames=2, num_classes=8, img_size=32, depth=2, **more)
    place = place or Place(0, 1, torch.device("cpu"), torch.float32)
    recipe = load_recipe("demo", RECIPE | {"batch_size": 8, "cuda_graph": "on"} | STILL | fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "captures", lambda *_: flat)
        made = Optimization(model.train(), recipe, place, 8)
    assert isinstance(made.flat, GraphedStep) == flat
    return made


def take(made: Optimization, numbers: range, accumulate: int = 1, count: int = 8, rank: int = 0, world: int = 1):
    """Steps of ``accumulate`` batches; the losses."""
    steps = Steps(clips=1024, batch_size=count, world=world, accumulate=accumulate)
    losses = []
    for number in numbers:
        batches = (batch(100 * number + part, rank * count, count) for part in range(accumulate))
        losses.append(made.step(batches, number, steps, 1e-2 / (1 + number), Clock())[0].item())
    return losses


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "fields",
    [
        {"drop_path": 0.3, "head_dropout": 0.5},
        {"tune": "all", "clip_norm": 0.0},
        {"optimizer": "sgd", "lr_factors": ("head=10", "*S_Adapter*=2"), "no_decay": ("vectors",)},
    ],
    ids=str,
)
def test_it_trains_as_the_plain_step(accumulate, fields):
    plain, flat = (optimization(kind, **fields) for kind in (False, True))
    number = range(WARM_UP + 2)
    torch.testing.assert_close(take(flat, number, accumulate), take(plain, number, accumulate), rtol=1e-5, atol=0)
    start = optimization(False, **fields)
    for kept in ("trainable", "averaged"):
        for name, tensor in getattr(plain, kept).items():
            moved = (tensor - start.trainable[name]).norm()
            assert moved > 0, name
            assert (getattr(flat, kept)[name] - tensor).norm() <= 0.01 * moved, name


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    place, found = Place(rank, 2, torch.device("cpu"), torch.float32), {}
    for flat in (False, True):
        made = optimization(flat, place, batch_size=4, **GROUPED)
        take(made, range(WARM_UP + 2), accumulate=2, count=4, rank=rank, world=2)
        found[flat] = {name: tensor.detach() for name, tensor in made.trainable.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_with_distributed_data_parallel_and_as_one_of_twice_the_clips(tmp_path):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = optimization(True, **GROUPED)
    take(alone, range(WARM_UP + 2), accumulate=2)
    for name, tensor in first[False].items():
        assert torch.equal(first[True][name], second[True][name]), name
        torch.testing.assert_close(first[True][name], tensor, rtol=0, atol=1e-5)
        # other sums of the same clips: Adam makes a step of its rate of a gradient near zero
        torch.testing.assert_close(first[True][name], alone.trainable[name].detach(), rtol=0, atol=5e-5)


def _apart(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    model = create_model("aim_vit_demo", num_frames=2, num_classes=8, img_size=32, depth=1)
    place, recipe = Place(rank, 2, torch.device("cpu"), torch.float32), load_recipe("demo", RECIPE)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float(rank))
    module.captures = lambda *_: True
    Optimization(model, recipe.replace(cuda_graph="on"), place, 8)
    assert all((parameter == 0).all() for parameter in model.parameters())
    dist.destroy_process_group()


def test_processes_begin_with_the_values_of_the_first(tmp_path):
    multiprocessing.spawn(_apart, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("fields", [{}, {"optimizer": "sgd", "lr_factors": ("head=10",)}], ids=str)
def test_a_resumed_run_goes_on_to_the_bit(fields):
    fields = {"drop_path": 0.3, **fields}
    whole = optimization(True, **fields)
    wanted = take(whole, range(6))
    first = optimization(True, **fields)
    take(first, range(3))
    file = io.BytesIO()
    torch.save((first.state(), first.used), file)
    file.seek(0)
    second = optimization(True, **fields)
    second.load_state(*torch.load(file, weights_only=True))
    assert take(second, range(3, 6)) == wanted[3:]
    assert all(torch.equal(second.trainable[name], tensor) for name, tensor in whole.trainable.items())


def test_a_run_that_was_captured_is_resumed_by_one_that_is_not():
    first = optimization(True)
    take(first, range(2))
    second = optimization(False)
    second.load_state(copy.deepcopy(first.state()), first.used)
    assert take(second, range(2, 4)) == pytest.approx(take(first, range(2, 4)), rel=1e-5)


def small(**more) -> tuple[FlatStep, torch.nn.Linear]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW([{"params": list(layer.parameters()), "lr_factor": 1.0}], lr=0.1, fused=True)
    kind = more.pop("kind", FlatStep)
    return kind(lambda x, y: F.cross_entropy(layer(x), y), optimizer, list(layer.parameters()), **more), layer


INPUTS = (torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0]))


def test_a_capture_that_fails_says_why_in_one_line_and_trains_on():
    said = []
    step, layer = small(kind=GraphedStep, say=said.append)
    plain, wanted = small()
    losses = [(step(*INPUTS).item(), plain(*INPUTS).item()) for _ in range(WARM_UP + 3)]
    assert [one for one, _ in losses] == pytest.approx([other for _, other in losses])
    assert losses[-1][0] < losses[0][0]
    torch.testing.assert_close(layer.weight, wanted.weight)
    assert len(said) == 1
    assert said[0].startswith("training step: not captured in a CUDA graph, it runs as it is: ")
    assert "\n" not in said[0]
    assert step.settled
    assert not step.graphed


class Replayed:
    """In the place of a capture, which a CPU has not: runs what was captured, on inputs of its shapes alone."""

    def __init__(self, run, inputs, pool):
        self.run, self.inputs = run, inputs

    def __call__(self, *inputs):
        assert [x.shape for x in inputs] == [x.shape for x in self.inputs]
        return self.run(*inputs)


@pytest.mark.parametrize("counts", [(4,) * (WARM_UP + 2) + (3, 3, 4), (3, 4) * (WARM_UP + 1)], ids=("last", "always"))
def test_shapes_that_change_are_said_in_one_line_and_train_on(counts, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_Captured", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    said = []
    step, layer = small(kind=GraphedStep, say=said.append)
    plain, wanted = small()
    for count in counts:
        batch = [x[:count] for x in INPUTS]
        assert step(*batch).item() == pytest.approx(plain(*batch).item())
    torch.testing.assert_close(layer.weight, wanted.weight)
    assert said == ["training step: batches change their shapes: those of others than before run as they are"]
    assert step.graphed == (counts[0] == counts[1])


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_a_scaled_loss_trains_as_one_that_is_not_and_an_overflow_is_left_out(clip_norm):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaled, layer = small(scaler=scaler, clip_norm=clip_norm)
    plain, wanted = small(clip_norm=clip_norm)
    for _ in range(3):
        scaled(*INPUTS)
        plain(*INPUTS)
    torch.testing.assert_close(layer.weight, wanted.weight)
    before = copy.deepcopy(layer.state_dict())
    scaled(INPUTS[0] * float("inf"), INPUTS[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert scaler.get_scale() == 128
    scaled(*INPUTS)
    plain(*INPUTS)
    torch.testing.assert_close(layer.weight, wanted.weight)


def test_what_has_no_gradient_is_left_as_it_is():
    step, layer = small()
    apart = torch.nn.Parameter(torch.ones(3))
    step.optimizer.add_param_group({"params": [apart], "lr_factor": 1.0})
    step = FlatStep(step.loss, step.optimizer, [apart, *layer.parameters()])
    step(*INPUTS)
    assert torch.equal(apart, torch.ones(3))
    assert all(parameter.grad is None for parameter in step.parameters)


def test_gradients_keep_the_strides_and_types_of_their_parameters():
    wide, low = torch.nn.Parameter(torch.randn(4, 6).t()), torch.nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
    step = FlatStep(lambda: (wide**2).sum() + (low.float() ** 3).sum(), torch.optim.SGD([wide, low], 1.0), [wide, low])
    step.accumulate()
    step.accumulate()
    for held, parameter, wanted in zip(step._held, (wide, low), (4 * wide, 6 * low**2)):
        assert (held.stride(), held.dtype) == (parameter.stride(), parameter.dtype)
        torch.testing.assert_close(held, wanted.detach(), rtol=0.02, atol=0.02)
    assert len(step.buffers) == 2


def marked(parameters) -> list[bool]:
    nodes = [parameter.view_as(parameter).grad_fn.next_functions[0][0] for parameter in parameters]
    found = ["seen" in node.metadata for node in nodes]
    for node in nodes:
        node.metadata["seen"] = True
    return found


def test_nodes_that_somebody_holds_are_made_anew_and_values_stay_where_they_are():
    parameters = list(torch.nn.Linear(5, 3).parameters())
    held = [parameter.view_as(parameter) for parameter in parameters]  # as a loss would that was kept
    marked(parameters)
    assert all(marked(parameters))
    before = [(parameter.data_ptr(), parameter.shape, parameter.clone()) for parameter in parameters]
    renew_gradient_nodes(parameters)
    assert not any(marked(parameters))
    assert len(held) == len(parameters)
    for parameter, (place, shape, values) in zip(parameters, before):
        assert (parameter.data_ptr(), parameter.shape) == (place, shape)
        assert torch.equal(parameter, values)


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_nothing_holds_the_graph_of_a_step_or_of_what_is_counted(memory):
    model = create_model("aim_vit_demo", num_frames=2, num_classes=3, img_size=32, depth=2).train()
    for block in model.transformer.resblocks:
        block.memory = memory
    parameters = [parameter for _, parameter in model.trainable_parameters()]

    def loss():
        return model(batch(0).frames).square().sum()

    for forward in (lambda: loss().backward(), lambda: saved_bytes(model, loss)):
        held = [parameter.view_as(parameter) for parameter in parameters]
        marked(parameters)
        forward()
        del held
        assert not any(marked(parameters))
