"""Batches of square uint8 images from a collection: a pool of threads decodes ahead, order is kept.

Threads read, and decode too unless the collection is large enough to be worth starting processes (`decoders`). They
take a few images at a time, so that small images are not outweighed by the queue, and pixels are written straight
into their batch. An image that fails is counted and named in its batch, never raised from the middle. B images per
batch, S pixels per side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from brics_cli.images.collection import Collection, RawImage
from brics_cli.images.decoders import Decode, decoding
from brics_cli.images.fingerprints import UNREADABLE, Content, ShardDigest, Watch, image_digest
from brics_cli.images.pixels import CUDA, FAST, ImageError, device_of_threads
from brics_cli.runtime.reporting import Reporter

MAX_CHUNK = 16
"""Images that a thread takes at a time, at most."""
READ_TOGETHER = 2**20
"""Bytes of files that a thread reads before it decodes them, or one file if that is larger."""
WORTH_A_PROCESS = 10_000
"""Images per process from which on processes may decode: a start takes as long as decoding 4,000 of 64 px."""
SMALL_SIDE = 128
MANY_WORKERS = 8
"""Where threads wait for the interpreter: at images this small, or with so many threads."""


class Failure(NamedTuple):
    """An image that could not be used."""

    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Consecutive images of one shard, those that failed left out of `images` and listed in `failures`.

    `images` is uint8 (B, S, S, 3); `keys`, `labels`, `metas`, `indices` (position in the shard) and `short_sides` (of
    the images as they were, in pixels) have B entries.
    The last batch of a shard has `end_of_shard`, and may be empty; `content` is then what was read of the shard.
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
    short_sides: Sequence[int] = ()
    content: Content | None = None

    @property
    def enlarged(self) -> list[int]:
        """`indices` of the images that were smaller than they are now."""
        size = self.images.shape[1]
        return [index for index, side in zip(self.indices, self.short_sides, strict=False) if side < size]

    @property
    def num_read(self) -> int:
        """Images consumed from the collection, failed ones included."""
        return len(self.keys) + len(self.failures)


class _Image(NamedTuple):
    """What is kept of an image whose pixels stand in its batch: its file's bytes are not."""

    key: str
    label: int | None
    meta: dict[str, Any] | None
    short_side: int


class _Loaded(NamedTuple):
    """What became of an image, and its digest."""

    image: _Image | Failure
    digest: bytes


@dataclass
class _Pending:
    """A batch that threads are filling: `images` has a place for each of `indices`."""

    shard_index: int
    indices: range
    images: np.ndarray
    end_of_shard: bool
    chunks: list[Future[list[_Loaded]]]
    reading: _Reading

    def batch(self) -> Batch:
        """Wait until it is filled, then close the gaps of images that failed."""
        rows = [row for chunk in self.chunks for row in chunk.result()]
        for row in rows:
            self.reading.digest.add(row.digest)
        loaded = [row.image for row in rows]
        kept = [place for place, image in enumerate(loaded) if isinstance(image, _Image)]
        failed = [place for place, image in enumerate(loaded) if isinstance(image, Failure)]
        images = [image for image in loaded if isinstance(image, _Image)]
        return Batch(
            shard_index=self.shard_index,
            images=self.images[kept] if failed else self.images,  # (B, S, S, 3)
            keys=[image.key for image in images],
            labels=[image.label for image in images],
            metas=[image.meta for image in images],
            indices=[self.indices[place] for place in kept],
            failures=[image for image in loaded if isinstance(image, Failure)],
            failed_indices=[self.indices[place] for place in failed],
            end_of_shard=self.end_of_shard,
            short_sides=[image.short_side for image in images],
            content=self.reading.content() if self.end_of_shard else None,
        )


class _Reading:
    """A shard that is read from its first image on."""

    def __init__(self, collection: Collection, shard_index: int) -> None:
        self.digest = ShardDigest(collection.shards[shard_index].name)
        self._watch = Watch(collection, shard_index)

    def content(self) -> Content:
        return self._watch.content(self.digest.hexdigest())


def default_num_workers() -> int:
    """Decoding threads when nobody asks for a number."""
    return min(os.cpu_count() or 1, 16)


