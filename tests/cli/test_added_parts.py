"""A method, a head and a trunk of docs/methods.md, docs/heads.md and docs/adding_a_trunk.md, added as the pages say.

To a copy of the package, and used from the command line: each brings an option by its record alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("methods", "heads", "adding_a_trunk")]
METHODS, HEADS, TRUNKS = PAGES


def code(page, holds):
    """The printed code of a page that holds this text."""
    return next(text for text in re.findall(r"```python\n(.+?)```", page, re.DOTALL) if holds in text)


def line(page, begins):
    """The indented line of a page that begins so."""
    return re.search(rf"^    ({re.escape(begins)}.*)$", page, re.MULTILINE)[1]


def edit(file, begins, becomes, above=""):
    """Puts a printed line in place of the one of a file that begins so, another at its top."""
    text, count = re.subn(rf"^{re.escape(begins)}.*$", lambda _: becomes, file.read_text(), flags=re.MULTILINE)
    assert count == 1
    docstring = text.index("\n\n")
    file.write_text(f"{text[:docstring]}\n{above}{text[docstring:]}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the command line of the package with the printed parts in it."""
    root = tmp_path_factory.mktemp("added")
    models = root / "aim_fast" / "models"
    shutil.copytree(ROOT / "aim_fast", root / "aim_fast", ignore=shutil.ignore_patterns("__pycache__"))

    (models / "methods" / "before.py").write_text(code(METHODS, "class Before"))
    table = "METHODS: dict"
    edit(models / "methods" / "__init__.py", table, line(METHODS, table), line(METHODS, "from aim_fast"))
    (models / "heads" / "change.py").write_text(code(HEADS, "class Change"))
    table = "HEADS: dict"
    edit(models / "heads" / "__init__.py", table, line(HEADS, table), line(HEADS, "from aim_fast"))

    trunks = models / "trunks"
    both = code(TRUNKS, "class DeiTBothTokens")
    (trunks / "aim_deit_distilled.py").write_text(code(TRUNKS, "class DeiTDistilled"))
    (trunks / "aim_deit_both.py").write_text(both)
    (trunks / "deit_record.py").write_text(code(TRUNKS, "class Distilled"))
    table, record = "TRUNKS: tuple", "from aim_fast.models.trunks.deit_record import Distilled"
    edit(trunks / "__init__.py", table, line(TRUNKS, table), record)
    entry = '    "aim_deit_demo": _clip(8, 64, 4, 2, DeiTBothTokens, reg_tokens=1, img_size=48),'
    begins = '    "aim_vit_imagenet_demo"'
    registry = models / "registry.py"
    old = next(text for text in registry.read_text().splitlines() if text.startswith(begins))
    edit(registry, begins, f"{old}\n{entry}")
    text = registry.read_text()
    registry.write_text(
        text.replace(
            "\nfrom aim_fast", "\nfrom aim_fast.models.trunks.aim_deit_both import DeiTBothTokens\nfrom aim_fast", 1
        )
    )

    path = os.pathsep.join([str(root), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def call(*arguments):
        command = [sys.executable, "-m", "aim_fast", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return call


def options(motion_set):
    sizes = ("--frames", 2, "--batch-size", 8, "--epochs", 1, "--weights", "random", "--quiet")
    return ("--dataset", "ssv2", "--data-root", motion_set, *sizes)


def test_help_has_the_options_of_added_parts_and_their_words(run):
    status, out, err = run("train", "--help")
    assert status == 0, err
    text = " ".join(out.split())
    for heading, option in (("Before", "--before-ratio X"), ("Change", "--since N"), ("Distilled", "--distillation X")):
        assert f" {heading}: {option} " in text
    assert "hidden width of the adapters as a share of the model's width [default: 0.125]" in text
    shipped = (
        "aim, probe, full, timesformer, st_adapter, zeroi2v, bitfit, lora, x_clip, actionclip, evl, side4video, dist"
    )
    assert f"what is put on the trunk: {shipped}, before or promptclip" in text
    assert "change: a classifier on the last frame less another" in text
    text = " ".join(run("models", "--help")[1].split())
    assert f"under these methods: {shipped}, before or promptclip" in text
    assert "under these heads: linear, text, attentive or change" in text


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("--method", "before", "--before-ratio", 2), "before_ratio: 2.0 must be above 0 and at most 1"),
        (("--method", "aim", "--before-ratio", 0.5), "takes no --before-ratio"),
        (("--head", "changes"), "must be one of linear, text, attentive, change"),
    ],
)
def test_options_of_added_parts_are_checked(run, motion_set, parts, message):
    status, _, err = run("train", "--model", "aim_vit_demo", *options(motion_set), *parts)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parts", "group"),
    [
        ("aim_vit_demo", {"method": "before", "before_ratio": 0.5}, "before"),
        ("aim_vit_demo", {"head": "change", "since": 1}, "change"),
        ("aim_deit_demo", {"distillation": 0.5}, "distilled"),
    ],
)
def test_a_run_with_an_added_part_keeps_its_option(run, motion_set, tmp_path, model, parts, group):
    typed = [word for name, value in parts.items() for word in (f"--{name.replace('_', '-')}", value)]
    folder, (option, value) = tmp_path / "run", list(parts.items())[-1]
    status, _, err = run("train", "--model", model, *options(motion_set), *typed, "--output", folder)
    assert status == 0, err
    assert f"{group}:\n  {option}: {value}\n" in (folder / "recipe.yaml").read_text()
    status, out, err = run("eval", folder, "--json", "-")
    assert status == 0, err
    for source, target in ((folder, "one.safetensors"), ("one.safetensors", "again")):
        status, _, err = run("convert", tmp_path / source, tmp_path / target)
        assert status == 0, err
    assert f"{group}:\n  {option}: {value}\n" in (tmp_path / "again" / "recipe.yaml").read_text()
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--json", "-")
    assert json.loads(run("eval", tmp_path / "again", *data)[1])["top1"] == json.loads(out)["top1"]
    status, out, err = run("models", model, *typed[:2]) if "method" in parts or "head" in parts else (0, "", "")
    assert status == 0, err
