"""Where the time of a loop goes, and how long all of it will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from brics_cli.reporting import Reporter

EXPECTATION_AFTER_STEPS = 2
WORTH_A_WARNING = timedelta(minutes=10)


class Clock:
    """Images and seconds since the last lap, the seconds waited for data among them."""

    def __init__(self) -> None:
        self.created = self.start = time.perf_counter()
        self.waited = 0.0
        self.num_images = 0
        self.num_steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start

    def step(self, num_images: int) -> None:
        """One step of `num_images` is done."""
        self.num_images += num_images
        self.num_steps += 1

    def lap(self) -> dict[str, float]:
        """Images per second and the share of time spent waiting, since the last lap; starts the next."""
        seconds = time.perf_counter() - self.start
        lap = {"time/img_per_s": self.num_images / seconds, "time/waiting": self.waited / seconds}
        self.start, self.waited, self.num_images = time.perf_counter(), 0.0, 0
        return lap

    def warn_if_long(self, *, num_steps: int, device: torch.device, reporter: Reporter) -> None:
        """After the first few steps on a CPU, say how long `num_steps` more will take, if that is long."""
        if device.type != "cpu" or self.num_steps != EXPECTATION_AFTER_STEPS:
            return
        per_step = (time.perf_counter() - self.created) / self.num_steps
        expected = timedelta(seconds=round(per_step * num_steps))
        if expected > WORTH_A_WARNING:
            reporter.warning(
                f"on this CPU a step takes {per_step:.2f} s, so {num_steps:,} take about {expected}. Ctrl-C saves "
                "and --resume goes on; --recipe tiny takes minutes; this recipe is made for a GPU"
            )
