"""Everything here needs a GPU of compute capability 8.0 or more, and says so where there is none."""

import io
from pathlib import Path

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


def pytest_terminal_summary(terminalreporter, config):
    """Ends `pytest tests/gpu`, and every run on a GPU, with the goals that speed and memory are held to, from the
    figures kept in bench/results/."""
    if not torch.cuda.is_available() and not all("gpu" in Path(argument).parts for argument in config.args):
        return
    text = io.StringIO()
    Console(file=text, width=120).print(goals.table(goals.judge(goals.read_results())))
    terminalreporter.write(f"\n{text.getvalue()}python -m bench --out DIR measures them again\n")
