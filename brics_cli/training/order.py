"""In which order samples are seen: a pure function of (seed, position), so that a resumed run sees the same.

Shards are permuted, then samples shuffled inside windows of whole shards: reading stays near-sequential on a
collection of any size, and a small one is one window, a full shuffle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np

from brics_cli.runtime.randomness import Stream, keyed_generator

DEFAULT_WINDOW = 16_384


class SampleOrder:
    """The endless sequence of sample indices, epoch after epoch.

    `shards[s]` holds the sample indices of shard s; `window` is the least number of samples shuffled together.
    """

    def __init__(self, shards: Sequence[np.ndarray], *, seed: int, window: int = DEFAULT_WINDOW) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        self.seed = seed
        self.window = window
        self.num_samples = sum(len(shard) for shard in self.shards)
        if not self.num_samples:
            raise ValueError("no samples to order")
        self._windows_of = lru_cache(maxsize=1)(self._permute_shards)
        self._samples_of = lru_cache(maxsize=1)(self._shuffle_window)

    def __getitem__(self, position: int) -> int:
        """The sample index at `position`, counted from the start of training."""
        epoch, offset = divmod(position, self.num_samples)
        starts, _ = self._windows_of(epoch)
        number = bisect_right(starts, offset) - 1
        return int(self._samples_of(epoch, number)[offset - starts[number]])

    def batch(self, start: int, size: int) -> list[int]:
        """The `size` sample indices from position `start` on; epochs follow one another without a gap."""
        return [self[position] for position in range(start, start + size)]

    def windows(self, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """(position of its first sample, its samples in order) of the window with `position` and all after it.

        Without end: epochs follow one another.
        """
        for epoch in count(position // self.num_samples):
            for number, start in enumerate(self._windows_of(epoch)[0]):
                first, samples = epoch * self.num_samples + start, self._samples_of(epoch, number)
                if first + len(samples) > position:
                    yield first, samples

    def _permute_shards(self, epoch: int) -> tuple[list[int], list[list[int]]]:
        """Where in the epoch its windows start, and the shards of each."""
        permuted = keyed_generator(self.seed, epoch, stream=Stream.DATA_ORDER).permutation(len(self.shards))
        starts: list[int] = []
        windows: list[list[int]] = []
        total = 0
        for shard in permuted.tolist():
            if not starts or total - starts[-1] >= self.window:
                starts.append(total)
                windows.append([])
            windows[-1].append(shard)
            total += len(self.shards[shard])
        return starts, windows

    def _shuffle_window(self, epoch: int, number: int) -> np.ndarray:
        samples = np.concatenate([self.shards[shard] for shard in self._windows_of(epoch)[1][number]])
        return keyed_generator(self.seed, epoch, number + 1, stream=Stream.DATA_ORDER).permutation(samples)
