"""The training step captured whole equals the eager step: droppath, dropout, clipping, and rates that change.

Whatever ran before in the process, and with batches that add up, losses that are scaled, averages and a resumed run;
and a capture that fails costs nothing but its time.
"""

import copy
import io
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing

from aim_fast.data import Batch
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.registry import create_model
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import TIMED, WARM_UP, GraphedStep, set_capturable
from aim_fast.training.devices import Place
from aim_fast.training.flat_step import FlatStep
from aim_fast.training.optimization import Optimization
from aim_fast.training.optimizer import set_learning_rate
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps
from aim_kernels import hold_trunk

STEPS = WARM_UP + 4


def trainer(model, memory, graphed, compiled=False, dtype=torch.bfloat16, before=None, within=None, **more):
    """``step(clips, labels, rate, seed) -> loss`` on a copy of the model, the copy, and what takes the step.

    ``before`` is called with a function of the loss, ``within`` with each loss.
    """
    side = hold_trunk(copy.deepcopy(model), dtype).train()
    for block in side.transformer.resblocks:
        block.memory = memory
    trained = [parameter for _, parameter in side.trainable_parameters()]
    optimizer = torch.optim.AdamW([{"params": trained, "lr_factor": 1.0}], lr=1e-3, fused=True)

    replica = torch.compile(side) if compiled else side

    def loss_of(clips, labels):
        with torch.autocast("cuda", dtype):
            logits = replica(clips)
        loss = F.cross_entropy(logits.float(), labels)
        if within:
            within(loss)
        return loss

    held = before(side, loss_of) if before else None
    taken = (GraphedStep if graphed else FlatStep)(loss_of, optimizer, trained, clip_norm=1.0, **more)
    if not graphed:
        set_capturable(optimizer, True)

    def step(clips, labels, rate, seed):
        set_learning_rate(optimizer, rate)
        torch.manual_seed(seed)
        return taken(clips, labels)

    step.held = held
    return side, step, taken


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("aim_vit_b16_clip", num_frames=8, num_classes=10, depth=2, drop_path=0.3, num_tadapter=2)
    for name, parameter in made.named_parameters():
        if "Adapter" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return made.cuda()


def batches(count=STEPS):
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(count):
        clips = torch.randint(0, 256, (2, 8, 224, 224, 3), dtype=torch.uint8, device="cuda", generator=generator)
        yield clips, torch.randint(0, 10, (2,), device="cuda", generator=generator)


def run(model, graphed, count=STEPS, memory="fast", **more):
    """The losses of some steps, the model that they trained, and what took them."""
    side, step, taken = trainer(model, memory, graphed, **more)
    rates = [1e-3 * (1 - number / count) for number in range(count)]
    losses = [step(*batch, rates[i], 7 + i).item() for i, batch in enumerate(batches(count))]
    return losses, side, taken


def hold_equal(start, eager, graphed, tolerance=5e-3, share=0.1):
    """Both runs of :func:`run` gave the same losses and moved the tensors alike."""
    torch.testing.assert_close(torch.tensor(graphed[0]), torch.tensor(eager[0]), rtol=tolerance, atol=tolerance)
    start = dict(start.named_parameters())
    for (name, wanted), (_, found) in zip(*(side[1].trainable_parameters() for side in (eager, graphed)), strict=True):
        moved = (wanted - start[name]).norm()
        assert moved > 0, name
        assert (found - wanted).norm() <= share * moved, name


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_captured_step_trains_as_the_eager_one(memory, model):
    eager, graphed = (run(model, graphed, memory=memory) for graphed in (False, True))
    assert graphed[2].graphed
    assert len(set(graphed[0])) == STEPS
    hold_equal(model, eager, graphed)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):  # a validation, after the last replay
        clips, _ = next(batches(1))
        wanted, found = (side[1].eval()(clips).float() for side in (eager, graphed))
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_a_compiled_step_is_captured_too(model):
    """Its droppath draws other numbers than the eager step's, so that it is held to a compiled one."""
    eager, graphed = (run(model, graphed, compiled=True) for graphed in (False, True))
    assert graphed[2].graphed
    torch.testing.assert_close(torch.tensor(graphed[0]), torch.tensor(eager[0]), rtol=2e-2, atol=2e-2)


