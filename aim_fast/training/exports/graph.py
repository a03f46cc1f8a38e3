"""A model as a graph of torch.export: uint8 clips [B, T, H, W, 3] to logits [B, num_classes] in float32, for any B.

The engine's operators stay as they are, or are written out in torch's own: ONNX and machine code know no others.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from aim_fast.errors import UsageError
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.video_model import VideoModel
from aim_fast.training.exports.folding import fold_weights
from aim_kernels.adaptation import norm_reference
from aim_kernels.layer_norm import layer_norm_reference
from aim_kernels.registration import OPERATORS

_TRACED = 2  # clips: of one clip torch.export takes the number for a constant


def trace(model: VideoModel, dtype: torch.dtype, device: torch.device, written_out: bool) -> ExportedProgram:
    """The graph of a model in eval mode, which becomes one of ``dtype`` on ``device``, its adapters merged and folded.

    Raises UsageError for a model that cannot be traced, with what torch says.
    """
    if isinstance(model, FrameModel):
        with contextlib.suppress(UsageError):  # that has nothing to merge, or a trunk that takes nothing
            model = model.merged()
    whole = _Logits(model.to(device, dtype)).requires_grad_(False).eval()
    side, frames = model.img_size, model.num_frames
    clips = torch.zeros(_TRACED, frames, side, side, 3, dtype=torch.uint8, device=device)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(whole, (clips,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
            program = program.run_decompositions(_plain_operators() if written_out else {})
            fold_weights(program)
    except Exception as error:  # torch.export has many of its own, and a model's code any
        raise UsageError(f"{type(model).__name__} cannot be exported: {first_line(error)}") from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # which names folders of this machine
    return program


class _Logits(nn.Module):
    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(clips).float()


def _plain_operators() -> dict[Any, Any]:
    """What stands for each operator of the engine, and for the one of torch's that ONNX has not."""
    found = {getattr(torch.ops.aim, name).default: operator.reference for name, operator in OPERATORS.items()}
    strided = {torch.ops.aten.as_strided_scatter.default: _strided_scatter}
    return found | strided | {torch.ops.aim.layer_norm.default: _layer_norm}


def _strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Tensor:
    """A contiguous ``x`` with ``source`` at the places of ``size``, ``stride`` and ``offset``, each by its number."""
    places = torch.full((), offset or 0, dtype=torch.int64, device=x.device)
    for count, step in zip(size, stride):
        places = places[..., None] + torch.arange(count, device=x.device) * step
    return x.reshape(-1).scatter(0, places.reshape(-1), source.reshape(-1)).view(x.shape)


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator with its first result as the one operator that every format has for it."""
    _, mean, rstd = layer_norm_reference(x, weight, bias, eps, dtype)
    return norm_reference(x, weight, bias, eps).to(dtype), mean, rstd


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block in which exporters do not warn of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch._inductor", "torch.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """What an exception, or the one that caused it, says first, or its kind where it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
