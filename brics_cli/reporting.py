"""How a job tells what it is doing without printing: the `Reporter` protocol, implemented by `brics_cli.cli`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work whose progress is shown."""

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        """`num_units` more are done; `note` replaces the short status text beside the bar."""


class Reporter(Protocol):
    """Where a job sends progress and messages. Never results: those are the job's return value."""

    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> AbstractContextManager[Task]:
        """Show a task of `total` units (None: unknown), `initial` of them done before, while the block runs."""

    def message(self, text: str) -> None:
        """Say one thing worth knowing."""

    def warning(self, text: str) -> None:
        """Say one thing the user may want to act on."""


class _SilentTask:
    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        pass


class SilentReporter:
    """Says nothing: for library use and tests."""

    @contextmanager
    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> Iterator[Task]:
        yield _SilentTask()

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass
