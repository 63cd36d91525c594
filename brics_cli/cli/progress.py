"""Progress: a rich bar on a terminal, one plain line every 10 s elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from brics_cli.runtime.reporting import Clock, Task, printable

if TYPE_CHECKING:
    from rich.progress import Progress


class ConsoleReporter:
    """The `Reporter` of the command line; writes to stderr alone."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @contextmanager
    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> Iterator[Task]:
        if self.quiet:
            yield Clock(description, total, unit, initial)
            return
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # takes .05 s

            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            ) as bar:
                task: Clock = _BarTask(bar, description, total, unit, initial)
                yield task
        else:
            task = Clock(description, total, unit, initial, show=self.console.print)
            yield task
        self.message(task.summary())

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text)

    def warning(self, text: str) -> None:
        # One print: while a bar is shown, rich redraws after each.
        self.console.print(Text.assemble(("warning: ", "yellow"), printable(text)))


class _BarTask(Clock):
    def __init__(self, bar: Progress, description: str, total: int | None, unit: str, initial: int) -> None:
        super().__init__(description, total, unit, initial)
        self.bar = bar
        self.id = bar.add_task(description, total=total, completed=initial, status="")

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        super().advance(num_units, note=note)
        self.bar.update(self.id, completed=self.done, status=self.status())
