"""Images for training: a collection split into training and validation, decoded into memory or read ahead.

A collection whose decoded pixels fit in `cache_gib` is decoded once and kept; of a larger one the files are read shard
by shard (`reading`) and decoded several batches ahead of the device, by threads (Pillow and the file system release the
interpreter lock).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import Collection, ImageError, load_shards
from brics_cli.images.loader import say_enlarged
from brics_cli.images.pixels import load_with_side
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import Reporter
from brics_cli.training.order import SampleOrder
from brics_cli.training.reading import WindowReader

BATCHES_AHEAD = 4
GIB = 2**30


class Batch(NamedTuple):
    """`images` (B, S, S, 3) uint8 and the samples they are."""

    indices: list[int]
    images: np.ndarray


class TrainingImages:
    """The images of a collection by sample index 0 ... N - 1, as (S, S, 3) uint8 after the transform."""

    def __init__(self, collection: Collection, *, transform: str, size: int, num_workers: int) -> None:
        self.collection = collection
        self.transform = transform
        self.size = size
        self.num_workers = num_workers
        starts = np.cumsum([0, *[shard.num_images for shard in collection.shards]])
        self.shard_starts: list[int] = starts.tolist()
        self.failures: dict[int, str] = {}
        self.enlarged: set[int] = set()
        self.cached: np.ndarray | None = None
        self._held_out: set[int] = set()

    def __len__(self) -> int:
        return self.shard_starts[-1]

    @property
    def num_bytes(self) -> int:
        """Of all images, decoded."""
        return len(self) * self.size**2 * 3

    def key(self, sample: int) -> str:
        return self.collection.key(*self._position(sample))

    def cache(self, *, limit_gib: float, reporter: Reporter) -> bool:
        """Decode everything into memory if it fits in `limit_gib`; whether it did. Failures are recorded."""
        if self.num_bytes > limit_gib * GIB:
            return False
        images = np.zeros((len(self), self.size, self.size, 3), np.uint8)
        loading = load_shards(self.collection, transform=self.transform, size=self.size, num_workers=self.num_workers)
        with reporter.task("decode", total=len(self), unit="img") as task:
            for batch in loading:
                start = self.shard_starts[batch.shard_index]
                images[start + np.asarray(batch.indices, np.int64)] = batch.images
                for index, failure in zip(batch.failed_indices, batch.failures, strict=True):
                    self.failures[start + index] = failure.reason
                self.enlarged |= {start + index for index in batch.enlarged}
                task.advance(batch.num_read)
        self.cached = images
        return True

    def split(self, *, val_fraction: float | None) -> tuple[list[np.ndarray], np.ndarray]:
        """Training samples shard by shard, and the validation samples: the `val_fraction` with the lowest key hash.

        The split depends on keys alone: not on the order or the number of shards, nor on what can be read, which is
        known beforehand only where images are in memory. None: no validation samples. Raises UsageError when fewer
        than two images are usable.
        """
        num_usable = len(self) - len(self.failures)
        if num_usable < (1 if val_fraction is None else 2):
            raise UsageError(
                f"{self.collection.path}: {num_usable} usable images are too few to train on",
                next="Give more images, or look at the ones that failed.",
            )
        held_out = np.zeros(len(self), bool)
        if val_fraction is not None:
            digests = (hashlib.sha256(self.key(sample).encode()).digest() for sample in range(len(self)))
            hashes = np.fromiter((int.from_bytes(digest[:8], "big") for digest in digests), np.uint64, len(self))
            held_out = hashes < np.uint64(int(val_fraction * 2**64))
            if not held_out.any() or held_out.all():
                held_out = hashes == hashes.min()
            self._held_out = set(np.flatnonzero(held_out).tolist())
        spans = zip(self.shard_starts, self.shard_starts[1:], strict=False)
        shards = [start + np.flatnonzero(~held_out[start:end]) for start, end in spans]
        return shards, np.flatnonzero(held_out)

    def load(self, samples: Sequence[int]) -> np.ndarray:
        """(up to len(samples), S, S, 3) uint8: for validation, where a sample that cannot be read is left out."""
        if self.cached is not None:
            return self.cached[[int(sample) for sample in samples if sample not in self.failures]]
        with ThreadPoolExecutor(self.num_workers) as pool:
            decoded = pool.map(self._decode, [int(sample) for sample in samples])
            images = [image for image in decoded if image is not None]
        return np.stack(images) if images else np.empty((0, self.size, self.size, 3), np.uint8)

    def batches(
        self, order: SampleOrder, *, start: int, batch_size: int, world: World | None = None
    ) -> Generator[Batch, None, None]:
        """Batches of `order` from position `start` on, without end; read ahead unless they are in memory.

        In a `world` of several processes each gets its share of every batch, and reads no more. A sample that cannot
        be read is replaced by the next one that can and is not held out.
        """
        mine = range(batch_size) if world is None else world.mine(range(batch_size))
        if self.cached is not None:
            while True:
                samples = [order[start + offset] for offset in mine]
                yield Batch(samples, np.stack([self._load_or_next(sample) for sample in samples]))
                start += batch_size
        reader = WindowReader(
            self.collection,
            order,
            start=start,
            position_of=self._position,
            is_mine=lambda position, first=start: (position - first) % batch_size in mine,  # type: ignore[misc]
        )
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="brics-decode") as pool:
            ahead: deque[tuple[list[int], list[Future[np.ndarray]]]] = deque()
            try:
                while True:
                    while len(ahead) < BATCHES_AHEAD:
                        taken = [reader.take(start + offset) for offset in mine]
                        futures = [pool.submit(self._load_or_next, *each) for each in taken]
                        ahead.append(([sample for sample, _ in taken], futures))
                        start += batch_size
                    samples, futures = ahead.popleft()
                    yield Batch(samples, np.stack([future.result() for future in futures]))
            finally:
                reader.close()
                pool.shutdown(wait=False, cancel_futures=True)

    def warn_about_failures(self, reporter: Reporter) -> None:
        """Say how many images could not be decoded so far, and the first of them; and how many were enlarged."""
        say_enlarged(reporter, len(self.enlarged), len(self) - len(self.failures), size=self.size)
        if self.failures:
            sample, reason = next(iter(self.failures.items()))
            reporter.warning(
                f"{len(self.failures):,} of {len(self):,} images failed and are left out, "
                f"first {self.key(sample)}: {reason}"
            )

    def _load_or_next(self, sample: int, file: Callable[[], bytes] | None = None) -> np.ndarray:
        image = self._decode(sample, file)
        for offset in range(1, len(self)):
            if image is not None:
                return image
            candidate = (sample + offset) % len(self)
            image = None if candidate in self._held_out else self._decode(candidate)
        if image is None:
            raise ArtefactError(f"{self.collection.path}: no image of it can be decoded any more")
        return image

    def _decode(self, sample: int, file: Callable[[], bytes] | None = None) -> np.ndarray | None:
        """The pixels of a sample: from memory, from `file`, or read now; None, recorded, when that fails."""
        if self.cached is not None:
            return None if sample in self.failures else self.cached[sample]
        try:
            data = file() if file is not None else self.collection.read(*self._position(sample)).data
            pixels, short_side = load_with_side(data, transform=self.transform, size=self.size)
        except ImageError as error:
            self.failures[sample] = str(error)
            return None
        if short_side < self.size:
            self.enlarged.add(sample)
        return pixels

    def _position(self, sample: int) -> tuple[int, int]:
        shard = bisect_right(self.shard_starts, sample) - 1
        return shard, sample - self.shard_starts[shard]
