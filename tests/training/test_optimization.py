"""What a step exchanges between processes, and how it mixes clips."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from aim_fast import create_model
from aim_fast.data import Batch
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place
from aim_fast.training.optimization import Optimization
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps, step_seed

STEPS = Steps(clips=64, batch_size=4, world=1, accumulate=1)
RECIPE = {"model": "aim_vit_demo", "frames": 4, "batch_size": 4, "label_smoothing": 0.0, "precision": "fp32"}


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (4, 4, 48, 48, 3), dtype=torch.uint8, generator=generator)
    return Batch(frames, torch.arange(4), torch.arange(4), torch.ones(4), torch.zeros(4, dtype=torch.int64))


def optimization(world: int = 1, **fields) -> Optimization:
    torch.manual_seed(0)
    model = create_model("aim_vit_demo", num_frames=4, num_classes=8)
    place = Place(0, world, torch.device("cpu"), torch.float32)
    return Optimization(model.train(), load_recipe("demo", RECIPE | fields), place, 8)


@pytest.fixture
def alone(tmp_path):
    """A group of one process, in which DistributedDataParallel exchanges all that it would among many."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_exchanges_the_gradients_of_trained_tensors_once_and_of_nothing_else(alone, accumulate):
    made = optimization(world=2, accumulate=accumulate)
    exchanged = []

    def hook(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanged.append(bucket.buffer().numel() * bucket.buffer().element_size())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    made.replica.register_comm_hook(None, hook)
    steps = Steps(clips=64, batch_size=4, world=1, accumulate=accumulate)
    made.step(iter([batch(n) for n in range(accumulate)]), 0, steps, 1e-4, Clock())
    trained = sum(tensor.numel() for tensor in made.trainable.values())
    everything = sum(tensor.numel() for tensor in made.model.parameters())
    assert sum(exchanged) == 4 * trained < 4 * everything


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_mixing_is_a_function_of_seed_and_step(fields):
    """What ran before does not matter: a step mixes as it does in a run that begins at it."""
    made, other = optimization(**fields), optimization(**fields)

    def mixed(side: Optimization, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        frames, labels, _ = side.inputs(batch(), step_seed(0, step, 0, 0))
        return frames, labels

    for step in (0, 1, 2):
        before = mixed(made, step)
        torch.rand(7)  # another history
        after = mixed(other, step)
        assert all(torch.equal(*pair) for pair in zip(before, after))
        again = mixed(made, step)
        assert all(torch.equal(*pair) for pair in zip(before, again))
    plain = made.model.normalize(batch().frames)
    results = [mixed(made, step)[0] for step in range(4)]
    assert any(not torch.equal(result, plain) for result in results)
    assert any(not torch.equal(results[0], result) for result in results[1:])


def test_mixing_is_the_same_for_all_frames_of_a_clip():
    made = optimization(cutmix=1.0)
    still = batch()
    still.frames[:] = still.frames[:, :1]  # every frame the first one
    for step in range(4):
        frames, labels, _ = made.inputs(still, step_seed(0, step, 0, 0))  # [B, 3, T, H, W]
        assert torch.equal(frames, frames[:, :, :1].expand_as(frames))
        torch.testing.assert_close(labels.sum(1), torch.ones(4))


def test_a_validation_scores_the_prompt_of_the_step_before_it():
    """A fused optimiser changes values and tells nobody; text features are kept until the prompt's version changes."""
    model = create_model("promptclip_demo", num_frames=4, class_names=["one", "two", "three"])
    recipe = load_recipe("demo", RECIPE | {"model": "promptclip_demo"})
    made = Optimization(model.train(), recipe, Place(0, 1, torch.device("cpu"), torch.float32), 3)
    found = []
    for number in range(2):
        made.step(iter([dataclasses.replace(batch(), labels=torch.tensor([0, 1, 2, 0]))]), number, STEPS, 1e-2, Clock())
        with torch.inference_mode():
            found.append(model.class_features().clone())
    assert (found[1] - found[0]).abs().max() > 1e-3
