"""Things that several tests need once: a small data set of moving objects and a trunk to put adapters on."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process of tests, and for those that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def motion_set(tmp_path_factory) -> Path:
    """A folder in Something-Something v2's layout: 40 training and 16 validation clips of eight classes."""
    from aim_fast.demo.moving_objects import write_demo_set

    root = tmp_path_factory.mktemp("motion") / "ssv2"
    write_demo_set(root, train=40, validation=16)
    return root


@pytest.fixture(scope="session")
def trunk(tmp_path_factory) -> Path:
    """A file of image weights for `aim_vit_demo`."""
    import torch

    from aim_fast import create_model
    from aim_fast.models.loading import save_trunk

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "trunk.safetensors"
    save_trunk(create_model("aim_vit_demo"), path)
    return path


@pytest.fixture
def no_graph_cache():
    """Compilers take no graph that they compiled before, in this process or another."""
    import torch
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    torch.compiler.reset()
    with inductor.patch(fx_graph_cache=False), autograd.patch(enable_autograd_cache=False):
        yield


@pytest.fixture
def aim_fast(capsys):
    """Runs the command line in this process: `aim_fast("train", ...)` gives (status, stdout, stderr)."""
    from aim_fast.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> Path:
    """A whole CLIP of small random towers in open_clip's names, with OpenAI's vocabulary: for `promptclip_demo`."""
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=8, image_size=48)
    text = CLIPTextCfg(vocab_size=49408, width=64, heads=1, layers=2)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(CLIP(64, vision, text, quick_gelu=True).state_dict(), path)
    return path
