"""Timing that is honest about asynchronous devices: warm-up, synchronise, median of repeats."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(work: Callable[[], object], *, device: torch.device, repeats: int, warmup: int = 3) -> float:
    """The median wall-clock seconds of one call of `work`, the device waited for."""
    seconds = []
    for repeat in range(warmup + repeats):
        _wait_for(device)
        start = time.perf_counter()
        work()
        _wait_for(device)
        if repeat >= warmup:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def device_name(device: torch.device) -> str:
    """What the figures were measured on, for the line that stands beside them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
