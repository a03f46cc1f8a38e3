"""Compiles every Triton kernel without a GPU, for five architectures, and reads what the compiler made of it.

``python -m bench.ahead_of_time`` prints the table of kernels/README.md: registers, spilled bytes, shared memory and
tensor-core instructions of each kernel, at the block shapes of the committed table. The tools (ptxas, cuobjdump) ship
in Triton's wheel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aim_kernels import (
    adapter_triton,
    group_attention_triton,
    layer_norm,
    patch_embed_triton,
    residual,
    spatial_attention_triton,
    temporal_attention,
    wide_activation,
    wide_slope,
)

ARCHITECTURES = (80, 86, 89, 90, 100)
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
MODELS = {"B/16": (768, 12, 8, 197), "L/14": (1024, 16, 32, 257)}  # width, heads, frames, tokens


class Kernel(NamedTuple):
    """One kernel at one size: what a launch would hand to Triton, less the tensors."""

    name: str
    model: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    tensor_cores: bool


class Resources(NamedTuple):
    registers: int
    spilled: int  # bytes of stack a thread
    shared: int  # bytes a program
    matrix_instructions: int


def kernels(architecture: int) -> Iterator[Kernel]:
    """Every kernel of aim_kernels at the sizes of the published models, in bfloat16."""
    for model, (width, heads, frames, tokens) in MODELS.items():
        head_dim = width // heads
        for direction in ("forward", "backward"):
            constants, options = temporal_attention.launch_shape(direction, frames, head_dim, architecture)
            function = getattr(temporal_attention, f"_{direction}_kernel")
            constants["PRECISION"] = "tf32"
            signature = signature_of(function, constants, lse_ptr="*fp32")
            yield Kernel(
                f"temporal_attention {direction}", model, function, signature, constants, options, tensor_cores=True
            )
        for part in ("forward", "backward_queries", "backward_keys"):
            constants, options = spatial_attention_triton.launch_shape(part, head_dim, architecture)
            function = getattr(spatial_attention_triton, f"_{part}_kernel")
            constants |= {"PRECISION": "tf32", "N": tokens}
            signature = signature_of(function, constants, lse_ptr="*fp32", delta_ptr="*fp32")
            yield Kernel(f"spatial_attention {part}", model, function, signature, constants, options, tensor_cores=True)
        yield from _adapter(model, width, architecture)
        statistics = dict.fromkeys(("weight_ptr", "bias_ptr", "mean_ptr", "rstd_ptr"), "*fp32")
        for direction, extra in (("forward", {}), ("backward", {"RESIDUAL": True})):
            constants, options = layer_norm.launch_shape(width, architecture)
            function, constants = getattr(layer_norm, f"_{direction}_kernel"), {**constants, **extra}
            signature = signature_of(function, constants, **statistics)
            yield Kernel(f"layer_norm {direction}", model, function, signature, constants, options, tensor_cores=False)
        constants, options = residual.launch_shape(width, architecture)
        constants = {"FACTOR": True, "BIAS": True, **constants}
        stream = dict.fromkeys(("x_ptr", "factor_ptr", "bias_ptr", "out_ptr"), "*fp32")
        signature = signature_of(residual._kernel, constants, **stream)
        yield Kernel("residual_add", model, residual._kernel, signature, constants, options, tensor_cores=False)
        hidden = 4 * width + width // 4
        for direction in ("forward", "backward"):
            constants, options = wide_activation.launch_shape(hidden, architecture)
            constants = {"QUICK": True, "FACTOR": True, "BACKWARD": direction == "backward", **constants}
            signature = signature_of(wide_activation._kernel, constants, factor_ptr="*fp32")
            yield Kernel(
                f"wide_activation {direction}",
                model,
                wide_activation._kernel,
                signature,
                constants,
                options,
                tensor_cores=False,
            )

            function = getattr(wide_slope, f"_{direction}_kernel")
            constants = {"QUICK": True, "FACTOR": True, **wide_activation.launch_shape(hidden, architecture)[0]}
            constants = {name: value for name, value in constants.items() if name in function.arg_names}
            signature = signature_of(function, constants, factor_ptr="*fp32", slope_ptr="*u8")
            yield Kernel(f"wide_slope {direction}", model, function, signature, constants, options, tensor_cores=False)

        yield from _stem(model, width, architecture)
    yield from _swin(architecture)


def _swin(architecture: int) -> Iterator[Kernel]:
    """Swin's attention in windows of 7 × 7, and in time over the 16 steps of 32 frames; heads of 32 channels."""
    for place, length in (("windows", 49), ("time", 16)):
        for direction, extra in (("forward", {}), ("backward", {"SPAN": 64, "NEEDS_BIAS": True})):
            constants, options = group_attention_triton.launch_shape(direction, length, 32, architecture)
            function = getattr(group_attention_triton, f"_{direction}_kernel")
            constants |= {"PRECISION": "tf32", **extra}
            types = {"table_ptr": "*i32", "bias_ptr": "*fp32", "dbias_ptr": "*fp32"}
            signature = signature_of(function, constants, **types)
            name = f"group_attention {direction}"
            yield Kernel(name, f"Swin {place}", function, signature, constants, options, tensor_cores=True)


