"""Progress: a rich bar on a terminal, one plain line every 10 s elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from brics_cli.runtime.reporting import Task, printable

PLAIN_LINE_EVERY_S = 10.0


class ConsoleReporter:
    """The `Reporter` of the command line; writes to stderr alone."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @contextmanager
    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> Iterator[Task]:
        if self.quiet:
            yield _Clock(total, unit, initial)
        elif self.console.is_terminal:
            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            ) as bar:
                task = _BarTask(bar, description, total, unit, initial)
                yield task
            self.message(task.summary(description))
        else:
            plain = _PlainTask(self.console, description, total, unit, initial)
            yield plain
            self.message(plain.summary(description))

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text)

    def warning(self, text: str) -> None:
        # One print: while a bar is shown, rich redraws after each.
        self.console.print(Text.assemble(("warning: ", "yellow"), printable(text)))


class _Clock:
    """Counts units and time; the base of both displays."""

    def __init__(self, total: int | None, unit: str, initial: int) -> None:
        self.total = total
        self.unit = unit
        self.initial = self.done = initial
        self.note = ""
        self.start = time.monotonic()

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        self.done += num_units
        if note is not None:
            self.note = note

    @property
    def per_s(self) -> float:
        return (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)

    def status(self) -> str:
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{count} {self.unit}", f"{_rate(self.per_s)} {self.unit}/s"]
        if self.total is not None and self.done > self.initial:
            parts.append(f"ETA {_duration((self.total - self.done) / max(self.per_s, 1e-9))}")
        if self.note:
            parts.append(self.note)
        return "  ".join(parts)

    def summary(self, description: str) -> str:
        elapsed = time.monotonic() - self.start
        text = f"{description}: {self.done:,} {self.unit} in {_duration(elapsed)} ({_rate(self.per_s)}/s)"
        return f"{text}  {self.note}" if self.note else text


class _BarTask(_Clock):
    def __init__(self, bar: Progress, description: str, total: int | None, unit: str, initial: int) -> None:
        super().__init__(total, unit, initial)
        self.bar = bar
        self.id: TaskID = bar.add_task(description, total=total, completed=initial, status="")

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        super().advance(num_units, note=note)
        self.bar.update(self.id, completed=self.done, status=self.status())


class _PlainTask(_Clock):
    def __init__(self, console: Console, description: str, total: int | None, unit: str, initial: int) -> None:
        super().__init__(total, unit, initial)
        self.console = console
        self.description = description
        self.last_line = self.start

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        super().advance(num_units, note=note)
        now = time.monotonic()
        if now - self.last_line >= PLAIN_LINE_EVERY_S:
            self.last_line = now
            self.console.print(f"{self.description}: {self.status()}")


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
