"""A trained run, made once."""

from pathlib import Path

import pytest

TINY = ("--model", "aim_vit_demo", "--frames", 4, "--batch-size", 8, "--log-every", 1, "--eval-every", 1)


@pytest.fixture
def tiny(motion_set, trunk):
    """Options of a training run that takes seconds."""
    return ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, motion_set, trunk) -> Path:
    """A run of two epochs."""
    from aim_fast.cli import main

    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("train", "--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)
    with pytest.raises(SystemExit) as caught:
        main([str(option) for option in (*options, "--epochs", 2, "--output", folder, "--quiet")])
    assert not caught.value.code
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, motion_set, trunk) -> Path:
    """The run of `trained`, made in a process of its own as those that are stopped and killed are."""
    from tests.cli.processes import finish, start

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)
    finish(start("train", *options, "--epochs", 2, "--output", folder, "--quiet"))
    return folder


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A small CLIP of both towers in open_clip's format, of the sizes of the demo."""
    import torch
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=4, width=64, head_width=32, patch_size=8, image_size=48)
    clip = CLIP(64, vision, CLIPTextCfg(width=64, heads=1, layers=2), quick_gelu=True)
    path = tmp_path_factory.mktemp("towers") / "clip.pt"
    torch.save(clip.state_dict(), path)
    return path
