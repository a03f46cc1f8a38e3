"""The training step captured whole equals the eager step: droppath, dropout, clipping, and rates that change."""

import copy

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import TrainingError
from aim_fast.models.registry import create_model
from aim_fast.training.cuda_graph import WARM_UP, GraphedStep, set_capturable
from aim_fast.training.optimizer import set_learning_rate
from aim_kernels import hold_trunk

STEPS = WARM_UP + 4


def trainer(model, memory, graphed, compiled=False):
    """``step(clips, labels, rate, seed) -> loss`` on a copy of the model, and the copy."""
    side = hold_trunk(copy.deepcopy(model), torch.bfloat16).train()
    for block in side.transformer.resblocks:
        block.memory = memory
    trained = [parameter for _, parameter in side.trainable_parameters()]
    optimizer = torch.optim.AdamW([{"params": trained, "lr_factor": 1.0}], lr=1e-3, fused=True)

    replica = torch.compile(side) if compiled else side

    def loss_of(clips, labels):
        with torch.autocast("cuda", torch.bfloat16):
            logits = replica(clips)
        return F.cross_entropy(logits.float(), labels)

    captured = GraphedStep(loss_of, optimizer, trained, clip_norm=1.0) if graphed else None

    def step(clips, labels, rate, seed):
        set_learning_rate(optimizer, rate)
        torch.manual_seed(seed)
        if captured:
            return captured(clips, labels)
        loss = loss_of(clips, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    if not graphed:
        set_capturable(optimizer, True)
    return side, step, captured


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("aim_vit_b16_clip", num_frames=8, num_classes=10, depth=2, drop_path=0.3, num_tadapter=2)
    for name, parameter in made.named_parameters():
        if "Adapter" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return made.cuda()


def batches():
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(STEPS):
        clips = torch.randint(0, 256, (2, 8, 224, 224, 3), dtype=torch.uint8, device="cuda", generator=generator)
        yield clips, torch.randint(0, 10, (2,), device="cuda", generator=generator)


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_captured_step_trains_as_the_eager_one(memory, model):
    losses, sides = [], []
    for graphed in (False, True):
        side, step, captured = trainer(model, memory, graphed)
        rates = [1e-3 * (1 - number / STEPS) for number in range(STEPS)]
        losses.append([step(*batch, rates[i], 7 + i).item() for i, batch in enumerate(batches())])
        sides.append(side)
    assert captured.graph is not None
    assert len(set(losses[1])) == STEPS
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=5e-3, atol=5e-3)
    start = dict(model.named_parameters())
    for (name, eager), (_, graphed) in zip(*(side.trainable_parameters() for side in sides), strict=True):
        moved = (eager - start[name]).norm()
        assert moved > 0, name
        assert (graphed - eager).norm() <= 0.1 * moved, name


def test_a_compiled_step_is_captured_too(model):
    """Its droppath draws other numbers than the eager step's, so that it is held to a compiled one."""
    losses = []
    for graphed in (False, True):
        _, step, _ = trainer(model, "fast", graphed, compiled=True)
        losses.append([step(*batch, 1e-3, 7 + i).item() for i, batch in enumerate(batches())])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=2e-2, atol=2e-2)


def test_another_shape_is_refused(model):
    _, step, _ = trainer(model, "fast", graphed=True)
    clips, labels = next(batches())
    for seed in range(WARM_UP + 1):
        step(clips, labels, 1e-3, seed)
    with pytest.raises(TrainingError, match="without --cuda-graph"):
        step(clips[:1], labels[:1], 1e-3, 0)
