"""How a job tells what it is doing without printing: the `Reporter` protocol that `brics_cli.cli` implements."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
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


class TimeSplit:
    """Seconds spent per phase of a loop; as text, the share of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count seconds by phase that another process spent."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def __str__(self) -> str:
        total = max(sum(self.seconds.values()), 1e-9)
        return " ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())


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