def test_a_batch_of_another_shape_runs_as_it_is(model):
    losses, sides = [], []
    for graphed in (False, True):
        side, step, _ = trainer(model, "fast", graphed)
        given = [(c[:1], y[:1]) if number == STEPS - 2 else (c, y) for number, (c, y) in enumerate(batches())]
        losses.append([step(*batch, 1e-3, number).item() for number, batch in enumerate(given)])
        sides.append(side)
    hold_equal(model, *((one, side, None) for one, side in zip(losses, sides)))


def loss_is_kept(side, loss_of):
    """An eager forward on the default stream whose graph, and with it its nodes, stays."""
    return loss_of(*next(batches(1)))


def counted_and_trained(side, loss_of):
    saved_bytes(side, lambda: loss_of(*next(batches(1))))
    loss_of(*next(batches(1))).backward()
    side.zero_grad(set_to_none=True)
    with torch.inference_mode():
        side.eval()(next(batches(1))[0])
    side.train()


@pytest.mark.parametrize("before", [loss_is_kept, counted_and_trained])
def test_it_is_captured_whatever_ran_before(before, model):
    eager, graphed = (run(model, graphed, before=before) for graphed in (False, True))
    assert graphed[2].graphed
    hold_equal(model, eager, graphed)


def synchronize(*_):
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream().synchronize()


def raise_error(*_):
    if torch.cuda.is_current_stream_capturing():
        raise ValueError("not here\nnor there")


@pytest.mark.parametrize("where", ["within", "then"])
@pytest.mark.parametrize("fault", [synchronize, raise_error])
def test_a_capture_that_fails_leaves_training_and_the_process_as_they_were(fault, where, model):
    said = []
    eager = run(model, False)
    failed = run(model, True, say=said.append, **{where: fault})
    assert not failed[2].graphed
    assert failed[2].settled
    assert len(said) == 1
    assert ("not here" if fault is raise_error else "capturing") in said[0]
    assert "\n" not in said[0]
    hold_equal(model, eager, failed)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.manual_seed(5)
    drawn = torch.rand(8, device="cuda")
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(8, device="cuda"))
    assert not torch.equal(drawn, torch.rand(8, device="cuda"))
    doubled = torch.compile(lambda x: (2 * x).relu())
    assert torch.equal(doubled(drawn), 2 * drawn)
    again = run(model, True)  # another one is captured in the same process
    assert again[2].graphed
    hold_equal(model, eager, again)
    before = torch.cuda.memory_reserved()
    big = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")  # memory is taken and given back as ever
    del big
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (1 << 26)


def test_batches_add_up(model):
    found = []
    for graphed in (False, True):
        side, _, taken = trainer(model, "fast", graphed)
        losses = []
        for number in range(STEPS):
            set_learning_rate(taken.optimizer, 1e-3)
            for part, batch in enumerate(batches(3)):
                torch.manual_seed(10 * number + part)
                losses.append(taken.accumulate(*batch).item())
            taken.finish()
        found.append((losses, side, taken))
    assert found[1][2].graphed
    hold_equal(model, *found)


def test_scaled_losses_are_captured_with_steps_that_overflow(model):
    found, scales = [], []
    for graphed in (False, True):
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=1)
        side, step, taken = trainer(model, "fast", graphed, dtype=torch.float16, scaler=scaler)
        losses, scale = [], []
        for number, batch in enumerate(batches(16)):
            losses.append(step(*batch, 1e-3, number).item())
            scale.append(scaler.get_scale())
        found.append((losses, side, taken))
        scales.append(scale)
    assert found[1][2].graphed
    after = scales[1][WARM_UP:]
    assert any(b < a for a, b in itertools.pairwise(after))  # a replay met an overflow
    assert scales[0][: WARM_UP + 1] == scales[1][: WARM_UP + 1]
    torch.testing.assert_close(torch.tensor(found[1][0]), torch.tensor(found[0][0]), rtol=0.05, atol=0.05)


