"""Training by a recipe with a captured step: batches that add up, averages, a resumed run, and two processes."""

import io
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from aim_fast.models.registry import create_model
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place
from aim_fast.training.optimization import Optimization
from aim_fast.training.steps import Steps

pytest.importorskip("yaml")

from aim_fast.training.recipe_file import load_recipe

RECIPE = {"model": "aim_vit_demo", "frames": 4, "ema": 0.9, "clip_norm": 0.5, "head_dropout": 0.5, "batch_size": 8}


def clips_of(number, first=0, count=8):
    generator = torch.Generator().manual_seed(number)
    frames = torch.randint(0, 256, (8, 4, 48, 48, 3), dtype=torch.uint8, generator=generator)[first : first + count]
    rows = torch.arange(8)[first : first + count]
    return SimpleNamespace(frames=frames.cuda(), labels=rows.cuda(), indices=rows, weights=torch.ones(count).cuda())


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
        assert (graphed.averaged[name] - wanted).norm() <= 0.2 * (wanted - start.trainable[name]).norm(), name


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
    start = optimization()
    for name, tensor in whole.trainable.items():
        assert (second.trainable[name] - tensor).norm() <= 0.1 * (tensor - start.trainable[name]).norm(), name


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
        assert (tensor - wanted).norm() <= 0.2 * (wanted - start.trainable[name].detach().cpu()).norm(), name
