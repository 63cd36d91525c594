"""Batches of square uint8 images from a collection: a pool of threads decodes ahead, order is kept.

Threads suffice since Pillow decodes and resizes without the interpreter lock. An image that fails is counted and
named in its batch, never raised from the middle. B images per batch, S pixels per side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from brics_cli.data.collection import Collection, RawImage
from brics_cli.data.pixels import ImageError, load_pixels


class Failure(NamedTuple):
    """An image that could not be used."""

    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Consecutive images of one shard, those that failed left out of `images` and listed in `failures`.

    `images` is uint8 (B, S, S, 3); `keys`, `labels`, `metas` and `indices` (position in the shard) have B entries.
    The last batch of a shard has `end_of_shard`, and may be empty.
    """

    shard_index: int
    images: np.ndarray
    keys: list[str]
    labels: list[int | None]
    metas: list[dict[str, Any] | None]
    indices: list[int]
    failures: list[Failure]
    failed_indices: list[int]
    end_of_shard: bool

    @property
    def num_read(self) -> int:
        """Images consumed from the collection, failed ones included."""
        return len(self.keys) + len(self.failures)


@dataclass
class _Gathering:
    """A batch in the making."""

    images: list[np.ndarray] = field(default_factory=list)
    raw: list[RawImage] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failed_indices: list[int] = field(default_factory=list)

    def batch(self, shard_index: int, size: int, *, end_of_shard: bool) -> Batch:
        images = np.stack(self.images) if self.images else np.empty((0, size, size, 3), np.uint8)
        return Batch(
            shard_index=shard_index,
            images=images,  # (B, S, S, 3)
            keys=[raw.key for raw in self.raw],
            labels=[raw.label for raw in self.raw],
            metas=[raw.meta for raw in self.raw],
            indices=[raw.index for raw in self.raw],
            failures=self.failures,
            failed_indices=self.failed_indices,
            end_of_shard=end_of_shard,
        )


def default_num_workers() -> int:
    """Decoding threads when nobody asks for a number."""
    return min(os.cpu_count() or 1, 16)


def load_shard(
    collection: Collection,
    shard_index: int,
    *,
    transform: str,
    size: int,
    num_workers: int | None = None,
    batch_size: int = 64,
) -> Generator[Batch, None, None]:
    """The batches of one shard, in order."""
    return load_shards(
        collection, [shard_index], transform=transform, size=size, num_workers=num_workers, batch_size=batch_size
    )


def load_shards(
    collection: Collection,
    shard_indices: Sequence[int] | None = None,
    *,
    transform: str,
    size: int,
    num_workers: int | None = None,
    batch_size: int = 64,
    skip: int = 0,
) -> Generator[Batch, None, None]:
    """The batches of the shards `shard_indices` (None: all), in order; no batch crosses a shard.

    The first `skip` images are passed over without being read. Decoding runs ahead by two batches, across shards
    too. Each shard that is not wholly skipped ends with exactly one `end_of_shard` batch.
    """
    ranges: list[tuple[int, range]] = []
    for shard in range(len(collection.shards)) if shard_indices is None else shard_indices:
        num_images = collection.shards[shard].num_images
        if skip < num_images or skip == 0:
            ranges.append((shard, range(skip, num_images)))
        skip = max(skip - num_images, 0)
    workers = num_workers or default_num_workers()
    ahead = max(2 * batch_size, 4 * workers)
    positions = ((shard, index) for shard, indices in ranges for index in indices)
    pending: deque[Future[tuple[RawImage, np.ndarray] | Failure]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="brics-decode")
    try:
        for shard, indices in ranges:
            gathering = _Gathering()
            for index in indices:
                while len(pending) < ahead and (position := next(positions, None)) is not None:
                    pending.append(pool.submit(_load, collection, *position, transform, size))
                loaded = pending.popleft().result()
                if isinstance(loaded, Failure):
                    gathering.failures.append(loaded)
                    gathering.failed_indices.append(index)
                else:
                    gathering.raw.append(loaded[0])
                    gathering.images.append(loaded[1])
                if len(gathering.images) == batch_size and index != indices[-1]:
                    yield gathering.batch(shard, size, end_of_shard=False)
                    gathering = _Gathering()
            yield gathering.batch(shard, size, end_of_shard=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(
    collection: Collection, shard_index: int, index: int, transform: str, size: int
) -> tuple[RawImage, np.ndarray] | Failure:
    try:
        raw = collection.read(shard_index, index)
        return raw, load_pixels(raw.data, transform=transform, size=size)
    except ImageError as error:
        return Failure(collection.key(shard_index, index), str(error))
