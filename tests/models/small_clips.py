"""A small CLIP of open_clip's, the model that takes its tower, and the files that its users have."""

import warnings

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from aim_fast.models.registry import create_model

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_frames": 4}


def small(**overrides):
    return create_model("aim_vit_demo", **{**SIZES, "num_classes": 5, **overrides}).eval()


def make_clip(quick_gelu=True, **vision):
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    clip = CLIP(16, CLIPVisionCfg(**{**sizes, **vision}), text, quick_gelu=quick_gelu).eval()
    for parameter in clip.visual.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # no bias or norm left at a telltale 0 or 1
    return clip


def tower_features(clip, clips):
    """open_clip's visual tower on each frame of ``[B, 3, T, H, W]``, before its projection: ``[B, T, D]``."""
    projection, clip.visual.proj = clip.visual.proj, None
    with torch.no_grad():
        features = clip.visual(clips.transpose(1, 2).flatten(0, 1)).view(clips.shape[0], clips.shape[2], -1)
    clip.visual.proj = projection
    return features


def assert_same_features(model, clip, size=32):
    clips = torch.randn(2, 3, 4, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clips), tower_features(clip, clips), rtol=1e-4, atol=1e-5)


def write(kind, clip, folder):
    """A weights file of ``clip`` as its users have it; returns the path."""
    path = folder / f"{kind}.pt"
    state = clip.state_dict()
    if kind == "state_dict":
        torch.save(state, path)
    elif kind == "training_checkpoint":
        torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif kind == "legacy_pickle":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "half_state_dict":
        torch.save({name: tensor.half() for name, tensor in state.items()}, path)
    elif kind == "bare_tower":
        torch.save(clip.visual.state_dict(), path)
    elif kind == "safetensors":
        save_file(state, path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "scripted":
                torch.jit.script(clip).save(path)
            else:
                inputs = {"encode_image": torch.randn(1, 3, 32, 32), "encode_text": torch.zeros(1, 8, dtype=torch.long)}
                torch.jit.trace_module(clip, inputs, check_trace=False).save(path)
    return path
