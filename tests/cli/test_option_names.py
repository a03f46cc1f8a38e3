"""The names that scripts rely on: every command with its arguments and options."""

import json
from pathlib import Path

import click

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
