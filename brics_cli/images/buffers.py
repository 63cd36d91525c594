"""Memory for batches of pixels, used again and again, and shared with processes that decode into it."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from math import prod

import numpy as np


class Buffers:
    """`num` places for batches of `shape`, each taken again once nobody holds a batch that was in it.

    Fresh memory costs a page fault and a page of zeros for every 4 KiB: a fifth of the time of decoding small JPEGs.
    """

    def __init__(self, shape: tuple[int, ...], *, num: int) -> None:
        self._shape = shape
        self._buffers = [np.empty(shape, np.uint8) for _ in range(num)]

    def take(self, num_images: int) -> np.ndarray:
        """A place for so many images, of undefined content."""
        for num_references, buffer in _references(self._buffers):
            if num_references == _WHEN_FREE:
                return buffer[:num_images]
        return np.empty((num_images, *self._shape[1:]), np.uint8)


class SharedBuffers(Buffers):
    """The same in memory that other processes can map: the file `descriptor` of `num_bytes`.

    A memfd: it has no name that could be left behind, takes no room in /dev/shm, of which containers have little, and
    is gone with the last process that holds it. Linux alone. Raises OSError; but memory is taken only when it is used.
    """

    def __init__(self, shape: tuple[int, ...], *, num: int) -> None:
        self._shape = shape
        self.num_bytes = num * prod(shape)
        created = os.memfd_create("brics-batches")
        try:
            self.descriptor = above_standard_streams(created)
        finally:
            os.close(created)
        try:
            os.ftruncate(self.descriptor, self.num_bytes)
            memory = memoryview(mmap.mmap(self.descriptor, self.num_bytes))
        except BaseException:
            self.close()
            raise
        parts = (memory[number * prod(shape) : (number + 1) * prod(shape)] for number in range(num))
        self._buffers = [np.ndarray(shape, np.uint8, part) for part in parts]  # no view: it is what views hold
        self._address = self._buffers[0].ctypes.data

    def offset(self, images: np.ndarray) -> int | None:
        """Where contiguous `images` begin in the shared memory, in bytes; None when they are not in it."""
        offset = images.ctypes.data - self._address
        return offset if 0 <= offset < self.num_bytes else None

    def close(self) -> None:
        """Close the descriptor: no process can be given the memory any more. Batches stay whole."""
        os.close(self.descriptor)


def _references(buffers: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """How many references there are to each buffer, those of every view of it and of this loop included."""
    for buffer in buffers:
        yield sys.getrefcount(buffer), buffer


_WHEN_FREE = next(_references([np.empty(0)]))[0]


def above_standard_streams(descriptor: int) -> int:
    """A duplicate with a number that no standard stream has, for a process that is started with it.

    In a program whose standard streams are closed the next file gets one of their numbers, and what the process writes
    to that stream would go into the file.
    """
    import fcntl  # not on every system

    duplicate: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    return duplicate
