"""What a person sees while a run works: a bar on a terminal or in a notebook, plain lines elsewhere.

All of it goes to stderr; in a notebook to the cell, where the bar is one line that is written anew in its place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

_SECONDS = 0.25  # between two writings of a notebook's line
_WIDTH = 24  # letters of its bar


class _NotebookLine:
    """A line in a notebook's cell, shown when it is first written."""

    def __init__(self) -> None:
        self.shown: Any = None
        self.written = 0.0

    def write(self, text: str, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self.written < _SECONDS:
            return
        self.written = now
        content = {"text/plain": text}
        if self.shown is None:
            from IPython.display import display

            self.shown = display(content, raw=True, display_id=True)
        else:
            self.shown.update(content, raw=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose cells show what is displayed."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    shell = sys.modules.get("IPython.core.getipython")
    return bool(kernel and shell and isinstance(shell.get_ipython(), kernel.ZMQInteractiveShell))


class RunProgress:
    """One bar at a time, with loss, clips/s, data-wait %, peak memory and remaining time; ``quiet`` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = {"loss": "", "wait": "", "peak": ""}
        self._line = _NotebookLine() if in_notebook() and not quiet else None

    @property
    def shown(self) -> bool | None:
        """What to tell others that draw a bar: None to draw it on a terminal, False for never."""
        return False if self.console.quiet else None

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        self.console.print(line, markup=False)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Opens a bar of ``total`` clips, ``done`` of them from before."""
        if self.console.quiet or not (self._line or sys.stderr.isatty()):
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=self._line is not None,  # it then counts and draws nothing
        )
        self._bar.start()
        self._task = self._bar.add_task(what, total=total, completed=done, detail="")

    def advance(self, clips: int, **shown: str) -> None:
        """Counts clips; ``shown`` are short texts beside the bar, kept until they change."""
        if self._bar is None or self._task is None:
            return
        self._shown |= shown
        speed = self._bar.tasks[0].speed or 0.0
        detail = " ".join(text for text in (*self._shown.values(), f"{speed:.1f} clips/s") if text)
        self._bar.update(self._task, advance=clips, detail=detail)
        if self._line:
            self._line.write(self._in_one_line())

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """A function that counts up a bar of ``total`` things."""
        self.close()
        self.start(what, total)
        return lambda count: self.advance(count)

    def bar(self, what: str) -> Callable[[int, int], None]:
        """A function of (things done, all things) that draws a bar, opened when it is first called."""
        drawn: int | None = None

        def show(done: int, total: int) -> None:
            nonlocal drawn
            if drawn is None:
                self.close()
                self.start(what, total)
            self.advance(done - (drawn or 0))
            drawn = done

        return show

    def _in_one_line(self) -> str:
        task = self._bar.tasks[0]  # type: ignore[union-attr]
        done = round(_WIDTH * task.percentage / 100)
        bar = "━" * done + "╌" * (_WIDTH - done)
        left = f" {task.time_remaining:.0f} s left" if task.time_remaining and not task.finished else ""
        return f"{task.description} {bar} {task.percentage:3.0f}% {task.fields['detail']}{left}"

    def close(self) -> None:
        if self._bar:
            if self._line:
                self._line.write(self._in_one_line(), at_once=True)
            self._bar.stop()
        self._bar = self._task = None
