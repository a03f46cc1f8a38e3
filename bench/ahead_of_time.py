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
    bias_gradients,
    column_sum,
    group_attention_triton,
    layer_norm_triton,
    patch_embed_triton,
    residual,
    rotation_triton,
    rows_triton,
    scaled_rows,
    scaled_wide_product,
    spatial_attention_triton,
    temporal_attention,
    wide_activation,
    wide_product_triton,
    wide_slope,
    wide_swiglu,
)
from aim_kernels.block_shapes import APART, LIBRARY, Launch, block_shape, candidates, trying
from aim_kernels.scaled_product import OLDEST

ARCHITECTURES = (80, 86, 89, 90, 100)
# an access to a spilled register hits L1: below one instruction in fifty it is lost in what a tile's shape decides
HARMLESS_SPILLS = 0.02
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
    spill_share: float  # see ``spill_share``
    shared: int  # bytes a program
    matrix_instructions: int


def kernels(architecture: int) -> Iterator[Kernel]:
    """Every kernel of aim_kernels at the sizes of the published models, in bfloat16."""
    for model, (width, heads, frames, tokens) in MODELS.items():
        head_dim, hidden = width // heads, 4 * width + width // 4
        for direction in ("forward", "backward"):
            shape = temporal_attention.launch_shape(direction, frames, head_dim, architecture)
            function = getattr(temporal_attention, f"temporal_attention_{direction}_kernel")
            yield _kernel(f"temporal_attention {direction}", model, function, shape, True, lse_ptr="*fp32")
        for part in ("forward", "backward_queries", "backward_keys"):
            constants, options = spatial_attention_triton.launch_shape(part, head_dim, architecture)
            function, types = (
                getattr(spatial_attention_triton, f"spatial_attention_{part}_kernel"),
                _floats("lse", "statistics", "bias"),
            )
            for bias in ("", ", bias"):
                shape = {"N": tokens, "BIAS": bool(bias), **constants}, options
                yield _kernel(f"spatial_attention {part}{bias}", model, function, shape, True, **types)
        if (tile := spatial_attention_triton.backward_shape(head_dim, architecture, 2, tokens)) != APART:
            constants, options = spatial_attention_triton.launched(tile, head_dim)
            function, shape = spatial_attention_triton.spatial_attention_backward_kernel, {"N": tokens, **constants}
            yield _kernel("spatial_attention backward", model, function, (shape, options), True, **_floats("lse"))
        constants, options = rotation_triton.launch_shape(head_dim, architecture)
        for layout in ("half", "interleaved"):
            shape = {"N": tokens, "INTERLEAVED": layout != "half", **constants}, options
            yield _kernel(f"rotation {layout}", model, rotation_triton.rotation_kernel, shape, **_floats("table"))
        yield from _adapter(model, width, architecture)
        constants, options = rows_triton.launch_shape(width, architecture)
        shape = {"D": width, **constants}, options
        yield from _norms(model, width, architecture)
        yield _kernel(
            "residual_add", model, residual.residual_add_kernel, shape, **_floats("x", "factor", "bias", "out")
        )
        yield from _sums(model, width, architecture)
        yield from _activations(model, hidden, architecture)
        yield from _own_products(model, width, hidden, architecture)
        if architecture >= OLDEST:
            yield from _own_products(model, width, 4 * width, architecture, 1)
            yield from _eight_bits(model, width, architecture)
        yield from _stem(model, width, architecture)
    yield from _swin(architecture)


def candidate_kernels(architecture: int) -> Iterator[Kernel]:
    """The kernels of B/16 and Swin, each at every other shape that a tuning measures; one variant of each."""

    def chosen() -> list[Kernel]:
        apart = ("bias", "gelu_tanh", "rms_norm", "interleaved")
        return [k for k in kernels(architecture) if k.model != "L/14" and not any(word in k.name for word in apart)]

    with trying({}) as trial:
        committed = chosen()
    for launch in trial.asked:
        for shape in (tile for tile in candidates(launch)[1:] if tile != APART):
            with trying({launch: shape}):
                tried = chosen()
            for kernel, before in zip(tried, committed, strict=True):
                if (kernel.constants, kernel.options) != (before.constants, before.options):
                    yield kernel._replace(name=f"{kernel.name} {tuple(shape)}")


def _swin(architecture: int) -> Iterator[Kernel]:
    """Swin's attention in windows of 7 × 7, and in time over the 16 steps of 32 frames; heads of 32 channels."""
    for place, length in (("windows", 49), ("time", 16)):
        for direction in ("forward", "backward"):
            constants, options = group_attention_triton.launch_shape(direction, length, 32, architecture)
            function = getattr(group_attention_triton, f"group_attention_{direction}_kernel")
            shape, types = ({"SPAN": 64, **constants}, options), {"table_ptr": "*i32", **_floats("bias", "dbias")}
            yield _kernel(f"group_attention {direction}", f"Swin {place}", function, shape, True, **types)


def _norms(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    """The row norm alone, with the residual add before it, and back, there with the gradient of the branch as well.

    Of a folded norm the stream is packed.
    """
    types = _floats("weight", "bias", "mean", "rstd", "x_mean", "x_rstd")
    alone = dict.fromkeys(("BRANCH", "SCALED", "UNPACK", "PACK"), False)
    constants, options = rows_triton.launch_shape(width, architecture)
    for norm, rms, normal in (("layer_norm", False, False), ("rms_norm", True, False), ("folded norm", False, True)):
        forward, sized = (
            layer_norm_triton.layer_norm_forward_kernel,
            ({"D": width, "RMS": rms, "NORMAL": normal, "KEPT": not normal, **constants, **alone}, options),
        )
        yield _kernel(f"{norm} forward", model, forward, sized, **types)
        yield _kernel(f"{norm} backward", model, layer_norm_triton.layer_norm_backward_kernel, sized, **types)
        packed, stream = {"UNPACK": normal, "PACK": normal}, _floats("factor", "added", "partial")
        stream |= _floats("x", "out", "dx", "residual")
        if normal:
            stream |= dict.fromkeys(("x_ptr", "residual_ptr"), "*bf16")
            stream |= dict.fromkeys(("x_low_ptr", "out_ptr", "residual_low_ptr", "dx_ptr"), "*i8")
        tile, launched = rows_triton.launch_shape(width, architecture, "layer_norm_branch_forward")
        added = {**sized[0], **tile, **packed, "BRANCH": True}, launched
        yield _kernel(f"residual {norm} forward", model, forward, added, **types, **stream)
        tile, launched = rows_triton.launch_shape(width, architecture, "layer_norm_branch")
        span = {**sized[0], "SPAN": layer_norm_triton.PART // tile["ROWS"], **tile, **packed}, launched
        branch, stream_types = layer_norm_triton.layer_norm_branch_kernel, {**types, **stream, "x_ptr": "*bf16"}
        yield _kernel(f"residual {norm} backward", model, branch, span, **stream_types)


def _sums(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    """Of a gradient of the stream's width, and of an adapter's hidden state."""
    types = _floats("factor", "partial")
    for columns in (width, width // 4):
        shape = column_sum.launch_shape(columns, architecture)
        yield _kernel(f"column_sum D {columns}", model, column_sum.column_sum_kernel, shape, **types)
    for name in ("column_sums", "gelu_gradients"):
        shape = bias_gradients.launch_shape(name, width // 4, architecture)
        constants = {"PARTS": bias_gradients.MOST, "SIZE": 256, "ROWS_SIZE": 64, **shape[0]}
        function, types_here = getattr(bias_gradients, f"{name}_kernel"), _floats("sum", "rows", "rows_sum")
        yield _kernel(name, model, function, (constants, shape[1]), **types_here)
    shape = column_sum.launch_shape(width, architecture)
    yield _kernel("branch_gradient", model, column_sum.branch_gradient_kernel, shape, **types, **_floats("g"))


def _activations(model: str, hidden: int, architecture: int) -> Iterator[Kernel]:
    """Of the widened MLP, QuickGELU's by the operators' bare names."""
    constants, options = wide_activation.launch_shape(hidden, architecture)
    for direction in ("forward", "backward"):
        types = _floats("factor")
        for end, activation in (("", "quick_gelu"), (" gelu_tanh", "gelu_tanh")):
            shape = {"ACTIVATION": activation, "BACKWARD": direction == "backward", **constants}, options
            yield _kernel(
                f"wide_activation {direction}{end}", model, wide_activation.wide_activation_kernel, shape, **types
            )
            function = getattr(wide_slope, f"wide_slope_{direction}_kernel")
            if "ACTIVATION" in function.arg_names or not end:
                yield _kernel(f"wide_slope {direction}{end}", model, function, shape, slope_ptr="*u8", **types)
        yield _kernel(f"wide_swiglu {direction}", model, wide_swiglu.wide_swiglu_kernel, shape, **types)


def _own_products(model: str, width: int, hidden: int, architecture: int, itemsize: int = 2) -> Iterator[Kernel]:
    """With the activation within, at the first tile that a tuning tries where the committed shape is a library's."""
    eight = {"x_ptr": "*fp8e4nv", "weight_ptr": "*fp8e4nv", "out_ptr": "*fp8e4nv"} if itemsize == 1 else {}
    for direction in ("forward", "backward"):
        name = f"{'scaled_' if eight else ''}wide_product"
        launch = Launch(f"{name}_{direction}", hidden, architecture, itemsize, 0, "wide_product")
        shape = block_shape(*launch)
        tile = candidates(launch)[1] if shape == LIBRARY else shape
        constants, options = wide_product_triton.launch_shape(tile, architecture >= 90, itemsize)
        how = {"SCALED": bool(eight), "FACTOR": not eight}
        function = getattr(wide_product_triton, f"wide_product_{direction}_kernel")
        floats = _floats("factor", "x_scale", "weight_scale", "bound", "out_scale")
        types = {"slope_ptr": "*u8", "stride": "i32", **floats, **eight}
        yield _kernel(
            f"{name} {direction}", model, function, ({"D": width, **how, **constants}, options), True, **types
        )


def _eight_bits(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    """What writes rows in eight bits: of the stream's width, and of the MLP's."""
    types = {"values_ptr": "*fp8e4nv", "slope_ptr": "*u8"}
    for name, function, columns in (
        ("scaled_rows", scaled_rows.scaled_rows_kernel, width),
        ("scaled_norm", layer_norm_triton.layer_norm_forward_kernel, width),
        ("scaled_activation", scaled_wide_product.scaled_activation_kernel, 4 * width),
        ("scaled_slope", scaled_wide_product.scaled_slope_kernel, 4 * width),
    ):
        constants, options = rows_triton.launch_shape(columns, architecture)
        floats = _floats("scale", "bound", "out_scale", "weight", "bias", "mean", "rstd")
        alone = dict.fromkeys(("RMS", "BRANCH", "UNPACK", "PACK"), False)
        shape = {"D": columns, **alone, **constants}, options
        yield _kernel(name, model, function, shape, **types, **floats)
        if name == "scaled_norm":
            tile, launched = rows_triton.launch_shape(columns, architecture, "layer_norm_branch_forward")
            shape = {**shape[0], **tile, "BRANCH": True}, launched
            stream = _floats("x", "out", "factor", "added")
            yield _kernel("residual scaled_norm", model, function, shape, **types, **floats, **stream)
            tile, launched = rows_triton.launch_shape(columns, architecture, "layer_norm_branch")
            span = {**shape[0], **tile, "SPAN": layer_norm_triton.PART // tile["ROWS"]}
            back, stream = layer_norm_triton.layer_norm_branch_kernel, _floats("dx", "residual", "factor", "partial")
            for norm, normal in (("scaled_norm", False), ("folded scaled_norm", True)):
                sized = {**span, "NORMAL": normal}, launched
                yield _kernel(f"residual {norm} backward", model, back, sized, **types, **floats, **stream)


def _adapter(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    """The adapter of D/4 hidden units, of the published models, and of 64 and 128, with all that may surround it."""
    for hidden in (width // 4, 128, 64):
        for direction in ("forward", "backward"):
            shape = adapter_triton.launch_shape(direction, width, hidden, architecture)
            function, types = (
                getattr(adapter_triton, f"adapter_{direction}_kernel"),
                _floats("residual", "factor", "out", "g"),
            )
            yield _kernel(f"adapter {direction} H {hidden}", model, function, shape, True, **types)


def _stem(model: str, width: int, architecture: int) -> Iterator[Kernel]:
    side = int(model.split("/")[1])
    depth = 3 * side * side
    padded = -(-depth // 8) * 8
    stem = _floats("bias", "class", "position", "temporal", "weight", "ln_bias", "mean", "rstd")
    types = stem | _floats("partial", "tokens", "dtokens")
    shape = {"DEPTH": depth, "COLUMNS": triton.next_power_of_2(depth)}, {"num_warps": 4}
    scalars = {f"{name}_{channel}": "fp32" for name in ("shift", "std") for channel in ("red", "green", "blue")}
    fold = patch_embed_triton.patch_embed_fold_kernel
    yield _kernel("patch_embed fold", model, fold, shape, **_floats("weight", "bias"), **scalars)
    for part, columns, extra in (
        ("patches", padded, {"P": side, "DEPTH": depth, "PADDED": padded}),
        ("tokens", width, {"D": width}),
        ("temporal", width, {"D": width, "SPAN": patch_embed_triton.SPAN}),
    ):
        constants, options = rows_triton.launch_shape(columns, architecture)
        function, shape = getattr(patch_embed_triton, f"patch_embed_{part}_kernel"), ({**extra, **constants}, options)
        yield _kernel(f"patch_embed {part}", model, function, shape, frames_ptr="*u8", **types)


def _floats(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": "*fp32" for name in names}


def _kernel(
    name: str,
    model: str,
    function: Any,
    shape: tuple[dict[str, Any], dict[str, int]],
    tensor_cores: bool = False,
    **types: str,
) -> Kernel:
    """With the constants and options of ``shape``, everything that may be asked of it switched on."""
    constants = {n: v for n, v in {**_FLAGS, **shape[0]}.items() if n in function.arg_names}
    return Kernel(name, model, function, signature_of(function, constants, **types), constants, shape[1], tensor_cores)


_SIZES = ("M", "W", "D", "H", "split")  # of whole batches of 16 clips, and widths
_SWITCHES = (
    "SKIP",
    "RESIDUAL",
    "FACTOR",
    "BIAS",
    "BRANCH",
    "NEEDS_DZ",
    "NEEDS_BIAS",
    "INVERSE",
    "DROPPED",
    "KEPT",
    "PLAIN",
    "SCALED",
    "ADDED",
    "SUM",
)
_FLAGS: dict[str, Any] = {"PRECISION": "tf32", "ACTIVATION": "quick_gelu", **dict.fromkeys(_SWITCHES, True)}


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


def compiled_for(kernel: Kernel, architecture: int) -> Any:
    """What Triton makes of it for sm_<architecture>, with the divisibility by 16 that a launch finds in the models."""
    divisible = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.function.arg_names)
        if name not in kernel.constants and (name.endswith("_ptr") or name.startswith("stride") or name in _SIZES)
    }
    source = ASTSource(
        fn=kernel.function, signature=kernel.signature, constexprs=dict(kernel.constants), attrs=divisible
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=kernel.options)


def compile_kernel(kernel: Kernel, architecture: int) -> Resources:
    """Compiles for sm_<architecture>, and reads the result."""
    compiled = compiled_for(kernel, architecture)
    cubin = compiled.asm["cubin"]
    registers, spilled = usage(cubin)
    matrix = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", compiled.asm["ptx"]))
    return Resources(registers, spilled, spill_share(cubin), compiled.metadata.shared, matrix)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    report = _dump(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {report.strip()[:200]}")
    return int(found[1]), int(found[2]) + int(found[3])


def spill_share(cubin: bytes) -> float:
    """The largest share of instructions that touch spilled registers, of the kernel's and of each loop's.

    Bytes do not say what a spill costs: a value put away once before the loop over keys and taken back after it costs
    nothing, one that the loop itself takes back at every turn does.
    """
    if not usage(cubin)[1]:
        return 0.0
    code = instructions(cubin)
    place = {int(address, 16): index for index, (address, _) in enumerate(code)}
    spans = [(0, len(code) - 1)]
    for index, (_, text) in enumerate(code):
        target = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", text)
        if target and place.get(int(target[1], 16), index) < index:
            spans.append((place[int(target[1], 16)], index))
    touches = [bool(re.search(r"\b(?:LDL|STL)\b", text)) for _, text in code]
    return max(sum(touches[first : last + 1]) / (last + 1 - first) for first, last in spans)


def instructions(cubin: bytes) -> list[tuple[str, str]]:
    """Address and text of each."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", _dump(cubin, "-sass"))
    # behind the last EXIT stand the waits at barriers, which jump back to where they were left
    return code[: max(index for index, (_, text) in enumerate(code) if "EXIT" in text) + 1]


def _dump(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def table() -> str:
    """Markdown: one row a kernel and model, one column an architecture, ``registers / shared KiB``."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for architecture in ARCHITECTURES:
        for kernel in kernels(architecture):
            used = compile_kernel(kernel, architecture)
            spill = f" spills {used.spilled} B" if used.spilled else ""
            cell = f"{used.registers} / {used.shared / 1024:.0f}{spill}"
            rows.setdefault((kernel.name, kernel.model), {})[architecture] = cell
    head = "| kernel | model | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |"
    lines = [head, "|---|---|" + "---|" * len(ARCHITECTURES)]
    for (name, model), cells in rows.items():
        lines.append(f"| {name} | {model} | " + " | ".join(cells.get(a, "–") for a in ARCHITECTURES) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
