"""A loss between clips: two processes of two clips each train as one of four, by either way of exchanging gradients."""

import torch
import torch.distributed as dist
from torch import multiprocessing

from aim_fast import create_model
from aim_fast.data import Batch
from aim_fast.training import optimization as module
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place
from aim_fast.training.optimization import Optimization
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps

NAMES = ["walking", "BrushHair", "apply_lipstick"]
SIZES = {"img_size": 32, "depth": 1, "num_frames": 2, "text_depth": 1, "fusion_layers": 1}


def trained(rank=0, world=1, flat=False):
    """The tensors after two steps of four clips, of which the last is a filler."""
    torch.manual_seed(0)
    model = create_model("vit_demo", method="actionclip", class_names=NAMES, **SIZES).train()
    fields = {"batch_size": 4 // world, "frames": 2, "precision": "fp32", "optimizer": "sgd", "label_smoothing": 0}
    module.captures = lambda *_: flat
    place = Place(rank, world, torch.device("cpu"), torch.float32)
    made = Optimization(model, load_recipe("demo", {"model": "vit_demo", **fields}), place, 3)
    share, losses = slice(rank * 4 // world, (rank + 1) * 4 // world), []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        frames = torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
        rows, weights = torch.arange(4), torch.tensor([1.0, 1, 1, 0])
        parts = (frames, torch.tensor([2, 0, 2, 1]), rows, weights, torch.zeros(4, dtype=torch.int64))
        steps = Steps(clips=3, batch_size=4 // world, world=world, accumulate=1)
        loss, _ = made.step(iter([Batch(*(part[share] for part in parts))]), number, steps, 1e-2, Clock())
        losses.append(loss.item())
    return {name: tensor.detach() for name, tensor in made.trainable.items()}, losses


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    torch.save({flat: trained(rank, 2, flat) for flat in (False, True)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compare_all_clips_as_one_does(tmp_path, monkeypatch):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    monkeypatch.setattr(module, "captures", module.captures)  # which is put back
    wanted, losses = trained()
    for flat in (False, True):
        shares = [sum(pair) for pair in zip(first[flat][1], second[flat][1])]
        torch.testing.assert_close(shares, losses, rtol=1e-5, atol=1e-6)
        for name, tensor in wanted.items():
            torch.testing.assert_close(first[flat][0][name], tensor, rtol=1e-4, atol=1e-6)
