"""The command line: one short file a command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import importlib
import io
import sys
from typing import NoReturn

import click

from aim_fast.errors import AimFastError, nearest

COMMANDS = (
    *("train", "find-lr", "eval", "report", "predict", "look", "index", "datasets", "transcode", "shard", "features"),
    *("embed", "search", "demo", "ablate", "models", "compare", "convert", "export", "push", "pull", "doctor", "tune"),
)


_OPEN = ("eval", "report", "predict", "convert", "export")  # what opens a trained model


class _Commands(click.Group):
    """Finds each command in the module of its name, with _ for -."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"aim_fast.cli.{name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"unknown command {args[0]!r}; {nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Any command takes --debug, which shows where an error came from.",
)
@click.version_option(package_name="aim-fast")
def cli() -> None:
    """Adapts frozen image Transformers to video: trains small adapters on a trunk such as CLIP's."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; exits with 0 when it did what was asked, with 2 and one line on stderr on bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a name may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(arguments, prog_name="aim-fast", standalone_mode=False) or 0)
    except (AimFastError, click.ClickException) as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(message, err=True)
        else:
            click.echo(f"aim-fast: error: {_hint(' '.join(message.split()), error)}", err=True)
        sys.exit(2)
    except OSError as error:
        if debug or error.filename is None:
            raise
        click.echo(f"aim-fast: error: {error.filename}: {error.strerror} (--debug shows where)", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("aim-fast: interrupted; a training run that had begun goes on with --resume", err=True)
        sys.exit(130)


def _hint(message: str, error: Exception) -> str:
    """Says where the options are listed when an option or command was not understood."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    unknown = error.option_name if isinstance(error, click.NoSuchOption) else ""
    if context and context.info_name in _OPEN and unknown in ("--trunk", "--method", "--head"):
        return f"no option {unknown}: a run or a checkpoint says itself what its model is; leave it out"
    return f"{message} (see `{context.command_path} --help`)" if context else message
