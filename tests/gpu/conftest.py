"""Everything here needs a GPU of compute capability 8.0 or more, and says so where there is none."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import goals

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter, config):
    """Ends `pytest tests/gpu`, and every run on a GPU, with the goals that speed and memory are held to, from the
    figures kept in bench/results/."""
    asked = [config.invocation_params.dir / argument.split("::")[0] for argument in config.args]
    if not torch.cuda.is_available() and not all(HERE in (path, *path.parents) for path in asked):
        return
    text = io.StringIO()
    Console(file=text, width=120).print(goals.table(goals.judge(goals.read_results())))
    terminalreporter.write(f"\n{text.getvalue()}python -m bench --out DIR measures them again\n")