def in_processes(num_images: int, *, transform: str, size: int, num_workers: int) -> bool:
    """Whether processes, not threads, decode so many images for (size, size).

    Never for a transform that decodes with torchvision, which does without the interpreter, nor where `SharedBuffers`
    are not to be had.
    """
    worth = num_images >= WORTH_A_PROCESS * num_workers and (size <= SMALL_SIDE or num_workers >= MANY_WORKERS)
    return worth and transform not in (FAST, CUDA) and hasattr(os, "memfd_create")


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
    shard_indices: Iterable[int] | None = None,
    *,
    transform: str,
    size: int,
    num_workers: int | None = None,
    batch_size: int = 64,
) -> Generator[Batch, None, None]:
    """The batches of the shards `shard_indices` (None: all), in order; no batch crosses a shard.

    A batch is of `batch_size` consecutive images, less those that failed; the last of a shard is of what is left.
    Decoding runs ahead by at least two batches, across shards too: `shard_indices` is asked for the next shard only
    when decoding gets there. Each shard ends with exactly one `end_of_shard` batch.
    """
    workers = num_workers or default_num_workers()
    ahead = max(2, -(-4 * workers // batch_size))  # batches
    chunk = min(MAX_CHUNK, max(1, batch_size // (2 * workers)))
    spans = _spans(collection, shard_indices, batch_size=batch_size)
    pending: deque[_Pending] = deque()
    reading: _Reading | None = None
    num_images = _num_images(collection, shard_indices)
    worth = in_processes(num_images, transform=transform, size=size, num_workers=workers)
    shape, num = (batch_size, size, size, 3), ahead + 4
    with decoding(shape, num=num, transform=transform, num_processes=workers if worth else 0) as (buffers, decode):
        pool = ThreadPoolExecutor(workers, thread_name_prefix="brics-decode", initializer=device_of_threads(transform))

        def submit(shard_index: int, indices: range, end_of_shard: bool) -> _Pending:
            nonlocal reading
            if indices.start == 0 or reading is None:
                reading = _Reading(collection, shard_index)
            images = buffers.take(len(indices))
            chunks = [
                pool.submit(_load, collection, shard_index, indices[start : start + chunk], decode,
                            images[start : start + chunk])
                for start in range(0, len(indices), chunk)
            ]  # fmt: skip
            return _Pending(shard_index, indices, images, end_of_shard, chunks, reading)

        try:
            while True:
                while len(pending) <= ahead and (span := next(spans, None)) is not None:
                    pending.append(submit(*span))
                if not pending:
                    return
                yield pending.popleft().batch()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def say_enlarged(reporter: Reporter, num_enlarged: int, num_images: int, *, size: int) -> None:
    """Say how many of the images that were decoded were made larger, if any."""
    if num_enlarged:
        were = "was" if num_enlarged == 1 else "were"
        reporter.message(f"{num_enlarged:,} of {num_images:,} images {were} enlarged: smaller than {size} px")


def _num_images(collection: Collection, shard_indices: Iterable[int] | None) -> int:
    """How many there are in these shards; at most, where they are not known beforehand."""
    if isinstance(shard_indices, Sequence):
        return sum(collection.shards[index].num_images for index in shard_indices)
    return len(collection)


def _spans(
    collection: Collection, shard_indices: Iterable[int] | None, *, batch_size: int
) -> Iterator[tuple[int, range, bool]]:
    """(shard, its images, whether it ends with them) of every batch."""
    for shard in range(len(collection.shards)) if shard_indices is None else shard_indices:
        num_images = collection.shards[shard].num_images
        for start in range(0, num_images, batch_size) or range(1):  # a shard of no images ends as well
            stop = min(start + batch_size, num_images)
            yield shard, range(start, stop), stop == num_images


def _load(
    collection: Collection, shard_index: int, indices: range, decode: Decode, pixels: np.ndarray
) -> list[_Loaded]:
    """Read and decode images into `pixels` (their number, S, S, 3)."""
    loaded: list[_Loaded] = []
    for group in _read_groups(collection, shard_index, indices):
        files = [b"" if isinstance(image, Failure) else image.data for image in group]
        decoded = decode(files, pixels[len(loaded) : len(loaded) + len(group)])
        for image, (outcome, sha256) in zip(group, decoded, strict=True):
            if isinstance(image, Failure):
                loaded.append(_Loaded(image, image_digest(image.key, UNREADABLE, None, None)))
                continue
            digest = image_digest(image.key, sha256, image.label, image.meta)
            if isinstance(outcome, str):
                loaded.append(_Loaded(Failure(collection.key(shard_index, image.index), outcome), digest))
            else:
                loaded.append(_Loaded(_Image(image.key, image.label, image.meta, outcome), digest))
    return loaded


def _read_groups(
    collection: Collection, shard_index: int, indices: Iterable[int]
) -> Iterator[list[RawImage | Failure]]:
    """The files of images, a group at a time: a thread that reads gives up the interpreter, and if it decoded each
    image at once it would wait for its turn once per file, a tenth of the time of decoding a small one."""
    group: list[RawImage | Failure] = []
    num_bytes = 0
    for index in indices:
        try:
            raw = collection.read(shard_index, index)
            group.append(raw)
            num_bytes += len(raw.data)
        except ImageError as error:
            group.append(Failure(collection.key(shard_index, index), str(error)))
        if num_bytes > READ_TOGETHER:
            yield group
            group, num_bytes = [], 0
    yield group
