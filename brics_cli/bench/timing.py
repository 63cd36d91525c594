"""What benchmarks share: timing that is honest about asynchronous devices, memory, and the report they end in."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Table:
    """A table to show: the first column left, the others right."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What a benchmark found: `value` as JSON, and what is shown of it, in order."""

    value: dict[str, Any]
    shown: list[Table | str]


def median_seconds(
    work: Callable[[], object],
    *,
    device: torch.device,
    repeats: int,
    warmup: int = 3,
    budget_s: float | None = None,
) -> float:
    """The median seconds of one call of `work`: by events of the device on CUDA, by the clock elsewhere.

    `warmup` calls come first and do not count. Past `budget_s` seconds it stops early, after two calls at least, of
    which the first half (three at most) is the warm-up.
    """
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < warmup + repeats:
        seconds.append(_seconds(work, device))
        if budget_s is not None and len(seconds) >= 2 and time.perf_counter() - start > budget_s:
            break
    return statistics.median(seconds[min(warmup, len(seconds) // 2) :])


def copy_bytes_per_s(device: torch.device, *, repeats: int = 10) -> float:
    """The memory bandwidth of the device: bytes read and written per second by a copy of 256 MiB, no cache's size."""
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device=device, repeats=repeats)
    return 2 * source.nbytes / seconds


def peak_bytes(work: Callable[[], object], *, device: torch.device) -> int | None:
    """Device memory that one call of `work` takes at its peak, above what was allocated before; None but on CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_process_mib() -> float:
    """The peak of this process' resident memory so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_name(device: torch.device) -> str:
    """What the figures were measured on, for the line that stands beside them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    work()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin
