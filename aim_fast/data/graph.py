"""The one DALI graph of a loader: decode, box and resize, augment, gather frames.

All randomness comes in as numbers from the plan; the graph only executes. A clip is decoded by DALI from its path, or
comes in as frames that PyAV decoded; behind that there is one way for both:

    frames [U, H, W, 3] → box → [U, S, S, 3] → RandAugment → lighting → erase → gather → uint8 [T, S, S, 3]

The resize is linear with antialiasing (a triangle filter as wide as the shrinking): what the published pipeline's
bilinear resize does where it enlarges, without its aliasing where it shrinks. A mirrored clip is a box whose right side
is its start. Repeated frames are gathered at the very end, so they are never decoded or augmented twice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import math, pipeline_def

from aim_fast.data.clip_input import ClipInput, GraphError
from aim_fast.data.plan import Augmentation, ClipPlan
from aim_fast.data.randaugment import FILL, Kind

__all__ = ["CPU_CODECS", "GPU_CODECS", "ClipGraph"]

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "mpeg4", "av1"}

fn: Any = nvidia.dali.fn  # made at run time, unknown to type checkers
types: Any = nvidia.dali.types

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class ClipGraph:
    """A built pipeline that takes batches of planned clips and gives uint8 tensors [B, T, S, S, 3], in order.

    Args:
        batch_size: B, of every batch. img_size: S.
        augmentation: what plans may ask for; parts that are off are not in the graph.
        decoders: who decodes: {"dali"}, {"pyav"} or both, clip by clip.
        device: where the graph runs and its output lies. decode_on: "cpu" or "gpu", for DALI's decoder.
        threads: DALI's worker threads. depth: batches under way at once.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        img_size: int,
        augmentation: Augmentation | None,
        decoders: frozenset[str],
        device: torch.device,
        decode_on: str = "cpu",
        threads: int = 2,
        depth: int = 2,
    ) -> None:
        self.batch_size, self.decoders, self.augmentation = batch_size, decoders, augmentation
        self.depth = depth
        gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if gpu else None
        self._pipeline = _clip_pipeline(
            img_size,
            augmentation,
            decoders,
            "gpu" if gpu else "cpu",
            "mixed" if decode_on == "gpu" else "cpu",
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if gpu else None,
            prefetch_queue_depth=depth,
            seed=0,
        )
        self._pipeline.build()
        self._first = True

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """For each batch of exactly B clips its frames, uint8 [B, T, S, S, 3], in memory of their own.

        ``depth`` batches are drawn ahead of the one that is given out. Closing the iterator finishes and discards them.

        Raises:
            GraphError: DALI failed on a batch that is under way; make a new graph.
        """
        source = iter(batches)
        wanted: deque[bool] = deque()  # for each batch under way, whether it is one of the caller's
        try:
            for batch in islice(source, self.depth):
                self._feed(batch)
                wanted.append(True)
                if not self._first:
                    self._call("schedule_run")
            if wanted and self._first:  # DALI's first run takes as many batches as its queue is deep
                for _ in range(self.depth - len(wanted)):
                    self._feed(batch)
                    wanted.append(False)
                self._call("schedule_run")
                self._first = False
            while wanted:
                frames = self._take()
                given = wanted.popleft()
                for batch in islice(source, 1):
                    self._feed(batch)
                    self._call("schedule_run")
                    wanted.append(True)
                if given:
                    yield frames
        except GraphError:
            wanted.clear()
            raise
        finally:
            for _ in wanted:
                self._take()

    def _feed(self, batch: Sequence[ClipInput]) -> None:
        for name, values in self._inputs(batch).items():
            self._pipeline.feed_input(name, values)

    def _inputs(self, batch: Sequence[ClipInput]) -> dict[str, list[np.ndarray]]:
        plans = [clip.plan for clip in batch]
        inputs: dict[str, list[np.ndarray]] = {
            "order": [plan.order for plan in plans],
            "box": [_mirrored(plan) for plan in plans],
        }
        if "dali" in self.decoders:
            inputs["path"] = [np.frombuffer(os.fsencode(clip.path), np.uint8) for clip in batch]
            inputs["frames"] = [plan.frames for plan in plans]
        if "pyav" in self.decoders:
            inputs["pixels"] = [_NO_PIXELS if clip.pixels is None else clip.pixels for clip in batch]
        if len(self.decoders) == 2:
            inputs["decoded"] = [np.array(clip.pixels is not None) for clip in batch]
        if self.augmentation is not None:
            if self.augmentation.randaug is not None:
                inputs["kinds"] = [plan.randaug[0] for plan in plans if plan.randaug]
                inputs["parameters"] = [plan.randaug[1] for plan in plans if plan.randaug]
            if self.augmentation.color_jitter:
                inputs["light"] = [plan.light for plan in plans if plan.light is not None]
            if self.augmentation.erasing:
                inputs["erase"] = [plan.erase for plan in plans if plan.erase is not None]
        return inputs

    def _take(self) -> torch.Tensor:
        (frames,) = self._call("share_outputs")
        if self._stream is None:
            kept = torch.from_dlpack(frames.as_tensor()).clone()  # DALI writes to its buffers again
        else:
            with torch.cuda.stream(self._stream):
                kept = torch.from_dlpack(frames.as_tensor()).clone()
            self._stream.synchronize()
        self._call("release_outputs")
        return kept

    def _call(self, name: str) -> Any:
        try:
            return getattr(self._pipeline, name)()
        except RuntimeError as error:
            raise GraphError(str(error)) from None


