"""Every Triton kernel compiles for every architecture at the sizes of B/16 and L/14, as the block table launches it."""

import pytest

pytest.importorskip("triton")
from bench import ahead_of_time


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ahead_of_time.ARCHITECTURES)
def test_kernels_fit_the_card(architecture):
    faults = []
    for kernel in ahead_of_time.kernels(architecture):
        used = ahead_of_time.compile_kernel(kernel, architecture)
        name = f"{kernel.name} {kernel.model}"
        if used.spilled:
            faults.append(f"{name}: {used.spilled} bytes spilled")
        if used.shared > ahead_of_time.SHARED_LIMIT[architecture]:
            faults.append(f"{name}: {used.shared} bytes of shared memory")
        if kernel.tensor_cores and not used.matrix_instructions:
            faults.append(f"{name}: no tensor-core instruction")
    assert not faults, "; ".join(faults)
