"""Video networks of other libraries by name, to be trained and compared as every other model. Imports none of them.

    torchvision:mvit_v1_b  torchvision:mvit_v1_b24  torchvision:mvit_v2_s  torchvision:mvit_v2_b  torchvision:mvit_v2_l
    torchvision:swin3d_t  torchvision:swin3d_s  torchvision:swin3d_b  torchvision:swin3d_l
    transformers:timesformer  transformers:vivit  transformers:vivit_l  transformers:videomae_s  transformers:videomae
    transformers:videomae_l  transformers:vjepa2_l  transformers:vjepa2_h  transformers:vjepa2_g
    transformers:x_clip  transformers:x_clip_b16  transformers:x_clip_l14       counted and timed alone

Those of transformers need it installed (``pip install "aim-fast[peers]"``).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from aim_fast.errors import UsageError, nearest
from aim_fast.models.libraries.network import Network
from aim_fast.models.libraries.torchvision_networks import MultiscaleViT, VideoSwin
from aim_fast.models.libraries.transformers_networks import (
    TimeSformerNetwork,
    VideoMAENetwork,
    ViViTNetwork,
    VJEPA2Network,
)
from aim_fast.models.libraries.x_clip import XCLIPNetwork

_LIBRARY = re.compile(r"torchvision:|transformers:")
_LEAST = {"torchvision": (0, 26), "transformers": (5, 0)}  # as pyproject.toml has them
_GREY = {"mean": (114.75,) * 3, "std": (57.375,) * 3}  # .45 and .225, PySlowFast's
_HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}  # to [-1, 1]


class Named(NamedTuple):
    """A network, its arguments that differ from their defaults, and what the names of its recipes hold."""

    network: type[Network]
    arguments: Mapping[str, Any]
    recipes: str


def _mvit(version: int, depth: int, doubled: tuple[int, ...], recipes: str, **others: Any) -> Named:
    return Named(MultiscaleViT, {"version": version, "depth": depth, "doubled": doubled, **others}, recipes)


def _swin(embed_dim: int, middle: int, heads: int, recipes: str, **others: Any) -> Named:
    sizes = {"embed_dim": embed_dim, "depths": (2, 2, middle, 2), "num_heads": tuple(heads * 2**i for i in range(4))}
    return Named(VideoSwin, {**sizes, **others}, recipes)


def _vit(network: type[Network], embed_dim: int, depth: int, heads: int, recipes: str, **others: Any) -> Named:
    return Named(network, {"embed_dim": embed_dim, "depth": depth, "num_heads": heads, **others}, recipes)


NETWORKS: Mapping[str, Named] = {
    "torchvision:mvit_v1_b": _mvit(1, 16, (1, 3, 14), "mvit_v1_b", **_GREY),
    "torchvision:mvit_v1_b24": _mvit(1, 24, (2, 5, 21), "mvit_v1_b", num_frames=32, **_GREY),
    "torchvision:mvit_v2_s": _mvit(2, 16, (1, 3, 14), "mvit_v2_s", **_GREY),
    "torchvision:mvit_v2_b": _mvit(2, 24, (2, 5, 21), "mvit_v2_b", num_frames=32, **_GREY),
    "torchvision:mvit_v2_l": _mvit(
        2, 48, (2, 8, 44), "mvit_v2_l", embed_dim=144, num_heads=2, num_frames=40, img_size=312
    ),
    "torchvision:swin3d_t": _swin(96, 6, 3, "swin3d_t"),
    "torchvision:swin3d_s": _swin(96, 18, 3, "swin3d_t"),
    "torchvision:swin3d_b": _swin(128, 18, 4, "swin3d_b"),
    "torchvision:swin3d_l": _swin(192, 18, 6, "swin3d_b"),
    "transformers:timesformer": _vit(TimeSformerNetwork, 768, 12, 12, "timesformer_network", **_GREY),
    "transformers:vivit": _vit(ViViTNetwork, 768, 12, 12, "vivit_joint", **_HALF),
    "transformers:vivit_l": _vit(ViViTNetwork, 1024, 24, 16, "vivit_joint", **_HALF),
    "transformers:videomae_s": _vit(VideoMAENetwork, 384, 12, 6, "videomae"),
    "transformers:videomae": _vit(VideoMAENetwork, 768, 12, 12, "videomae"),
    "transformers:videomae_l": _vit(VideoMAENetwork, 1024, 24, 16, "videomae_l"),
    "transformers:vjepa2_l": _vit(VJEPA2Network, 1024, 24, 16, "vjepa2"),
    "transformers:vjepa2_h": _vit(VJEPA2Network, 1280, 32, 16, "vjepa2"),
    "transformers:vjepa2_g": _vit(VJEPA2Network, 1408, 40, 22, "vjepa2", mlp_ratio=48 / 11),
    "transformers:x_clip": _vit(XCLIPNetwork, 768, 12, 12, "b16"),
    "transformers:x_clip_b16": _vit(XCLIPNetwork, 768, 12, 12, "b16", patch_size=16),
    "transformers:x_clip_l14": _vit(XCLIPNetwork, 1024, 24, 16, "l14", patch_size=14, output_dim=768),
}


def is_library(name: str) -> bool:
    """Whether a name is of another library's model, known or not."""
    return _LIBRARY.match(name) is not None


def find_network(name: str) -> Named:
    """What a name stands for. Raises UsageError for an unknown one, and where its library is missing or too old."""
    if name not in NETWORKS:
        raise UsageError(f"unknown model {name!r}: {nearest(name, NETWORKS)}")
    check_library(name.partition(":")[0], name)
    return NETWORKS[name]


def check_library(library: str, wants: str) -> None:
    """Raises UsageError where ``library``, which ``wants`` needs, is not installed or is older than it has to be."""
    remedy = 'pip install "aim-fast[peers]"'
    try:
        version = importlib.import_module(library).__version__
    except ImportError:
        raise UsageError(f"{wants} needs {library}, which is not installed: {remedy}") from None
    least = _LEAST[library]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < least:
        needed = ".".join(map(str, least))
        raise UsageError(f"{wants} needs {library} {needed} or later, and {version} is installed: {remedy}")


def list_networks() -> list[str]:
    """The names of those whose library is installed."""
    there = {library for library in _LEAST if importlib.util.find_spec(library)}
    return [name for name in NETWORKS if name.partition(":")[0] in there]
