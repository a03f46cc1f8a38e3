"""Batch norm with channels last: torch's own, and of two processes that of their clips together."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aim_fast.models.batch_norm import BatchNorm


def made():
    torch.manual_seed(0)
    norm = BatchNorm(3).double()
    for tensor in norm.state_dict().values():
        tensor.uniform_(0.5, 1.5)
    return norm, torch.randn(4, 2, 5, 3, dtype=torch.float64), torch.randn(4, 2, 5, 3, dtype=torch.float64)


def test_is_torchs_in_training_and_evaluation():
    norm, x, g = made()
    theirs = torch.nn.BatchNorm1d(3).double()
    theirs.load_state_dict(norm.state_dict(), strict=False)
    for training in (True, False):
        x.grad = None
        ours = norm.train(training)(x.requires_grad_())
        gradients = torch.autograd.grad(ours, (x, *norm.parameters()), g)
        wanted = theirs.train(training)(x.flatten(0, 2)).view_as(x)
        torch.testing.assert_close(ours, wanted)
        torch.testing.assert_close(gradients, torch.autograd.grad(wanted, (x, *theirs.parameters()), g))
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)


def half(rank, address, folder):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    norm, x, g = made()
    mine = x[2 * rank :][:2].requires_grad_()
    norm(mine).backward(g[2 * rank :][:2])
    torch.save([mine.grad, norm.weight.grad, norm.bias.grad, norm.running_var], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_of_all_their_clips(tmp_path):
    mp.spawn(half, (tmp_path / "meeting", tmp_path), nprocs=2)
    norm, x, g = made()
    norm(x.requires_grad_()).backward(g)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(torch.cat([first[0], second[0]]), x.grad)
    torch.testing.assert_close(first[1] + second[1], norm.weight.grad)
    torch.testing.assert_close(first[2] + second[2], norm.bias.grad)
    torch.testing.assert_close(first[3], norm.running_var)
