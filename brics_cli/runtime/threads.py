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


def share_the_cores() -> None:
    """Take no more threads than there are free cores, and let them sleep while they have nothing to compute.

    OpenMP's threads would spin for milliseconds after each piece of work. Where another job wants the cores they spin
    while the thread that they wait for is not running: training then takes ten times as long, not twice.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (cores := free_cores()) < (os.cpu_count() or 1) and not any(name in os.environ for name in _NUM_THREADS):
        os.environ["OMP_NUM_THREADS"] = str(cores)
