"""Every Triton kernel compiles for every architecture at the sizes of B/16 and L/14, as the block table launches it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("triton")
import triton

from bench import ahead_of_time

pytestmark = pytest.mark.stack
PINNED = triton.__version__.startswith("3.6.")  # by whose registers the table's shapes were chosen
# instructions are chosen by the compiler: 3.8 writes a minimum otherwise, and statistics go by way of shared memory
compiler = pytest.mark.skipif(not PINNED, reason="of Triton 3.6's instructions")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ahead_of_time.ARCHITECTURES)
def test_kernels_fit_the_card(architecture):
    faults = []
    for kernel in ahead_of_time.kernels(architecture):
        used = ahead_of_time.compile_kernel(kernel, architecture)
        name = f"{kernel.name} {kernel.model}"
        if used.spilled if PINNED else used.spill_share > ahead_of_time.HARMLESS_SPILLS:
            faults.append(f"{name}: {used.spilled} bytes spilled, {used.spill_share:.1%} of instructions touch them")
        if used.shared > ahead_of_time.SHARED_LIMIT[architecture]:
            faults.append(f"{name}: {used.shared} bytes of shared memory")
        if kernel.tensor_cores and not used.matrix_instructions:
            faults.append(f"{name}: no tensor-core instruction")
    assert not faults, "; ".join(faults)


@pytest.mark.slow
def test_what_spills_for_lack_of_warps_is_found():
    """The same tile on a quarter of the threads: every one holds four times as much."""
    (kernel,) = [
        kernel
        for kernel in ahead_of_time.kernels(90)
        if (kernel.name, kernel.model) == ("spatial_attention backward_queries", "L/14")
    ]
    starved = kernel._replace(options={**kernel.options, "num_warps": 1})
    assert ahead_of_time.compile_kernel(kernel, 90).spill_share == 0
    used = ahead_of_time.compile_kernel(starved, 90)
    assert used.spilled > 128
    assert used.spill_share > ahead_of_time.HARMLESS_SPILLS


@compiler
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_slopes_code_is_made_and_read_without_a_conversion(direction):
    """Conversions are as slow as the exponentials beside them. NaN's code costs a minimum, not a test and a choice."""
    (kernel,) = [k for k in ahead_of_time.kernels(80) if (k.name, k.model) == (f"wide_slope {direction}", "B/16")]
    code = ahead_of_time.instructions(ahead_of_time.compiled_for(kernel, 80).asm["cubin"])
    words = Counter(word.partition(".")[0] for _, text in code for word in text.split()[:2])
    assert not words.keys() & {"F2I", "I2F", "I2FP"}
    elements = kernel.constants["ROWS"] * kernel.constants["COLUMNS"] // (32 * kernel.options["num_warps"])
    assert words["FMNMX"] == (elements if direction == "forward" else 0)


@compiler
def test_the_statistics_of_queries_are_not_read_four_bytes_at_a_time():
    (kernel,) = [
        k for k in ahead_of_time.kernels(80) if (k.name, k.model) == ("spatial_attention backward_keys", "B/16")
    ]
    code = ahead_of_time.instructions(ahead_of_time.compiled_for(kernel, 80).asm["cubin"])
    loads = {word for _, text in code for word in text.split()[:2] if word.startswith(("LDG.", "LDGSTS"))}
    assert loads
    assert not loads & {"LDG.E", "LDGSTS.E"}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_what_a_tuning_tries_fits_the_card(architecture):
    def fault(kernel):
        used = ahead_of_time.compile_kernel(kernel, architecture)
        fits = used.shared <= ahead_of_time.SHARED_LIMIT[architecture]
        fits = fits and used.spill_share <= ahead_of_time.HARMLESS_SPILLS
        return None if fits and (used.matrix_instructions or not kernel.tensor_cores) else f"{kernel.name}: {used}"

    kernels = list(ahead_of_time.candidate_kernels(architecture))
    assert len(kernels) > 100
    with ThreadPoolExecutor(2) as pool:
        faults = [found for found in pool.map(fault, kernels) if found]
    assert not faults, "; ".join(faults)