_NO_PIXELS = np.zeros((1, 1, 1, 3), np.uint8)


def _mirrored(plan: ClipPlan) -> np.ndarray:
    y0, x0, y1, x1 = plan.box
    return np.array((y0, x1, y1, x0) if plan.flip else plan.box, np.float32)


def _input(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout)


@pipeline_def(enable_conditionals=True)
def _clip_pipeline(img_size, augmentation, decoders, device, decode_device):
    video = _frames(decoders, device, decode_device)
    box = _input("box", types.FLOAT, 1)
    video = fn.resize(
        video,
        size=[img_size, img_size],
        roi_start=box[0:2],
        roi_end=box[2:4],
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    if augmentation is not None:
        if augmentation.randaug is not None:
            kinds, parameters = _input("kinds", types.INT32, 1), _input("parameters", types.FLOAT, 2)
            for layer in range(augmentation.randaug[0]):
                video = _operation(video, kinds[layer], parameters[layer], img_size, device)
        if augmentation.color_jitter:
            light = _input("light", types.FLOAT, 1)
            video = fn.cast(video + (light.gpu() if device == "gpu" else light), dtype=types.UINT8)
        if augmentation.erasing:
            erase = _input("erase", types.FLOAT, 1)
            video = fn.erase(
                video, anchor=erase[0:2], shape=erase[2:4], axes=(1, 2), fill_value=list(augmentation.fill)
            )
    return fn.sequence_rearrange(video, new_order=_input("order", types.INT32, 1))


def _frames(decoders, device, decode_device):
    path = pixels = None
    if "dali" in decoders:
        path, frames = _input("path", types.UINT8, 1), _input("frames", types.INT32, 1)
    if "pyav" in decoders:
        pixels = _input("pixels", types.UINT8, 4, "FHWC")
        if device == "gpu":
            pixels = pixels.gpu()
    if path is None:
        return pixels
    if pixels is None:
        return _decoded(path, frames, device, decode_device)
    if _input("decoded", types.BOOL, 0):
        video = pixels
    else:
        video = _decoded(path, frames, device, decode_device)
    return video


def _decoded(path, frames, device, decode_device):
    # Out-of-range frames raise instead of coming out black.
    video = fn.decoders.video(fn.io.file.read(path), frames=frames, pad_mode="none", device=decode_device)
    if device == "gpu" and decode_device == "cpu":
        video = video.gpu()
    return video


def _operation(video, kind, parameters, img_size, device):
    """One RandAugment layer: the clip's kind of operation, Pillow's formula to one level."""
    value, shift, cutout = parameters[31], parameters[32], parameters[32:36]
    kernel = fn.reshape(parameters[6:31], shape=[5, 5])
    scalar = value
    if device == "gpu":
        kernel, scalar = kernel.gpu(), value.gpu()
    if kind == int(Kind.AFFINE):
        video = fn.warp_affine(
            video,
            matrix=fn.reshape(parameters[0:6], shape=[2, 3]),
            fill_value=FILL,
            interp_type=types.INTERP_NN,
            inverse_map=True,
        )
    elif kind == int(Kind.FILTER):
        video = _filtered(video, kernel, scalar, img_size, device)
    elif kind == int(Kind.LINE):
        video = fn.brightness_contrast(video, brightness=value, brightness_shift=shift / 255.0)
    elif kind == int(Kind.CONTRAST):
        grey = fn.reductions.mean(video, axis_names="HW", keep_dims=True) * _constant(_LUMA, device)
        centre = math.floor(fn.reductions.sum(grey, axis_names="C", keep_dims=True) + 0.5)
        video = fn.cast(centre + (video - centre) * scalar, dtype=types.UINT8)
    elif kind == int(Kind.COLOR):
        video = fn.saturation(video, saturation=value)
    elif kind == int(Kind.POSTERIZE):
        video = video & fn.cast(scalar, dtype=types.UINT8)
    elif kind == int(Kind.SOLARIZE):
        kept = video < scalar
        video = video * kept + (_constant(np.uint8(255), device) - video) * (kept ^ True)
    elif kind == int(Kind.AUTOCONTRAST):
        low = fn.reductions.min(video, axis_names="HW", keep_dims=True)
        span = fn.reductions.max(video, axis_names="HW", keep_dims=True) - low
        flat = span == 0
        stretched = fn.cast(math.floor((video - low) * (255.0 / (span + flat)) + 1e-3), dtype=types.UINT8)
        video = stretched * (flat ^ True) + video * flat
    elif kind == int(Kind.EQUALIZE):
        video = fn.equalize(video)
    elif kind == int(Kind.CUTOUT):
        video = fn.erase(video, anchor=cutout[0:2], shape=cutout[2:4], axes=(1, 2), fill_value=FILL)
    else:
        video = video  # every branch of a conditional gives the frames
    return video


def _filtered(video, kernel, margin, img_size, device):
    """A 5×5 filter whose outermost ``margin`` pixels stay as they were, as in Pillow."""
    steps = np.minimum(np.arange(img_size), np.arange(img_size)[::-1])
    rim = np.minimum(steps[:, None], steps[None, :]).clip(max=255).astype(np.uint8)
    kept = _constant(rim[None, :, :, None], device) < margin
    return video * kept + fn.filter(video, kernel) * (kept ^ True)


def _constant(value, device):
    return types.Constant(value, device=device)
