"""The site is built of every page without a warning, and shows without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aim_fast.cli import COMMANDS

pytest.importorskip("furo", reason="the extra docs is not here")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = ("-m", "sphinx", "-q", "-W", "-d", folder / "read", "-c", "docs", ".", folder / "site")
    built = subprocess.run([sys.executable, *build], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "site"


@pytest.mark.slow
def test_every_page_is_reached_and_asks_for_nothing_from_elsewhere(site):
    menu = (site / "docs/README.html").read_text()
    pages = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.rst"), ROOT / "README.md", ROOT / "CHANGELOG.md"}
    for page in pages - {ROOT / "docs/README.md"}:
        assert re.search(rf'href="(\.\./)?{page.stem}\.html"', menu), f"{page.stem} is not in the menu"
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|source|iframe)[^>]* src(?:set)?="([^"]+)"', page.read_text())
        fetched += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', page.read_text())
        for address in fetched:
            assert not address.startswith(("http:", "https:", "//")), f"{page.name} fetches {address}"
            assert (page.parent / address.split("?")[0]).exists() or address.startswith("data:"), address


@pytest.mark.slow
def test_commands_and_functions_stand_in_the_reference(site):
    commands = (site / "docs/commands.html").read_text()
    assert all(f'id="{name}"' in commands for name in COMMANDS)
    functions = (site / "docs/api.html").read_text()
    assert all(f'id="aim_fast.{name}"' in functions for name in __import__("aim_fast").__all__)
