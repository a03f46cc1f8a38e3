"""Batch norms that train: their running statistics are saved, resumed, and the same in all processes."""

import dataclasses
import io

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from aim_fast import create_model
from aim_fast.data import Batch
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place
from aim_fast.training.optimization import Optimization
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps

NAMES = {"fc_cls.0.running_mean", "fc_cls.0.running_var"}


def optimization(rank=0, world=1, **fields):
    """A small model with a batch norm before its classifier."""
    torch.manual_seed(0)
    model = create_model("aim_vit_demo", num_frames=2, num_classes=8, img_size=32, depth=1, drop_path=0, head_dropout=0)
    model.fc_cls = nn.Sequential(nn.BatchNorm1d(64), model.fc_cls)
    recipe = load_recipe("demo", {"batch_size": 4, "frames": 2, "precision": "fp32", **fields})
    return Optimization(model.train(), recipe, Place(rank, world, torch.device("cpu"), torch.float32), 8)


def take(made, numbers, rank=0, world=1):
    losses = []
    for number in numbers:
        generator = torch.Generator().manual_seed(10 * number + rank)
        frames = torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
        batch = Batch(frames, torch.arange(4), torch.arange(4), torch.ones(4), torch.zeros(4, dtype=torch.int64))
        steps = Steps(clips=1024, batch_size=4, world=world, accumulate=1)
        losses.append(made.step(iter([batch]), number, steps, 1e-2, Clock())[0].item())
    return losses


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_statistics_are_kept_and_a_resumed_run_goes_on_to_the_bit(ema):
    whole, first, second = (optimization(ema=ema) for _ in range(3))
    assert whole.statistics.keys() == NAMES
    accumulated = Steps(clips=1024, batch_size=4, world=1, accumulate=2)
    assert "batch norms see" in whole.split_matters(accumulated)
    assert not whole.split_matters(dataclasses.replace(accumulated, accumulate=1))
    wanted = take(whole, range(6))
    take(first, range(3))
    file = io.BytesIO()
    torch.save((first.state(), first.used), file)
    file.seek(0)
    state, tensors = torch.load(file, weights_only=True)
    assert tensors.keys() == whole.model.trained_tensors().keys() > NAMES
    second.load_state(state, tensors)
    assert take(second, range(3, 6)) == wanted[3:]
    assert all(torch.equal(second.used[name], tensor) for name, tensor in whole.used.items())
    assert not torch.equal(whole.statistics["fc_cls.0.running_mean"], torch.zeros(64))


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    made = optimization(rank, 2)
    take(made, range(3), rank, 2)
    torch.save(made.used, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_all_processes_have_the_same_statistics(tmp_path):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() > NAMES
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    alone = optimization()
    take(alone, range(3))
    assert not torch.equal(first["fc_cls.0.running_mean"], alone.used["fc_cls.0.running_mean"])


def test_batch_norms_of_a_trunk_keep_the_statistics_of_its_weights():
    assert optimization().model.trained_statistics().keys() == NAMES
    assert not create_model("aim_vit_demo").trained_statistics()
