"""The site: the pages of this folder and of the README, every command's help and the Python API, by Sphinx.

`make docs` builds it into build/site. Nothing is fetched.
"""

import re
import shutil
from importlib import metadata
from pathlib import Path

import click

from aim_fast.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]

project = "aim-fast"
release = metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/README"
include_patterns = ["*.md", "docs/*.md", "docs/*.rst", "kernels/README.md", "bench/NOTES.md"]
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 4
# docstrings are prose: what a function takes stands in it once, its types in the signature
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.header"]  # a page may begin its sections at any level


def complete(app, docname, source):
    """The table of contents is that of docs/README.md, the help that of the commands: neither is written twice."""
    text = source[0]
    if docname == root_doc:
        for section, links in re.findall(r"^\*\*(.+)\*\*\n\n((?:- .+\n)+)", text, re.MULTILINE):
            pages = "\n".join(re.findall(r"\]\(([^)]+)\.(?:md|rst)\)", links))
            text += f"\n```{{toctree}}\n:hidden:\n:caption: {section}\n\n{pages}\n```\n"
    if docname == "docs/commands":
        for name in COMMANDS:
            context = click.Context(command := cli.get_command(None, name), info_name=name, parent=click.Context(cli))
            shown = "\n".join(f"    {line}" for line in command.get_help(context).splitlines())
            text += f"\n{name}\n{'-' * len(name)}\n\n::\n\n{shown}\n"
    source[0] = text


def finish(app, error):
    """Pictures that a page names in HTML, which Sphinx leaves as it is; the site's address leads to its first page."""
    if error is None:
        shutil.copytree(ROOT / "docs/figures", Path(app.outdir, "docs/figures"), dirs_exist_ok=True)
        Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/README.html">\n')


def setup(app):
    app.connect("source-read", complete)
    app.connect("build-finished", finish)
