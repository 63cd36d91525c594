"""Where the time of a loop goes, and how long all of it will take."""

from __future__ import annotations

import time
from datetime import timedelta

import torch

from brics_cli.runtime.reporting import Reporter, TimeSplit

EXPECTATION_AFTER_STEPS = 2
WORTH_A_WARNING = timedelta(minutes=10)


class Clock(TimeSplit):
    """Images and seconds since the last lap: waiting for data, computing, the rest (logging, validating, saving)."""

    def __init__(self) -> None:
        super().__init__()
        self.created = self.start = time.perf_counter()
        self.num_images = 0
        self.num_steps = 0

    def step(self, num_images: int) -> None:
        """One step of `num_images` is done."""
        self.num_images += num_images
        self.num_steps += 1

    def lap(self) -> dict[str, float]:
        """Images per second and the shares of time since the last lap, which sum to 1; starts the next."""
        now = time.perf_counter()
        seconds = now - self.start
        waiting, compute = (self.seconds.get(name, 0.0) / seconds for name in ("waiting", "compute"))
        lap = {"img_per_s": self.num_images / seconds, "waiting": waiting, "compute": compute}
        lap["rest"] = 1.0 - waiting - compute
        self.start, self.num_images, self.seconds = now, 0, {}
        return {f"time/{name}": value for name, value in lap.items()}

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


def time_note(metrics: dict[str, float]) -> str:
    """The end of a status line: images per second and where the time went; empty before the first lap."""
    if "time/img_per_s" not in metrics:
        return ""
    shares = "  ".join(f"{name} {metrics[f'time/{name}']:.0%}" for name in ("waiting", "compute", "rest"))
    return f"  {metrics['time/img_per_s']:,.0f} img/s  {shares}"
