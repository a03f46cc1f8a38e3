"""What the pages say is there: links, files and modules that they name, commands that they show, code that runs."""

import re
from pathlib import Path

import click
import pytest
import torch

from aim_fast import create_model
from aim_fast.cli import COMMANDS, cli
from aim_fast.data.formats import DATASETS
from aim_fast.models import registry
from aim_fast.models.entry import Entry
from aim_fast.models.heads import HEADS
from aim_fast.models.methods import method_lines

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "bench", "kernels", "aim_fast", "csrc", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
PLACEHOLDERS = {
    "aim_deit_distilled.py",
    "deit_record.py",
    "before.py",
    "change.py",
    "NAME.py",
}  # files that a page tells its reader to write
every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
OPTIONS = {
    name: {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}
    | {"--help", "--debug"}
    for name in COMMANDS
    if (command := cli.get_command(click.Context(cli), name))
}
OTHERS = {"--before-ratio", "--since", "--distillation"}  # of the parts that pages tell their reader to add
# of programs that pages name beside ours: torchrun, pip, pytest, python -m bench
OTHERS |= {"--max-restarts", "--no-build-isolation", "--minutes", "--out", "--json", "--version"}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page: Path) -> list[str]:
    """The indented and fenced lines of a page, a command that goes on behind a backslash as one line."""
    joined = page.read_text().replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if re.match(r" {4,}\S", line)]


def spans(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("    "))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


@every_page
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@every_page
def test_every_file_that_is_named_exists(page):
    for name in re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)}|aim_kernels)/[\w./{{}},*-]*[\w/}}]", page.read_text()):
        if Path(name).name in PLACEHOLDERS:
            continue
        folder = ROOT / "kernels" if name.startswith("aim_kernels/") else ROOT
        choices = re.search(r"\{([^}]*)\}", name)
        for choice in choices[1].split(",") if choices else ("",):
            one = name.replace(choices[0], choice) if choices else name
            assert any(folder.glob(one.rstrip("/"))), f"{one} is not there"


@every_page
def test_every_module_that_is_named_exists(page):
    for name in re.findall(r"(?<![\w/.-])(?:aim_fast|aim_kernels|bench|docs)(?:\.[a-z]\w*)+", page.read_text()):
        parts = name.split(".")
        folder = ROOT / "kernels" if parts[0] == "aim_kernels" else ROOT
        known = max(n for n in range(1, len(parts) + 1) if module(folder.joinpath(*parts[:n])))
        attributes = parts[known:]
        if attributes in (["md"], ["py"]) or (attributes and f"{attributes[0]}.py" in PLACEHOLDERS):
            continue  # a file's name
        source = module(folder.joinpath(*parts[:known])).read_text()
        assert all(re.search(rf"\b{word}\b", source) for word in attributes), f"{name} is not there"


def module(path: Path) -> Path | None:
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.exists()), None)


@every_page
def test_every_command_that_is_shown_has_these_options(page):
    for line in [*blocks(page), *spans(page)]:
        line = line.split("  #")[0]
        begin = re.search(r"\baim[-_]fast ([a-z]+)(?![\w=-])", line) or re.match(rf"({'|'.join(COMMANDS)}) --", line)
        if begin is None:
            continue
        assert begin[1] in COMMANDS, line
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", line[begin.end(1) :])) - OPTIONS[begin[1]]
        assert not unknown, f"{line}: no {', '.join(unknown)}"


@every_page
def test_every_option_that_is_named_is_one_of_some_command(page):
    options = set().union(*OPTIONS.values(), OTHERS)
    named = {option for span in spans(page) for option in re.findall(r"^--[a-z][\w-]*", span)}
    assert named <= options


@every_page
def test_every_recipe_and_target_that_is_named_exists(page):
    recipes = {file.stem for file in (ROOT / "aim_fast/training/recipes").glob("*.yaml")}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in [*blocks(page), *spans(page)]:
        if re.fullmatch(r"(?:ssv2|k400|k700|diving48|finetune)_[a-z0-9_]+", line):
            assert line in recipes
        if asked := re.match(r"make (\w+)(?=$|\s\s)", line):
            assert asked[1] in targets


def test_the_page_on_data_names_every_data_set():
    named = set(re.findall(r"`([\w-]+)`", (ROOT / "docs/data.md").read_text()))
    assert set(DATASETS) <= named


def test_the_tables_of_methods_and_heads_have_a_row_for_each():
    for page, names in (("methods", method_lines()), ("heads", HEADS)):
        rows = re.findall(r"^\| `(\w+)` \|", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE)
        assert sorted(rows) == sorted(names)


def test_the_index_names_every_page_of_the_folder():
    linked = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_readmes_code_runs_as_printed(tmp_path, monkeypatch):
    """On a B/16 of two blocks, which takes a sixth of the time."""
    entry = registry.MODELS["aim_vit_b16_clip"]
    shallow = Entry(entry.model, {**entry.arguments, "depth": 2})
    monkeypatch.setattr(registry, "MODELS", {**registry.MODELS, "aim_vit_b16_clip": shallow})
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        model = create_model("aim_vit_b16_clip", num_frames=8, num_tadapter=2, adapter_scale=1.0, num_classes=174)
    random = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(meta.shape, generator=random) for name, meta in model.state_dict().items()}
    published = {name if name.startswith("cls_head.") else f"backbone.{name}": state[name] for name in state}
    torch.save({"state_dict": published}, "aim_vit_b16_ssv2.pth")
    names = {}
    with torch.no_grad():
        for code in re.findall(r"^```python\n(.+?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL):
            exec(code, names)
    assert names["logits"].shape == (1, 174)
    assert names["tokens"].shape == (2, 8, 197, 768)
    torch.testing.assert_close(names["model"].state_dict(), state, rtol=0, atol=0)
