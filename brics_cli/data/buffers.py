"""Memory for batches of pixels, used again and again, and shared with processes that decode into it."""

from __future__ import annotations

import mmap
import os
import sys
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
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == 3:  # the list, this loop, the argument: every view of it would count too
                return buffer[:num_images]
        return np.empty((num_images, *self._shape[1:]), np.uint8)


class SharedBuffers(Buffers):
    """The same in memory that other processes can map: the file `descriptor` of `num_bytes`.

    A memfd: it has no name that could be left behind, takes no room in /dev/shm, of which containers have little, and
    is gone with the last process that holds it. Linux alone; raises OSError where there is no memory for it.
    """

    def __init__(self, shape: tuple[int, ...], *, num: int) -> None:
        self._shape = shape
        self.num_bytes = num * prod(shape)
        self.descriptor = os.memfd_create("brics-batches")
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
