"""How many threads compute on the CPU and how they wait.

What holds for good is settled in the environment before torch is imported, and processes started from here inherit it;
how busy other programs keep the cores is looked at while torch computes. What the user has set stands.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_CGROUP, _PROC = Path("/sys/fs/cgroup"), Path("/proc")
_NUM_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_EVERY_S = 3.0
"""Between two looks at what other programs take."""


def bound_cores() -> set[int]:
    """The cores that this process is bound to, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def free_cores() -> int:
    """The cores that this process may compute on: those it is bound to, no more than its container is given.

    How many workers start goes by it, for hours; what other programs take for now, `FreeCores` looks at.
    """
    cores = len(bound_cores())
    with suppress(OSError, ValueError):  # no cgroup, or `max`: no limit
        quota, period = map(int, (_CGROUP / "cpu.max").read_text().split())
        cores = min(cores, max(1, math.ceil(quota / period)))
    return cores


SPIN_COUNT = "5000"
"""Turns that a thread waits before it sleeps (GNU's OpenMP): microseconds. With none at all small networks, which wait
at every layer, are slower on idle cores: the demo's diffusion model 10.8 steps/s, not 18.2 (2 cores of an EPYC)."""


def share_the_cores() -> None:
    """Take no more threads than there are free cores, and let them sleep soon while they have nothing to compute.

    OpenMP's threads would spin for milliseconds after each piece of work. Where another job wants the cores they spin
    while the thread that they wait for is not running: training then takes ten times as long, not twice.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if (cores := free_cores()) < (os.cpu_count() or 1) and not any(name in os.environ for name in _NUM_THREADS):
        os.environ["OMP_NUM_THREADS"] = str(cores)


def seconds_of_others() -> float | None:
    """Processor seconds that all but this process and those it started have taken, since the machine's start, of the
    cores it is bound to. None where the system does not say (it is not Linux)."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
        busy = {words[0]: words[1:] for words in map(str.split, lines)}
        ticks = 0
        for core in bound_cores():
            user, nice, system, _, _, irq, softirq = map(int, busy[f"cpu{core}"][:7])
            ticks += user + nice + system + irq + softirq
        own = sum(os.times()[:4])
        for started in _PROC.glob("self/task/*/children"):
            for number in started.read_text().split():
                with suppress(OSError):  # it has ended
                    after_name = (_PROC / number / "stat").read_text().rpartition(")")[2].split()
                    own += sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")
        return ticks / os.sysconf("SC_CLK_TCK") - own
    except (OSError, ValueError, KeyError):
        return None


class FreeCores:
    """Keeps the number of torch's threads at that of the cores which other programs leave free, as it changes.

    Threads wait for each other at the end of every operation. Where one of two is not running, because another program
    has its core, the other one waits for that program's turn to end: two threads are then several times slower than one
    alone. Nothing is done where the number was set: by the user in the environment, or by a caller of torch.
    """

    def __init__(self) -> None:
        self._is_left_alone = any(name in os.environ for name in _NUM_THREADS)
        self._most = self._chosen = 0  # of threads: what torch began with, and what was chosen since
        self._looked = time.monotonic()
        self._others_s = seconds_of_others()

    def choose(self, current: int) -> int:
        """The number to compute in from now on, where torch computes in `current` threads; it looks once in a while."""
        now = time.monotonic()
        if self._is_left_alone or now - self._looked < LOOK_EVERY_S:
            return current
        before, self._others_s = self._others_s, seconds_of_others()
        window_s, self._looked = now - self._looked, now
        self._most = self._most or current
        if before is None or self._others_s is None or current != (self._chosen or self._most):
            return current
        cores, busy = len(bound_cores()), (self._others_s - before) / window_s
        chosen = max(1, min(self._most, round(cores - busy)))
        if chosen < self._most and not self._chosen:
            logger.warning(
                "other programs keep %.1f of %d cores busy: computing in %d of %d threads while they do, which may "
                "change last digits (OMP_NUM_THREADS sets a number that stays)",
                busy, cores, chosen, self._most,
            )  # fmt: skip
        if chosen != current:
            self._chosen = chosen
        return chosen

    @contextmanager
    def left_alone(self, current: int) -> Iterator[int]:
        """Nothing is chosen in the block, which is told the number that torch began with; `current` where a caller has
        set another."""
        before, self._is_left_alone = self._is_left_alone, True
        try:
            yield self._most if current == self._chosen else current
        finally:
            self._is_left_alone = before


FREE_CORES = FreeCores()
"""Of this process; it is made before `share_the_cores` sets what a user might have set."""
