"""In which order samples are seen: a pure function of (seed, position), so that a resumed run sees the same.

Shards are permuted, then samples shuffled inside windows of whole shards: reading stays near-sequential on a
collection of any size, and a small one is one window, a full shuffle. A window that may not be so large is cut: its
shards into runs of consecutive samples, which are permuted, and some of them shuffled together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, count

import numpy as np

from brics_cli.runtime.randomness import Stream, keyed_generator

DEFAULT_WINDOW = 16_384
RUNS = 16
"""Of a window that was cut: as many places of its shards are mixed, and each is still read in one go."""


class SampleOrder:
    """The endless sequence of sample indices, epoch after epoch.

    `shards[s]` holds the sample indices of shard s; `window` is the least number of samples shuffled together, `most`
    the largest that a window may have before it is cut.
    """

    def __init__(
        self, shards: Sequence[np.ndarray | range], *, seed: int, window: int = DEFAULT_WINDOW, most: int | None = None
    ) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        self.seed = seed
        self.window = window
        self.most = most
        self.num_samples = sum(len(shard) for shard in self.shards)
        if not self.num_samples:
            raise ValueError("no samples to order")
        self._windows_of = lru_cache(maxsize=1)(self._cut_epoch)
        self._samples_of = lru_cache(maxsize=1)(self._shuffle_window)

    def __getitem__(self, position: int) -> int:
        """The sample index at `position`, counted from the start of training."""
        epoch, number, offset = self._place(position)
        return int(self._samples_of(epoch, number)[offset])

    def batch(self, start: int, size: int) -> list[int]:
        """The `size` sample indices from position `start` on; epochs follow one another without a gap."""
        found: list[int] = []
        while len(found) < size:
            epoch, number, offset = self._place(start + len(found))
            found += self._samples_of(epoch, number)[offset : offset + size - len(found)].tolist()
        return found

    def _place(self, position: int) -> tuple[int, int, int]:
        """Epoch, number of the window in it, and place in that window."""
        epoch, offset = divmod(position, self.num_samples)
        starts, _ = self._windows_of(epoch)
        number = bisect_right(starts, offset) - 1
        return epoch, number, offset - starts[number]

    def window_of(self, position: int) -> tuple[int, list[int]]:
        """The position after the window that `position` is in, and a sample of each of its shards."""
        epoch, number, offset = self._place(position)
        starts, windows = self._windows_of(epoch)
        end = starts[number + 1] if number + 1 < len(starts) else self.num_samples
        return position - offset + end - starts[number], [int(shard[0]) for shard in windows[number]]

    def windows(self, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """(position of its first sample, its samples in order) of the window with `position` and all after it.

        Without end: epochs follow one another.
        """
        for epoch in count(position // self.num_samples):
            for number, start in enumerate(self._windows_of(epoch)[0]):
                first, samples = epoch * self.num_samples + start, self._samples_of(epoch, number)
                if first + len(samples) > position:
                    yield first, samples

    def _cut_epoch(self, epoch: int) -> tuple[list[int], list[list[np.ndarray | range]]]:
        """Where in the epoch its windows start, and the samples of each, not yet shuffled."""
        generator = keyed_generator(self.seed, epoch, stream=Stream.DATA_ORDER)
        of_whole_shards: list[list[np.ndarray | range]] = []
        num_in_last = 0
        for shard in generator.permutation(len(self.shards)).tolist():
            if not of_whole_shards or num_in_last >= self.window:
                of_whole_shards.append([])
                num_in_last = 0
            of_whole_shards[-1].append(self.shards[shard])
            num_in_last += len(self.shards[shard])
        windows = [part for window in of_whole_shards for part in self._cut(window, generator)]
        return [0, *accumulate(sum(map(len, window)) for window in windows)][:-1], windows

    def _cut(self, window: list[np.ndarray | range], generator: np.random.Generator) -> list[list[np.ndarray | range]]:
        """`window` itself, or windows of at most `most` samples with the same ones."""
        if self.most is None or sum(map(len, window)) <= self.most:
            return [window]
        num_runs = min(RUNS, self.most)
        length = self.most // num_runs
        runs = [shard[start : start + length] for shard in window for start in range(0, len(shard), length)]
        permuted = [runs[number] for number in generator.permutation(len(runs)).tolist()]
        return [permuted[start : start + num_runs] for start in range(0, len(permuted), num_runs)]

    def _shuffle_window(self, epoch: int, number: int) -> np.ndarray:
        samples = np.concatenate(self._windows_of(epoch)[1][number])
        return keyed_generator(self.seed, epoch, number + 1, stream=Stream.DATA_ORDER).permutation(samples)
