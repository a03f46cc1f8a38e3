"""The names that scripts rely on: every command with its arguments and options."""

import json
import re
from pathlib import Path

import click
import pytest

from aim_fast.cli import COMMANDS, cli

WRITTEN_DOWN = Path(__file__).parent / "option_names.json"


def names_of(command: click.Command) -> list[str]:
    """Every spelling that a command takes, such as ``--flip`` or ``--compile/--no-compile``; arguments in capitals."""
    spelled = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            spelled.append(parameter.make_metavar(click.Context(command)))
        else:
            spelled.append("/".join([", ".join(parameter.opts), *parameter.secondary_opts]))
    return sorted(spelled)


def test_no_command_and_no_option_changes_its_name():
    found = {name: names_of(cli.get_command(click.Context(cli), name)) for name in COMMANDS}
    assert found == json.loads(WRITTEN_DOWN.read_text())


@pytest.mark.parametrize(
    ("command", "headings"),
    [
        ("train", {"--recipe": "Options", "--model": "Model", "--adapters": "AIM", "--published-freeze": "Swin",
                   "--max-names": "PromptCLIP", "--templates": "Text head", "--data-root": "Data", "--classes": "Data",
                   "--flip": "Augmentation", "--lr": "Optimisation", "--views": "Evaluation", "--seed": "Run"}),
        ("eval", {"--classes": "Options", "--weights": "Model", "--views": "Evaluation", "--device": "Run"}),
    ],
)  # fmt: skip
def test_help_prints_the_options_of_a_recipe_below_their_groups(command, headings):
    found = cli.get_command(click.Context(cli), command)
    _, *parts = re.split(r"^(\S.*):$", found.get_help(click.Context(found)), flags=re.M)
    spelled = re.compile(r"^  (?:-\w, )?(--[\w-]+)", re.MULTILINE)
    lines = [(name, at) for at, text in zip(parts[::2], parts[1::2]) for name in spelled.findall(text)]
    assert dict(lines).items() >= headings.items()
    order = [heading for heading in dict.fromkeys(heading for _, heading in lines) if heading in headings.values()]
    assert order == list(dict.fromkeys(headings.values()))
    options = [parameter.opts[0] for parameter in found.params if isinstance(parameter, click.Option)]
    assert sorted(name for name, _ in lines) == sorted(["--help", *options])