def _adapter(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    """The adapter of D/4 hidden units, of the published models, and of 64 and 128, with all that may surround it."""
    for hidden in (width // 4, 128, 64):
        for direction in ("forward", "backward"):
            constants, options = adapter_triton.launch_shape(direction, width, hidden, architecture)
            function = getattr(adapter_triton, f"_{direction}_kernel")
            flags = dict.fromkeys(("SKIP", "RESIDUAL", "FACTOR", "BRANCH", "NEEDS_DZ"), True)
            constants |= {"PRECISION": "tf32"} | {name: on for name, on in flags.items() if name in function.arg_names}
            types = dict.fromkeys(("residual_ptr", "factor_ptr", "out_ptr", "g_ptr"), "*fp32")
            signature = signature_of(function, constants, **types)
            name = f"adapter {direction} H {hidden}"
            yield Kernel(name, model, function, signature, constants, options, tensor_cores=True)


def _stem(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    side = int(model.split("/")[1])
    depth = 3 * side * side
    padded = -(-depth // 8) * 8
    statistics = ("bias_ptr", "class_ptr", "position_ptr", "temporal_ptr", "weight_ptr", "ln_bias_ptr", "mean_ptr")
    floats = dict.fromkeys((*statistics, "rstd_ptr", "partial_ptr", "tokens_ptr", "dtokens_ptr"), "*fp32")
    for part, columns, extra in (
        ("patches", padded, {"P": side, "DEPTH": depth, "PADDED": padded}),
        ("tokens", width, {"D": width}),
        ("temporal", width, {"D": width, "SPAN": patch_embed_triton.SPAN}),
    ):
        function = getattr(patch_embed_triton, f"_{part}_kernel")
        constants, options = patch_embed_triton.launch_shape(columns, architecture)
        constants = {**extra, **constants}
        signature = signature_of(function, constants, frames_ptr="*u8", **floats)
        yield Kernel(f"patch_embed {part}", model, function, signature, constants, options, tensor_cores=False)


def signature_of(function: Any, constants: dict[str, Any], **types: str) -> dict[str, str]:
    """Pointers are to bfloat16, strides int64, ``scale`` and ``eps`` float32, all else int32, unless said otherwise."""
    signature = {}
    for name in function.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = types[name]
        elif name.endswith("_ptr"):
            signature[name] = "*bf16"
        elif name.startswith("stride"):
            signature[name] = "i32" if name == "stride_token" else "i64"
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
    return signature


def compile_kernel(kernel: Kernel, architecture: int) -> Resources:
    """Compiles for sm_<architecture>, pointers and strides divisible by 16 as they are in the models."""
    divisible = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.function.arg_names)
        if name not in kernel.constants and (name.endswith("_ptr") or name.startswith("stride"))
    }
    source = ASTSource(
        fn=kernel.function, signature=kernel.signature, constexprs=dict(kernel.constants), attrs=divisible
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=kernel.options)
    registers, spilled = usage(compiled.asm["cubin"])
    matrix = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", compiled.asm["ptx"]))
    return Resources(registers, spilled, compiled.metadata.shared, matrix)


def usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {report.strip()[:200]}")
    return int(found[1]), int(found[2]) + int(found[3])


def table() -> str:
    """Markdown: one row a kernel and model, one column an architecture, ``registers / shared KiB``."""
    rows: dict[tuple[str, str], list[str]] = {}
    for architecture in ARCHITECTURES:
        for kernel in kernels(architecture):
            used = compile_kernel(kernel, architecture)
            spill = f" spills {used.spilled} B" if used.spilled else ""
            cell = f"{used.registers} / {used.shared / 1024:.0f}{spill}"
            rows.setdefault((kernel.name, kernel.model), []).append(cell)
    head = "| kernel | model | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |"
    lines = [head, "|---|---|" + "---|" * len(ARCHITECTURES)]
    lines += [f"| {name} | {model} | " + " | ".join(cells) + " |" for (name, model), cells in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
