"""Tasks without work for `brics bench executor`: workers import little for them, so that many fit a machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

NUM_BATCHES = 16
"""Of a shard of 1,000 images, 64 at a time."""


@dataclass(frozen=True)
class Told:
    """An event as `codes.encoding.Progress` is one."""

    num_read: int = 0
    num_encoded: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    num_enlarged: int = 0
    num_multi_frame: int = 0
    num_tasks: int = 0


@dataclass(frozen=True)
class NoWork:
    """Tells of each task what encoding a shard of 1,000 images tells, and sleeps for `seconds` meanwhile.

    It also tells how long it waited for the task after the one before had ended, as the seconds of "idle".
    """

    seconds: float = 0.0

    def __call__(self, device: str) -> Callable[[Iterator[int]], Iterator[Told]]:
        def run(tasks: Iterator[int]) -> Iterator[Told]:
            ended = time.perf_counter()
            for _ in tasks:
                idle = time.perf_counter() - ended
                for _ in range(NUM_BATCHES):
                    time.sleep(self.seconds / NUM_BATCHES)
                    yield Told(64, 64, [], {"wait": 0.1, "compute": 0.1, "write": 0.1})
                ended = time.perf_counter()
                yield Told(num_tasks=1, seconds={"idle": idle})

        return run
