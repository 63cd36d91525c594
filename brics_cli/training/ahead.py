"""Batches prepared one ahead of the device, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


def one_ahead(read: Callable[[int], T], *, first_step: int, threaded: bool) -> Generator[T, None, None]:
    """`read(step)` for every step from `first_step` on, without end; close it when done.

    `threaded`: the next one is read while the device computes on this one.
    """
    if not threaded:
        yield from map(read, count(first_step))
    with ThreadPoolExecutor(1, thread_name_prefix="brics-ahead") as reader:
        next_one = reader.submit(read, first_step)
        for step in count(first_step + 1):
            current, next_one = next_one.result(), reader.submit(read, step)
            yield current


def pinned(tensor: Tensor, *, on: bool) -> Tensor:
    """`tensor` in pinned memory, from where a copy to CUDA is not waited for; as it is unless `on`."""
    return tensor.pin_memory() if on else tensor
