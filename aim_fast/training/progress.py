"""What a person sees while a run works: a bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn


class RunProgress:
    """One bar at a time, with loss, clips/s, data-wait %, peak memory and remaining time; ``quiet`` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = {"loss": "", "wait": "", "peak": ""}

    @property
    def shown(self) -> bool | None:
        """What to tell others that draw a bar: None to draw it on a terminal, False for never."""
        return False if self.console.quiet else None

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        self.console.print(line, markup=False)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Opens a bar of ``total`` clips, ``done`` of them from before."""
        if self.console.quiet or not sys.stderr.isatty():
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

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar = self._task = None
