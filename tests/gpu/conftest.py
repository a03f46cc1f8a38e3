"""Everything here needs a GPU of compute capability 8.0 or more, and says so where there is none."""

import io

import pytest
import torch
from rich.console import Console

from bench import goals


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter):
    """Ends with the goals that speed and memory are held to, from the figures kept in bench/results/."""
    text = io.StringIO()
    Console(file=text, width=120).print(goals.table(goals.judge(goals.read_results())))
    terminalreporter.write(f"\n{text.getvalue()}python -m bench --out DIR measures them again\n")
