"""Images for training: a collection split into training and validation, decoded into memory or read ahead.

A collection whose decoded pixels fit in `cache_gib` is decoded once and kept, once on each machine. Of a larger one the
files are read window by window, in file order (`WindowReader`), and decoded several batches ahead of the device
(`images.loader`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain, count, pairwise
from typing import NamedTuple

import numpy as np

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import Collection, ImageError, RawImage
from brics_cli.images.loader import Batch as Decoded
from brics_cli.images.loader import Loaded, Place, decode_ahead, in_batches, say_enlarged, say_multi_frame
from brics_cli.images.selection import held_out_by_hash
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.sharing import shared_zeros
from brics_cli.training.order import SampleOrder

GIB = 2**30
DECODED_TOGETHER = 64
WINDOWS_AHEAD = 2
SHARDS_AT_ONCE = 4
"""Threads that read; a disk that seeks would not like more, and a network wants more than one."""


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
        self.failures: dict[int, str] = {}
        self.enlarged: set[int] = set()
        self.multi_frame: set[int] = set()
        self.cached: np.ndarray | None = None
        self._held_out: set[int] = set()

    def __len__(self) -> int:
        return self.collection.starts[-1]

    @property
    def num_bytes(self) -> int:
        """Of all images, decoded."""
        return len(self) * self.size**2 * 3

    def key(self, sample: int) -> str:
        return self.collection.keys()[sample]

    def cache(self, *, limit_gib: float, reporter: Reporter, world: World | None = None) -> bool:
        """Decode everything into memory if it fits in `limit_gib`; whether it did. Failures are recorded.

        The processes of `world` on one machine keep one copy between them, of which each decodes its part.
        """
        if self.num_bytes > limit_gib * GIB:
            return False
        memory, part, num_parts = shared_zeros(self.num_bytes, world)
        images = memory.reshape(len(self), self.size, self.size, 3)
        mine = range(part * len(self) // num_parts, (part + 1) * len(self) // num_parts)
        failure = None
        try:
            self._decode_into(images, mine, reporter=reporter)
        except BricsError as error:
            failure = error
        for raised in [failure] if world is None else world.gather(failure):  # and wait for the others' parts
            if raised is not None:
                raise raised
        if world is not None:
            self.take_notes(world)
        self.cached = images
        return True

    def take_notes(self, world: World) -> None:
        """Take over what the other processes of `world` found of their images, in the order of their ranks."""
        found = world.gather((self.failures, self.enlarged, self.multi_frame))
        self.failures = {sample: reason for failures, _, _ in found for sample, reason in failures.items()}
        for _, enlarged, multi_frame in found:
            self.enlarged |= enlarged
            self.multi_frame |= multi_frame

    def window_limit(self, read_ahead_gib: float | None) -> int | None:
        """The most samples of a window of the order, of which `WINDOWS_AHEAD` are read: by the mean size of a file, so
        that it depends on the collection and the recipe alone. None: no limit."""
        if read_ahead_gib is None:
            return None
        num_bytes = sum(shard.size_bytes for shard in self.collection.shards)
        return max(1, int(read_ahead_gib * GIB) * len(self) // (WINDOWS_AHEAD * max(num_bytes, 1)))

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
            held_out = held_out_by_hash(self.collection.keys(), val_fraction)
            self._held_out = set(np.flatnonzero(held_out).tolist())
        shards = [start + np.flatnonzero(~held_out[start:end]) for start, end in pairwise(self.collection.starts)]
        return shards, np.flatnonzero(held_out)

    def load(self, samples: Sequence[int]) -> np.ndarray:
        """(up to len(samples), S, S, 3) uint8: for validation, where a sample that cannot be read is left out."""
        if self.cached is not None:
            return self.cached[[int(sample) for sample in samples if sample not in self.failures]]
        places = self._places(samples)
        with closing(self._decode_ahead([places], batch_size=len(places), num_images=len(places))) as batches:
            batch = next(batches)
        self._record(batch)
        return batch.images

    def batches(
        self, order: SampleOrder, *, start: int, batch_size: int, world: World | None = None
    ) -> Generator[Batch, None, None]:
        """Batches of `order` from position `start` on, without end; read ahead unless they are in memory.

        In a `world` of several processes each gets its share of every batch, and reads no more. A sample that cannot
        be read is replaced by the next one that can and is not held out. Raises ArtefactError when none can.
        """
        mine = range(batch_size) if world is None else world.mine(range(batch_size))
        if self.cached is not None:
            for first in count(start, batch_size):
                samples = [order[first + offset] for offset in mine]
                yield Batch(samples, self.cached[[self._usable(sample) for sample in samples]])
        reader = WindowReader(
            self.collection,
            order,
            start=start,
            place_of=self._place,
            is_mine=lambda position: (position - start) % batch_size in mine,
        )
        asked: deque[list[int]] = deque()

        def requests() -> Iterator[list[Place]]:
            for first in count(start, batch_size):
                taken = [reader.take(first + offset) for offset in mine]
                asked.append([sample for sample, _ in taken])
                yield [place for _, place in taken]

        decoded = self._decode_ahead(requests(), batch_size=len(mine), num_images=len(self), substitute=True)
        with closing(decoded), closing(reader):
            for batch in decoded:
                self._record(batch)
                if len(batch.good) < len(mine):
                    raise self._none_left()
                yield Batch(asked.popleft(), batch.images)

    def warn_about_failures(self, reporter: Reporter) -> None:
        """Say how many images could not be decoded so far, and the first of them; and how many were enlarged."""
        num = len(self) - len(self.failures)
        say_enlarged(reporter, len(self.enlarged), num, size=self.size)
        say_multi_frame(reporter, len(self.multi_frame), num)
        if self.failures:
            sample, reason = next(iter(self.failures.items()))
            reporter.warning(
                f"{len(self.failures):,} of {len(self):,} images failed and are left out, "
                f"first {self.key(sample)}: {reason}"
            )

    def _decode_into(self, images: np.ndarray, samples: range, *, reporter: Reporter) -> None:
        """Fill the places of `samples` in `images` (N, S, S, 3), but for those that fail."""
        requests = map(self._places, in_batches(samples, DECODED_TOGETHER))
        decoded = self._decode_ahead(requests, batch_size=DECODED_TOGETHER, num_images=len(samples))
        with closing(decoded), reporter.task("decode", total=len(samples), unit="img") as task:
            for batch in decoded:
                images[[self._sample(image) for image in batch.good]] = batch.images
                self._record(batch)
                task.advance(len(batch.loaded))

    def _decode_ahead(
        self, requests: Iterable[Sequence[Place]], *, batch_size: int, num_images: int, substitute: bool = False
    ) -> Generator[Decoded, None, None]:
        return decode_ahead(
            self.collection,
            requests,
            transform=self.transform,
            size=self.size,
            num_images=num_images,
            batch_size=batch_size,
            num_workers=self.num_workers,
            digests=False,
            instead=(lambda place: map(self._place, self._stand_ins(self._sample(place)))) if substitute else None,
        )

    def _record(self, batch: Decoded) -> None:
        self.failures |= {self._sample(image): image.reason for image in batch.failed}
        self.enlarged |= {self._sample(image) for image in batch.enlarged}
        self.multi_frame |= {self._sample(image) for image in batch.multi_frame}

    def _usable(self, sample: int) -> int:
        """The sample itself or what stands in for it, of those in memory."""
        for candidate in chain([sample], self._stand_ins(sample)):
            if candidate not in self.failures:
                return candidate
        raise self._none_left()

    def _stand_ins(self, sample: int) -> Iterator[int]:
        """What may stand in for a sample that cannot be read: the next ones that are not held out."""
        after = chain(range(sample + 1, len(self)), range(sample))
        return (each for each in after if each not in self._held_out)

    def _none_left(self) -> ArtefactError:
        return ArtefactError(f"{self.collection.path}: none of its images can be decoded any more")

    def _places(self, samples: Sequence[int]) -> list[Place]:
        return [Place(*place) for place in self.collection.places(samples)]

    def _place(self, sample: int) -> Place:
        return self._places([sample])[0]

    def _sample(self, image: Place | Loaded) -> int:
        return self.collection.starts[image.shard_index] + image.index


class _Window(NamedTuple):
    first: int
    samples: np.ndarray
    files: dict[int, Future[dict[int, RawImage | ImageError]]]
    """By shard, then by sample; a file that cannot be read is its error."""

    @property
    def end(self) -> int:
        return self.first + len(self.samples)


class WindowReader:
    """The files of the samples at increasing positions of `order`, from `start` on.

    Each window of the order is made of whole shards, or of runs of them. Its files are read from front to back, one
    thread per shard, while the window before it is being used: in memory are at most the files of two windows, not
    decoded (more only where a batch spans several). `place_of` gives a sample's place; `is_mine` says of a position
    whether this process will ask for it: others are not read.
    """

    def __init__(
        self,
        collection: Collection,
        order: SampleOrder,
        *,
        start: int,
        place_of: Callable[[int], Place],
        is_mine: Callable[[int], bool],
    ) -> None:
        self.collection, self.start = collection, start
        self._place_of, self._is_mine = place_of, is_mine
        self._source = order.windows(start)
        self._windows: deque[_Window] = deque()
        self._pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="brics-read")
        self._closed = threading.Event()

    def take(self, position: int) -> tuple[int, Place]:
        """The sample at `position`, and its place, whose `read` waits for the file; it may be called once, in any
        thread. Positions must not decrease."""
        while self._windows and self._windows[0].end <= position:
            self._windows.popleft()
        while len(self._windows) < WINDOWS_AHEAD or self._windows[-1].end <= position:
            self._windows.append(self._start_reading(*next(self._source)))
        window = next(window for window in self._windows if position < window.end)
        sample = int(window.samples[position - window.first])
        place = self._place_of(sample)
        files = window.files[place.shard_index]

        def read() -> RawImage:
            file = files.result().pop(sample)  # and is forgotten: memory falls while a window is used
            if isinstance(file, ImageError):
                raise file
            return file

        return sample, replace(place, read=read)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start_reading(self, first: int, samples: np.ndarray) -> _Window:
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for position, sample in enumerate(samples.tolist(), start=first):
            if position >= self.start and self._is_mine(position):
                place = self._place_of(sample)
                by_shard.setdefault(place.shard_index, []).append((place.index, sample))
        return _Window(
            first,
            samples,
            {shard: self._pool.submit(self._read, shard, sorted(by_shard[shard])) for shard in sorted(by_shard)},
        )

    def _read(self, shard: int, wanted: list[tuple[int, int]]) -> dict[int, RawImage | ImageError]:
        files: dict[int, RawImage | ImageError] = {}
        for index, sample in wanted:
            if self._closed.is_set():
                break
            try:
                files[sample] = self.collection.read(shard, index)
            except ImageError as error:
                files[sample] = error
        return files
