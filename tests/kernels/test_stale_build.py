"""A C++ part that its sources have left behind, or that does not load, is named in one line and not used.

Each case is a process of its own, on a copy of the package beside a copy of the sources.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aim_kernels import extension, sources

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not extension.available(), reason="aim_kernels._C is not built"),
]

PACKAGE = Path(extension.__file__).parent
TIER = ("-c", "from aim_kernels import extension; print(extension.__file__, extension.tier(), extension.available())")
BUILD_AGAIN = "pip install --no-build-isolation -e ."


@pytest.fixture
def checkout(tmp_path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "kernels" / "aim_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(sources.FOLDER, tmp_path / "csrc")
    return tmp_path


def run(checkout: Path, *arguments: str) -> tuple[str, str]:
    path = os.pathsep.join((str(checkout / "kernels"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=PACKAGE.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout, process.stderr


def changed(checkout: Path) -> None:
    with (checkout / "csrc" / "vector.h").open("a") as file:
        file.write("\n")


def added(checkout: Path) -> None:
    (checkout / "csrc" / "tier_sve.cpp").write_text("// another tier\n")


def renamed(checkout: Path) -> None:
    (checkout / "csrc" / "product.h").rename(checkout / "csrc" / "products.h")


@pytest.mark.parametrize("change", [changed, added, renamed])
def test_a_build_of_other_sources_is_named_and_not_used(checkout, change):
    change(checkout)
    out, err = run(checkout, *TIER)
    assert out.split() == [str(checkout / "kernels" / "aim_kernels" / "extension.py"), "reference", "False"]
    (line,) = err.splitlines()
    assert "_C.abi3.so was not built from the sources in" in line
    assert str(checkout / "csrc") in line
    assert BUILD_AGAIN in line


@pytest.mark.parametrize("installed", [False, True], ids=["checkout", "installed"])
def test_a_build_is_used_beside_its_sources_and_without_any(checkout, installed):
    if installed:
        shutil.rmtree(checkout / "csrc")
    out, err = run(checkout, *TIER)
    assert out.split()[-1] == "True"
    assert not err


def test_a_build_that_does_not_load_is_named(checkout):
    shutil.rmtree(checkout / "csrc")
    (checkout / "kernels" / "aim_kernels" / "_C.abi3.so").write_text("built for another machine\n")
    out, err = run(checkout, *TIER)
    assert out.split()[-1] == "False"
    (line,) = err.splitlines()
    assert "_C.abi3.so does not load with torch" in line
    assert BUILD_AGAIN in line


def test_doctor_names_it(checkout):
    changed(checkout)
    out, _ = run(checkout, "-m", "aim_fast", "doctor")
    (line,) = [line for line in out.splitlines() if "CPU operators" in line]
    assert "plain PyTorch (_C.abi3.so was not built from the sources in" in line
    assert BUILD_AGAIN in line


def test_launches_of_another_torch_are_replayed_from_python(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert extension.replays() is None
