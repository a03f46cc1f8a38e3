"""Runs the folder `interpreted` with Triton's interpreter, in a process of its own: the mode is fixed at decoration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.stack


@pytest.mark.interpreter
@pytest.mark.slow
def test_triton_kernels_agree_with_float64_in_the_interpreter():
    folder = Path(__file__).parent / "interpreted"
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
