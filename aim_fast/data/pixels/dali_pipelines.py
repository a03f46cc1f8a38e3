"""DALI's pipelines: decode, augment, and on a GPU both in one.

All randomness comes in as numbers from the plan; a pipeline only executes. On a GPU one does everything behind the
file: decode → box → resize → augment → gather. The same augmentation is also a pipeline of its own, for frames that
come resized: on a CPU behind the decoding one and PyTorch's uint8 kernel, six times as fast there as DALI's resampling,
and on either device behind PyAV. A batch has clips for a pipeline or does not go to it: on a GPU no operator takes a
batch of none.

    frames [U, H, W, 3] → box → [U, S, S, 3] → RandAugment → colour jitter → lighting → erase → gather
                                                                                         → uint8 [T, S, S, 3]

Repeated frames are gathered at the very end, so they are never decoded or augmented twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali
from nvidia.dali import math, pipeline_def

from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import ClipPlan
from aim_fast.data.plan.randaugment import FILL, Kind
from aim_fast.errors import UsageError

__all__ = [
    "CPU_CODECS",
    "GPU_CODECS",
    "DaliPipeline",
    "augment_inputs",
    "augmenting",
    "box_inputs",
    "decode_inputs",
    "decoding",
    "whole",
]

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "mpeg4", "av1"}

fn: Any = nvidia.dali.fn  # made at run time, unknown to type checkers
types: Any = nvidia.dali.types
Node = Any  # of a graph: what an operator gives

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_NO_BYTES = np.zeros(1, np.uint8)


class DaliPipeline:
    """A pipeline of DALI's, built, that works on one batch at a time, in the background between ``start`` and ``wait``.

    A failed batch raises PipelineError; the pipeline is of no use after it. Raises UsageError on a GPU that DALI cannot
    use: no driver, one too old, or none of its video part.
    """

    def __init__(self, pipeline: nvidia.dali.Pipeline) -> None:
        self._pipeline = pipeline
        try:
            self._pipeline.build()
        except RuntimeError as error:
            if pipeline.device_id is None:
                raise
            raise UsageError(_no_start(pipeline.device_id, str(error))) from None

    def start(self, inputs: dict[str, list[np.ndarray]]) -> None:
        """Feed one batch and begin."""
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)
        self._call("schedule_run")

    def wait(self) -> Any:
        """The batch's output, a DALI tensor list that is valid until the next ``start``."""
        (output,) = self._call("share_outputs")
        self._call("release_outputs")
        return output

    def _call(self, name: str) -> Any:
        try:
            return getattr(self._pipeline, name)()
        except (RuntimeError, ValueError) as error:
            raise PipelineError(str(error)) from None


def _no_start(gpu: int, told: str) -> str:
    """One line for what DALI says in many, with its own calls' stack."""
    reason = " ".join(told.split("Stacktrace")[0].split("failed: ")[-1].split()).rstrip(".")
    return (
        f"DALI does not start on GPU {gpu}: {reason[:300]}; update the driver, or in a container allow all of it with "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; --decoder pyav does without its video part"
    )


def decoding(*, batch_size: int, threads: int, device_id: int | None = None) -> DaliPipeline:
    """Files to frames [U, H, W, 3], on the CPU or on a GPU. Inputs: ``decode_inputs``."""
    backend = "cpu" if device_id is None else "mixed"
    options = {"batch_size": batch_size, "num_threads": threads, "device_id": device_id, **_OPTIONS}
    return DaliPipeline(_decode_pipeline(backend, **options))


def augmenting(
    img_size: int,
    augmentation: Augmentation | None,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None = None,
) -> DaliPipeline:
    """Resized frames [U, S, S, 3] to augmented clips [T, S, S, 3], on the CPU or on a GPU. Inputs: ``augment_inputs``,
    with pixels."""
    options = {"batch_size": batch_size, "num_threads": threads, "device_id": device_id, **_OPTIONS}
    return DaliPipeline(_augment_pipeline(img_size, augmentation, _device(device_id), **options))


def whole(
    img_size: int,
    augmentation: Augmentation | None,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    decode_on: str = "cpu",
) -> DaliPipeline:
    """Files to clips [T, S, S, 3] on a GPU (on the CPU with None, where it is only slower).

    Inputs: ``decode_inputs``, ``box_inputs`` and ``augment_inputs`` without pixels.
    """
    backend = "mixed" if decode_on == "gpu" else "cpu"
    options = {"batch_size": batch_size, "num_threads": threads, "device_id": device_id, **_OPTIONS}
    return DaliPipeline(_whole_pipeline(img_size, augmentation, _device(device_id), backend, **options))


def decode_inputs(clips: Sequence[ClipInput]) -> dict[str, list[np.ndarray]]:
    """Which frames of which files, or of which bytes where they are held already."""
    return {
        "path": [np.frombuffer(os.fsencode(clip.path), np.uint8) for clip in clips],
        "encoded": [_NO_BYTES if clip.encoded is None else clip.encoded for clip in clips],
        "held": [np.array(clip.encoded is not None) for clip in clips],
        "frames": [clip.plan.frames for clip in clips],
    }


def box_inputs(clips: Sequence[ClipInput]) -> dict[str, list[np.ndarray]]:
    """Boxes for the pipeline that resizes."""
    return {"box": [_mirrored(clip.plan) for clip in clips]}


