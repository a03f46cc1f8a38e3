"""The training step captured whole equals the eager step: droppath, dropout, clipping, and rates that change.

Whatever ran before in the process, and with batches that add up and losses that are scaled; and a capture that fails
costs nothing but its time.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.registry import create_model
from aim_fast.training.cuda_graph import TIMED, WARM_UP, GraphedStep, set_capturable
from aim_fast.training.flat_step import FlatStep
from aim_fast.training.optimizer import set_learning_rate
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


@pytest.mark.parametrize(("where", "fault"), [("within", synchronize), ("then", synchronize), ("within", raise_error)])
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
    if (where, fault) == ("within", synchronize):
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
    torch.testing.assert_close(torch.tensor(found[1][0]), torch.tensor(found[0][0]), rtol=0.05, atol=0.1)


def test_auto_keeps_the_faster_and_says_so_in_one_line(model):
    said = []
    count = WARM_UP + 2 * TIMED + 2
    eager, chosen = run(model, False, count), run(model, True, count, choose=True, say=said.append)
    hold_equal(model, eager, chosen)
    assert chosen[2].settled
    assert len(said) == 1
    assert "ms captured in a CUDA graph" in said[0]
    assert chosen[2].graphed == said[0].endswith("it is captured")