def test_auto_keeps_the_faster_and_says_so_in_one_line(model):
    said = []
    count = WARM_UP + 2 * TIMED + 2
    eager, chosen = run(model, False, count), run(model, True, count, choose=True, say=said.append)
    hold_equal(model, eager, chosen)
    assert chosen[2].settled
    assert len(said) == 1
    assert "ms captured in a CUDA graph" in said[0]
    assert chosen[2].graphed == said[0].endswith("it is captured")


RECIPE = {"model": "aim_vit_demo", "frames": 4, "ema": 0.9, "clip_norm": 0.5, "head_dropout": 0.5, "batch_size": 8}


def clips_of(number, first=0, count=8):
    generator = torch.Generator().manual_seed(number)
    frames = torch.randint(0, 256, (8, 4, 48, 48, 3), dtype=torch.uint8, generator=generator)[first : first + count]
    rows = torch.arange(8)[first : first + count]
    return Batch(frames.cuda(), rows.cuda(), rows, torch.ones(count).cuda(), torch.zeros(count, dtype=torch.int64))


def optimization(rank=0, world=1, **fields):
    torch.manual_seed(0)
    recipe = load_recipe("demo", RECIPE | {"cuda_graph": "on"} | fields)
    drops = {"drop_path": recipe.model.drop_path, "head_dropout": recipe.model.head_dropout}
    model = create_model("aim_vit_demo", num_frames=4, num_classes=8, img_size=48, **drops).cuda()
    return Optimization(model.train(), recipe, Place(rank, world, torch.device("cuda", 0), torch.bfloat16), 8)


def take(made, numbers, accumulate=2, count=8, rank=0, world=1):
    steps = Steps(clips=4096, batch_size=count, world=world, accumulate=accumulate)
    losses = []
    for number in numbers:
        given = (clips_of(10 * number + part, rank * count, count) for part in range(accumulate))
        losses.append(made.step(given, number, steps, 1e-3 / (1 + number), Clock())[0].item())
        with made.averages():
            pass  # as a validation does
    return losses


def test_a_captured_run_trains_as_one_that_is_not_with_averages():
    eager, graphed = optimization(cuda_graph="off"), optimization()
    losses = [take(made, range(10)) for made in (eager, graphed)]
    assert eager.flat is None
    assert graphed.flat.graphed
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0.02, atol=0.02)
    start = optimization()
    for name, wanted in eager.averaged.items():
        assert (graphed.averaged[name] - wanted).norm() <= 0.1 * (wanted - start.trainable[name]).norm(), name


def test_a_resumed_run_goes_on_as_one_that_was_never_stopped():
    whole, first, second = optimization(), optimization(), optimization()
    wanted = take(whole, range(14))
    take(first, range(7))
    file = io.BytesIO()
    torch.save((first.state(), first.used), file)
    file.seek(0)
    second.load_state(*torch.load(file, weights_only=True, map_location="cpu"))
    found = take(second, range(7, 14))
    assert second.flat.graphed
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted[7:]), rtol=5e-3, atol=5e-3)
    for name, tensor in whole.trainable.items():
        torch.testing.assert_close(second.trainable[name], tensor, rtol=0.05, atol=1e-3, msg=name)


STILL = {"drop_path": 0.0, "head_dropout": 0.0}  # each process draws its own


def _process(rank, folder):
    torch.cuda.set_device(0)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    made = optimization(rank, 2, batch_size=4, **STILL)
    losses = take(made, range(8), count=4, rank=rank, world=2)
    assert made.flat.graphed
    torch.save((losses, {name: tensor.detach().cpu() for name, tensor in made.trainable.items()}), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_processes_train_as_one_of_twice_the_clips(tmp_path):
    """Both on this card, so that gloo exchanges the gradients; nccl wants a card for each."""
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    (first, values), (second, others) = (torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1))
    alone, start = optimization(**STILL), optimization(**STILL)
    losses = take(alone, range(8))
    torch.testing.assert_close(torch.tensor(first) + torch.tensor(second), torch.tensor(losses), rtol=0.02, atol=0.02)
    for name, tensor in values.items():
        assert torch.equal(tensor, others[name]), name
        wanted = alone.trainable[name].detach().cpu()
        assert (tensor - wanted).norm() <= 0.1 * (wanted - start.trainable[name].detach().cpu()).norm(), name
