"""In which order samples are seen: a pure function of (seed, position), so that a resumed run sees the same.

Shards are permuted, then samples shuffled inside windows of whole shards: reading stays near-sequential on a
collection of any size, and a small one is one window, a full shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
            raise ValueError("there is no sample to order")
        self._epoch = -1
        self._starts: list[int] = []
        self._windows: list[list[int]] = []
        self._drawn: tuple[int, int, np.ndarray] = (-1, -1, np.empty(0, np.int64))

    def __getitem__(self, position: int) -> int:
        """The sample index at `position`, counted from the start of training."""
        epoch, offset = divmod(position, self.num_samples)
        self._enter(epoch)
        number = int(np.searchsorted(self._starts, offset, side="right")) - 1
        return int(self._window(number)[offset - self._starts[number]])

    def batch(self, start: int, size: int) -> list[int]:
        """The `size` sample indices from position `start` on; epochs follow one another without a gap."""
        return [self[position] for position in range(start, start + size)]

    def windows(self, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """(position of its first sample, its samples in order) of the window with `position` and all after it.

        Without end: epochs follow one another.
        """
        epoch, offset = divmod(position, self.num_samples)
        while True:
            self._enter(epoch)
            for number, start in enumerate(list(self._starts)):
                self._enter(epoch)  # somebody may have looked elsewhere since the last window
                samples = self._window(number)
                if start + len(samples) > offset:
                    yield epoch * self.num_samples + start, samples
            epoch, offset = epoch + 1, 0

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        permuted = keyed_generator(self.seed, epoch, stream=Stream.DATA_ORDER).permutation(len(self.shards))
        self._windows, self._starts, total = [], [], 0
        full = True
        for shard in permuted.tolist():
            if full:
                self._windows.append([])
                self._starts.append(total)
            self._windows[-1].append(shard)
            total += len(self.shards[shard])
            full = total - self._starts[-1] >= self.window
        self._epoch = epoch

    def _window(self, number: int) -> np.ndarray:
        if self._drawn[:2] != (self._epoch, number):
            samples = np.concatenate([self.shards[shard] for shard in self._windows[number]])
            generator = keyed_generator(self.seed, self._epoch, number + 1, stream=Stream.DATA_ORDER)
            self._drawn = (self._epoch, number, generator.permutation(samples))
        return self._drawn[2]
