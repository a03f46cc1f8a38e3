"""Video models of other libraries, to be compared with: their structure under random weights, all of it trained.

    torchvision:mvit_v1_b  torchvision:mvit_v2_s  torchvision:swin3d_t  torchvision:swin3d_s  torchvision:swin3d_b
    transformers:timesformer  transformers:vivit  transformers:videomae  transformers:x_clip

Each is built by its library, in that library's default configuration, and runs that library's own code; only the clips
are laid out as it takes them. The last four need transformers (``pip install "aim-fast[peers]"``).
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_fast.errors import UsageError, WeightsError, nearest
from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit


class _Peer(NamedTuple):
    build: Callable[[str, int, int], nn.Module]  # (name, num_classes, num_frames) to a network
    names: tuple[str, ...]  # the library's: builder, or configuration and model
    frames: int  # of a clip, those of the library's configuration or of its published accuracy
    multiple: int  # of which the number of frames is one; 0 where it cannot be chosen
    axes: str  # the layout of a clip


class PeerModel(VideoModel):
    """A network of another library as a :class:`VideoModel`: clips in, logits ``[B, num_classes]`` out, all trained."""

    arguments = ("num_classes", "num_frames")

    def __init__(self, name: str, num_classes: int = 400, num_frames: int | None = None) -> None:
        super().__init__()
        peer = _PEERS[name]
        frames = num_frames or peer.frames
        check_sizes(num_classes=num_classes, num_frames=frames)
        if frames != peer.frames and (not peer.multiple or frames % peer.multiple):
            allowed = f"a multiple of {peer.multiple}" if peer.multiple else str(peer.frames)
            raise ValueError(f"num_frames {frames} is not {allowed}, which is all that it takes")
        self.name, self.num_classes, self.num_frames, self.img_size = name, num_classes, frames, 224
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.channels_first = peer.axes == "BCTHW"
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Builds the network as its library initialises it."""
        self.network = _PEERS[self.name].build(self.name, self.num_classes, self.num_frames)

    def freeze(self) -> None:
        """Nothing is frozen."""
        self.requires_grad_(True)

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        raise WeightsError(f"{self.name} is here for its structure alone: {source} is not read into it")

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to the logits of the network, ``[B, num_classes]``."""
        self.check_clips(x)
        clips = self.normalize(x) if x.dtype == torch.uint8 else x
        logits = self.network(clips if self.channels_first else clips.transpose(1, 2))
        return getattr(logits, "logits", logits)

    def forward_head(self, features: Tensor) -> Tensor:
        """The logits as they are."""
        return features


def list_peers() -> list[str]:
    """The names that :func:`create_peer` takes."""
    return list(_PEERS)


def create_peer(name: str, **overrides: Any) -> PeerModel:
    """A model of another library by name; ``overrides`` are ``num_classes`` and ``num_frames``.

    Raises UsageError for an unknown name or argument, for a number of frames that it cannot take, and where its library
    is not installed.
    """
    if name not in _PEERS:
        raise UsageError(f"unknown model {name!r}: {nearest(name, _PEERS)}")
    library = name.partition(":")[0]
    try:
        importlib.import_module(library)
    except ImportError:
        raise UsageError(f'{name} needs {library}, which is not installed: pip install "aim-fast[peers]"') from None
    known = list(inspect.signature(PeerModel).parameters)[1:]
    if odd := [key for key in overrides if key not in known]:
        raise UsageError(f"model {name} has no argument {odd[0]!r}: {nearest(odd[0], known)}")
    try:
        return PeerModel(name, **overrides)
    except ValueError as error:
        raise UsageError(f"model {name}: {error}") from None


def default_frames(name: str) -> int:
    """Frames of a clip that a model takes when nothing is asked."""
    return _PEERS[name].frames


def takes_frames(name: str, frames: int) -> bool:
    """Whether a model can be made for clips of so many frames."""
    peer = _PEERS[name]
    return frames == peer.frames or (bool(peer.multiple) and frames % peer.multiple == 0)


def published_by_library(name: str, dataset: str, frames: int) -> dict[str, Any] | None:
    """What a library says of a model's best weights on ``dataset``: ``top1`` percent, ``views``, ``source``.

    Read from the metadata of torchvision's weights, for clips of ``frames`` frames. None where it says nothing: for
    another number of frames or data set, and for transformers, whose weights are described on a hub.
    """
    library, _, builder = name.partition(":")
    if library != "torchvision" or dataset != "kinetics400" or frames != default_frames(name):
        return None
    from torchvision.models import get_model_weights

    found = {weights: weights.meta["_metrics"]["Kinetics-400"]["acc@1"] for weights in get_model_weights(builder)}
    best = max(found, key=found.__getitem__)
    clips = re.search(r"clips_per_video=(\d+)", best.meta.get("_docs", ""))
    views = {"views": f"{clips[1]}x1"} if clips else {}
    return {"top1": found[best], **views, "source": f"torchvision, metadata of {best}"}


def _torchvision(name: str, num_classes: int, num_frames: int) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name.partition(":")[2], weights=None, num_classes=num_classes)


def _transformers(name: str, num_classes: int, num_frames: int) -> nn.Module:
    import transformers

    config, model = _PEERS[name].names
    return getattr(transformers, model)(
        getattr(transformers, config)(num_labels=num_classes, num_frames=num_frames)
    ).train()


class _XClip(nn.Module):
    """transformers' X-CLIP with the features of its class names in store, as closed-set use has them: its text tower
    is neither run nor counted. What its prompts add to them by the video is."""

    def __init__(self, num_classes: int, num_frames: int) -> None:
        super().__init__()
        import transformers

        vision = transformers.XCLIPVisionConfig(num_frames=num_frames)
        config = transformers.XCLIPConfig(vision_config=vision.to_dict())
        self.model = transformers.XCLIPModel(config).train()
        self.model.text_model = _StoredTexts(num_classes, self.model.text_projection.in_features)

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(input_ids=None, pixel_values=clips).logits_per_video


class _StoredTexts(nn.Module):
    features: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(num_classes, width))

    def forward(self, **_: Any) -> tuple[None, Tensor]:
        return None, self.features


def _x_clip(name: str, num_classes: int, num_frames: int) -> nn.Module:
    return _XClip(num_classes, num_frames)


_PEERS = {
    "torchvision:mvit_v1_b": _Peer(_torchvision, ("mvit_v1_b",), 16, 0, "BCTHW"),
    "torchvision:mvit_v2_s": _Peer(_torchvision, ("mvit_v2_s",), 16, 0, "BCTHW"),
    "torchvision:swin3d_t": _Peer(_torchvision, ("swin3d_t",), 32, 2, "BCTHW"),
    "torchvision:swin3d_s": _Peer(_torchvision, ("swin3d_s",), 32, 2, "BCTHW"),
    "torchvision:swin3d_b": _Peer(_torchvision, ("swin3d_b",), 32, 2, "BCTHW"),
    "transformers:timesformer": _Peer(
        _transformers, ("TimesformerConfig", "TimesformerForVideoClassification"), 8, 1, "BTCHW"
    ),
    "transformers:vivit": _Peer(_transformers, ("VivitConfig", "VivitForVideoClassification"), 32, 2, "BTCHW"),
    "transformers:videomae": _Peer(_transformers, ("VideoMAEConfig", "VideoMAEForVideoClassification"), 16, 2, "BTCHW"),
    "transformers:x_clip": _Peer(_x_clip, ("XCLIPConfig", "XCLIPModel"), 8, 1, "BTCHW"),
}