def augment_inputs(
    clips: Sequence[ClipInput], pixels: Sequence[np.ndarray] | None, augmentation: Augmentation | None
) -> dict[str, list[np.ndarray]]:
    """What the plans say about their augmentation, and resized frames for the pipeline that begins with them."""
    plans = [clip.plan for clip in clips]
    inputs = {"order": [plan.order for plan in plans]} | ({} if pixels is None else {"pixels": list(pixels)})
    if augmentation is not None:
        if augmentation.layers:
            inputs["kinds"] = [plan.randaug[0] for plan in plans if plan.randaug]
            inputs["parameters"] = [plan.randaug[1] for plan in plans if plan.randaug]
        if augmentation.color_jitter:
            inputs["light"] = [plan.light for plan in plans if plan.light is not None]
        if augmentation.erasing:
            inputs["erase"] = [plan.erase for plan in plans if plan.erase is not None]
    return inputs


_OPTIONS: dict[str, Any] = {"prefetch_queue_depth": 1, "seed": 0}


def _mirrored(plan: ClipPlan) -> np.ndarray:
    """A mirrored clip is a box whose right side is its start."""
    y0, x0, y1, x1 = plan.box
    return np.array((y0, x1, y1, x0) if plan.flip else plan.box, np.float32)


def _device(device_id: int | None) -> str:
    return "cpu" if device_id is None else "gpu"


def _input(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Node:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout)


@pipeline_def(enable_conditionals=True)
def _decode_pipeline(decode_device: str) -> Node:
    path, frames = _input("path", types.UINT8, 1), _input("frames", types.INT32, 1)
    return _decoded(path, _input("encoded", types.UINT8, 1), _input("held", types.BOOL, 0), frames, decode_device)


@pipeline_def(enable_conditionals=True)
def _augment_pipeline(img_size: int, augmentation: Augmentation | None, device: str) -> Node:
    pixels = _input("pixels", types.UINT8, 4, "FHWC")
    video = _augmented(pixels.gpu() if device == "gpu" else pixels, img_size, augmentation, device)
    return fn.sequence_rearrange(video, new_order=_input("order", types.INT32, 1))


@pipeline_def(enable_conditionals=True)
def _whole_pipeline(img_size: int, augmentation: Augmentation | None, device: str, decode_device: str) -> Node:
    path, frames, box = _input("path", types.UINT8, 1), _input("frames", types.INT32, 1), _input("box", types.FLOAT, 1)
    video = _decoded(path, _input("encoded", types.UINT8, 1), _input("held", types.BOOL, 0), frames, decode_device)
    if device == "gpu" and decode_device == "cpu":
        video = video.gpu()
    video = fn.resize(
        video,
        size=[img_size, img_size],
        roi_start=box[0:2],
        roi_end=box[2:4],
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    video = _augmented(video, img_size, augmentation, device)
    return fn.sequence_rearrange(video, new_order=_input("order", types.INT32, 1))


def _decoded(path: Node, encoded: Node, held: Node, frames: Node, decode_device: str) -> Node:
    if held:
        data = encoded
    else:
        data = fn.io.file.read(path)
    # Out-of-range frames raise instead of coming out black.
    # Threads stay free: pinned ones of several processes would share the first cores.
    return fn.decoders.video(data, frames=frames, pad_mode="none", affine=False, device=decode_device)


def _augmented(video: Node, img_size: int, augmentation: Augmentation | None, device: str) -> Node:
    if augmentation is not None:
        if augmentation.layers:
            kinds, parameters = _input("kinds", types.INT32, 1), _input("parameters", types.FLOAT, 2)
            for layer in range(augmentation.layers):
                video = _operation(video, kinds[layer], parameters[layer], img_size, device)
        if augmentation.color_jitter:
            light = _input("light", types.FLOAT, 1)
            video = fn.cast(video + (light.gpu() if device == "gpu" else light), dtype=types.UINT8)
        if augmentation.erasing:
            erase = _input("erase", types.FLOAT, 1)
            video = fn.erase(
                video, anchor=erase[0:2], shape=erase[2:4], axes=(1, 2), fill_value=list(augmentation.fill)
            )
    return video


def _operation(video: Node, kind: Node, parameters: Node, img_size: int, device: str) -> Node:
    """One layer of RandAugment or of colour jitter: the clip's kind of operation, Pillow's formula to one level."""
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
    elif kind == int(Kind.HUE):
        video = _turned(video, scalar)
    else:
        video = video  # every branch of a conditional gives the frames
    return video


def _turned(video: Node, turn: Node) -> Node:
    """The hue turned by a share of a full turn, in HSV as torchvision has it."""
    red, green, blue = (fn.cast(video[:, :, :, c : c + 1], dtype=types.FLOAT) for c in range(3))
    value = math.max(math.max(red, green), blue)
    chroma = value - math.min(math.min(red, green), blue)
    over = chroma + (chroma == 0)
    is_red, is_green = value == red, value == green
    beyond = is_green * (2.0 + (blue - red) / over) + (is_green ^ True) * (4.0 + (red - green) / over)
    hue = is_red * ((green - blue) / over) + (is_red ^ True) * beyond + 6.0 * turn  # in sixths of a turn
    planes = []
    for first in (5.0, 3.0, 1.0):
        place = hue + first
        place = place - 6.0 * math.floor(place / 6.0)
        planes.append(value - chroma * math.clamp(math.min(place, 4.0 - place), 0.0, 1.0))
    return fn.cast(fn.cat(*planes, axis_name="C"), dtype=types.UINT8)


def _filtered(video: Node, kernel: Node, margin: Node, img_size: int, device: str) -> Node:
    """A 5×5 filter whose outermost ``margin`` pixels stay as they were, as in Pillow."""
    steps = np.minimum(np.arange(img_size), np.arange(img_size)[::-1])
    rim = np.minimum(steps[:, None], steps[None, :]).clip(max=255).astype(np.uint8)
    kept = _constant(rim[None, :, :, None], device) < margin
    return video * kept + fn.filter(video, kernel) * (kept ^ True)


def _constant(value: np.ndarray | np.uint8, device: str) -> Node:
    return types.Constant(value, device=device)
