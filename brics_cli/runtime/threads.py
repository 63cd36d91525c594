"""How many threads compute on the CPU and how they wait, settled in the environment before torch is imported.

What the user has set stands, and processes started from here inherit all of it.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_NUM_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def free_cores() -> int:
    """The cores that this process may compute on: those it is bound to, no more than its container is given.

    Other programs count not: how busy they are now says nothing of the next hours, and with another number of threads
    sums come out in another order.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
