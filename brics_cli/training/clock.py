"""Where the time of a loop goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds spent per phase since the last `lap`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def elapsed(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self.start

    def lap(self) -> dict[str, float]:
        """Seconds in all (`total`) and per phase since the last lap; starts the next."""
        now = time.perf_counter()
        lap = {"total": now - self.start, **self.seconds}
        self.start, self.seconds = now, {}
        return lap
