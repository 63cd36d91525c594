"""Reading a collection that is not in memory: window by window, in file order, ahead of those who decode.

Each window of the training order is made of whole shards. Its files are read from front to back, one thread per shard,
while the window before it is being used; what is in memory is at most the files, not decoded, of two windows (more only
where a batch spans several).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from brics_cli.images import Collection, ImageError
from brics_cli.training.order import SampleOrder

WINDOWS_AHEAD = 2
SHARDS_AT_ONCE = 4
"""Threads that read; a disk that seeks would not like more, and a network wants more than one."""

Files = dict[int, bytes | ImageError]
"""Files by sample index; one that cannot be read is its error."""


@dataclass(frozen=True)
class _Window:
    first: int
    samples: np.ndarray
    files: dict[int, Future[Files]]
    """By shard."""

    @property
    def end(self) -> int:
        return self.first + len(self.samples)


class WindowReader:
    """The files of the samples at increasing positions of `order`, from `start` on.

    `position_of` gives a sample's (shard, index); `is_mine` says of a position whether this process will ask for it:
    others are not read.
    """

    def __init__(
        self,
        collection: Collection,
        order: SampleOrder,
        *,
        start: int,
        position_of: Callable[[int], tuple[int, int]],
        is_mine: Callable[[int], bool],
    ) -> None:
        self.collection = collection
        self.start = start
        self._position_of = position_of
        self._is_mine = is_mine
        self._source: Iterator[tuple[int, np.ndarray]] = order.windows(start)
        self._windows: deque[_Window] = deque()
        self._pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="brics-read")
        self._closed = threading.Event()

    def take(self, position: int) -> tuple[int, Callable[[], bytes]]:
        """The sample at `position`, and a function that waits for its file; it may be called once, in any thread.

        Positions must not decrease. The function raises ImageError when the file cannot be read.
        """
        while self._windows and self._windows[0].end <= position:
            self._windows.popleft()
        while len(self._windows) < WINDOWS_AHEAD or self._windows[-1].end <= position:
            self._windows.append(self._read(*next(self._source)))
        window = next(window for window in self._windows if position < window.end)
        sample = int(window.samples[position - window.first])
        files = window.files[self._position_of(sample)[0]]

        def file() -> bytes:
            data = files.result().pop(sample)  # and is forgotten: memory falls while a window is used
            if isinstance(data, ImageError):
                raise data
            return data

        return sample, file

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, first: int, samples: np.ndarray) -> _Window:
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for position, sample in enumerate(samples.tolist(), start=first):
            if position >= self.start and self._is_mine(position):
                shard, index = self._position_of(sample)
                by_shard.setdefault(shard, []).append((index, sample))
        files = {
            shard: self._pool.submit(self._read_shard, shard, sorted(by_shard[shard])) for shard in sorted(by_shard)
        }
        return _Window(first, samples, files)

    def _read_shard(self, shard: int, wanted: list[tuple[int, int]]) -> Files:
        files: Files = {}
        for index, sample in wanted:
            if self._closed.is_set():
                break
            try:
                files[sample] = self.collection.read(shard, index).data
            except ImageError as error:
                files[sample] = error
        return files
