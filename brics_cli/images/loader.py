"""The decode-ahead engine: images of a collection, asked for in batches, come back decoded and in order.

Training, encoding, packing and evaluation all read through `decode_ahead`: in the order of shards (`load_shards`), at
any positions (`CollectionStream`), or by requests of their own. A pool of threads reads files and decodes
them ahead of their use, unless there are enough images to be worth starting processes that decode (`decoders`). Threads
take a few images at a time, so that small images are not outweighed by the queue, and pixels are written straight into
their batch. An image that fails is reported in its batch, never raised from the middle.
B images per batch, S pixels per side.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from brics_cli.images.collection import Collection, RawImage
from brics_cli.images.decoders import Decoders
from brics_cli.images.fingerprints import Content, ShardDigest, Watch, fingerprint_of, image_digest
from brics_cli.images.pixels import CUDA, FAST, ImageError, Outcome, decode_files, device_of_threads, num_frames
from brics_cli.images.selection import select_positions
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.threads import free_cores
from brics_cli.workspace.mirrors import fetch_ahead, is_mirrored

if TYPE_CHECKING:
    import torch

Image = NDArray[np.uint8]
"""(H, W, 3), RGB."""

MAX_CHUNK = 16
"""Images that a thread takes at a time, at most."""
READ_TOGETHER = 2**20
"""Bytes of files that a thread reads before it decodes them, or one file if that is larger."""
WORTH_A_PROCESS = 10_000
"""Images per process from which on processes may decode: a start takes as long as decoding 4,000 of 64 px."""
SMALL_SIDE = 128
MANY_WORKERS = 8
"""Where threads wait for the interpreter: at images this small, or with so many threads."""


@dataclass(slots=True)
class Place:
    """An image of a collection. `read` gives its file where that is on its way already; it may raise ImageError."""

    shard_index: int
    index: int
    read: Callable[[], RawImage] | None = None


class Failure(NamedTuple):
    """An image that could not be used."""

    key: str
    reason: str


@dataclass(slots=True)
class Loaded:
    """What became of an image: `pixels` are uint8, (S, S, 3) in the memory of its batch; None: failed, for `reason`.

    `short_side` is of the image as it was, in pixels. `digest` identifies what was read (`image_digest`). Of
    `num_frames` frames or pages the first is read.
    """

    shard_index: int
    index: int
    key: str
    pixels: np.ndarray | None
    reason: str = ""
    short_side: int = 0
    label: int | None = None
    meta: dict[str, Any] | None = None
    digest: bytes = b""
    num_frames: int = 1
    instead_of: tuple[Loaded, ...] = ()
    """Images that failed, and that this one replaces."""


@dataclass(frozen=True)
class Batch:
    """The images of one request: `loaded` has one entry per image asked for, in order.

    `images` is uint8 (B, S, S, 3): the pixels of those that did not fail, B of them, as are `keys`. A batch from
    `load_shards` has the `shard_index`, and the last one of a shard the `content`: what was read of it.
    """

    loaded: list[Loaded]
    images: np.ndarray
    shard_index: int = -1
    content: Content | None = None

    @property
    def good(self) -> list[Loaded]:
        return [image for image in self.loaded if image.pixels is not None]

    @property
    def keys(self) -> list[str]:
        return [image.key for image in self.good]

    @property
    def failed(self) -> list[Loaded]:
        """All that failed, replaced ones included."""
        attempts = (each for image in self.loaded for each in (*image.instead_of, image))
        return [image for image in attempts if image.pixels is None]

    @property
    def failures(self) -> list[Failure]:
        return [Failure(image.key, image.reason) for image in self.failed]

    @property
    def enlarged(self) -> list[Loaded]:
        """Those that were smaller than they are now."""
        return [image for image in self.good if image.short_side < self.images.shape[1]]

    @property
    def multi_frame(self) -> list[Loaded]:
        """Those of which only the first frame or page was read."""
        return [image for image in self.good if image.num_frames > 1]


def default_num_workers() -> int:
    """Decoding threads by default."""
    return min(free_cores(), 16)


def in_processes(num_images: int, *, transform: str | None, size: int | None, num_workers: int) -> bool:
    """Whether processes, not threads, decode so many images for (size, size), or as they are.

    Never for a transform that decodes with torchvision, which does without the interpreter, nor where shared `Buffers`
    are not available.
    """
    is_small = size is not None and size <= SMALL_SIDE
    worth = num_images >= WORTH_A_PROCESS * num_workers and (is_small or num_workers >= MANY_WORKERS)
    return worth and transform not in (FAST, CUDA) and hasattr(os, "memfd_create")


def decode_ahead(
    collection: Collection,
    requests: Iterable[Sequence[Place]],
    *,
    transform: str | None,
    size: int | None,
    num_images: int,
    batch_size: int,
    num_workers: int | None = None,
    digests: bool = True,
    instead: Callable[[Place], Iterable[Place]] | None = None,
) -> Generator[Batch, None, None]:
    """A batch for each of `requests`, of up to `batch_size` images by `transform` at `size` px, in order.

    Without `transform` and `size` images stay as they are: their `pixels` are (H, W, 3), and `images` is empty.
    `requests` is asked for the next one only when decoding gets there, at least three batches ahead of what was taken.
    `num_images` in all, about, decide on processes; `digests=False` leaves them out; `instead` gives what to decode in
    the place of an image that fails, in the order to try. Close the generator to stop the threads. Raises
    ArtefactError when a shard cannot be read, UsageError for an unknown transform, MachineError when processes die.
    """
    workers = num_workers or default_num_workers()
    ahead = max(3, -(-4 * workers // max(batch_size, 1)))  # batches
    chunk = min(MAX_CHUNK, max(1, batch_size // (2 * workers)))
    worth = in_processes(num_images, transform=transform, size=size, num_workers=workers)
    shape, num_processes = (batch_size, size or 0, size or 0, 3), workers if worth else 0
    decoders = Decoders(shape, num=ahead + 4, transform=transform, num_processes=num_processes)
    with closing(decoders):
        work = _Work(collection, decoders, digests, instead)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="brics-decode", initializer=device_of_threads(transform))
        waiting = iter(requests)
        pending: deque[tuple[np.ndarray, list[Future[list[Loaded]]]]] = deque()

        def submit(places: Sequence[Place]) -> None:
            pixels = decoders.buffers.take(len(places))
            parts = [slice(start, start + chunk) for start in range(0, len(places), chunk)]
            pending.append((pixels, [pool.submit(work, places[part], pixels[part]) for part in parts]))

        try:
            while True:
                while len(pending) <= ahead and (places := next(waiting, None)) is not None:
                    submit(places)
                if not pending:
                    return
                yield _batch(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def load_shards(
    collection: Collection,
    shard_indices: Iterable[int] | None = None,
    *,
    transform: str,
    size: int,
    num_workers: int | None = None,
    batch_size: int = 64,
) -> Generator[Batch, None, None]:
    """The images of the shards `shard_indices` (None: all), in order; no batch crosses a shard.

    A batch is of `batch_size` consecutive images; the last of a shard is of what is left, may be empty, and has the
    `content` of the shard. Decoding runs ahead across shards too: `shard_indices` is asked for the next one only when
    decoding gets there.
    """
    indices = range(len(collection.shards)) if shard_indices is None else shard_indices
    asked: deque[tuple[int, ShardDigest, Watch | None]] = deque()

    def requests() -> Iterator[list[Place]]:
        for shard_index in _fetched_ahead(collection, indices):
            shard = collection.shards[shard_index]
            digest, watch = ShardDigest(shard.name), Watch(collection, shard_index)
            for start in range(0, shard.num_images, batch_size) or range(1):  # a shard of no images ends as well
                stop = min(start + batch_size, shard.num_images)
                asked.append((shard_index, digest, watch if stop == shard.num_images else None))
                yield [Place(shard_index, index) for index in range(start, stop)]

    num_images = len(collection)  # at most, where shards are not known beforehand
    if isinstance(indices, Sequence):
        num_images = sum(collection.shards[index].num_images for index in indices)
    batches = decode_ahead(
        collection,
        requests(),
        transform=transform,
        size=size,
        num_images=num_images,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    with closing(batches):
        for batch in batches:
            shard_index, digest, watch = asked.popleft()
            for row in [image.digest for image in batch.loaded]:
                digest.add(row)
            batch = replace(batch, shard_index=shard_index)
            yield batch if watch is None else replace(batch, content=watch.content(digest.hexdigest()))
            del batch  # and with it its memory, which the next one may take


def _is_remote(collection: Collection) -> bool:
    return bool(collection.shards) and is_mirrored(next(iter(collection.files(0)), ""))


def _fetched_ahead(collection: Collection, shard_indices: Iterable[int]) -> Iterator[int]:
    """`shard_indices`; of a remote collection each when it, and the one after it, have begun to be fetched."""
    if not _is_remote(collection):
        yield from shard_indices
        return
    for shard_index, after_it in pairwise(chain[int | None](shard_indices, [None])):
        assert shard_index is not None
        fetch_ahead(collection.files(shard_index))
        if after_it is not None:
            fetch_ahead(collection.files(after_it))
        yield shard_index


@dataclass
class ReadSoFar:
    """What was learnt of the images that a stream read besides their pixels; by position."""

    failures: list[Failure] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)
    multi_frame: set[int] = field(default_factory=set)


class ImageStream(ABC):
    """`len(stream)` images in a fixed order, each with a key that is known before any pixel is read.

    `failures` grows while reading: (key, reason) of every image that could not be used.
    """

    kind: str
    path: str
    keys: list[str]
    identity: str
    """The sha256 of what is read: a store's, a model's with its settings; of a collection see `fingerprint_of_read`."""

    def __init__(self, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self.failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def describe(self) -> str:
        """What it is in a few words: `970 images, folder, crop-bicubic to 64 px`."""

    @abstractmethod
    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        """The images at `positions` (None: all) in that order, `batch_size` at a time; None for one that failed.

        An image may be part of the memory of its batch: copy what is kept for long.
        """

    def on(self, device: torch.device, *, num_workers: int) -> Self:
        """The same images in another process, where it computes on `device` and decodes in `num_workers` threads."""
        return self

    def begin(self, order: Sequence[int]) -> None:  # noqa: B027 - may stay empty
        """The images at `order` are about to be read, here or elsewhere."""

    def hand_over(self) -> ReadSoFar:
        """What was learnt since the last time; another process takes it over."""
        failures, self.failures = self.failures, []
        return ReadSoFar(failures)

    def take_over(self, read: ReadSoFar) -> None:
        """What another process learnt, as if the images had been read here."""
        self.failures += read.failures


class CollectionStream(ImageStream):
    """The images of a collection, through a transform, or with `transform=None` as they are."""

    kind = "collection"

    def __init__(
        self,
        collection: Collection,
        *,
        transform: str | None,
        size: int | None,
        batch_size: int,
        num_workers: int | None,
    ) -> None:
        super().__init__(batch_size=batch_size)
        if (transform is None) != (size is None):
            raise ValueError("transform and size go together")
        self.collection = collection
        self.path = collection.path
        self.identity = ""
        self.transform = transform
        self.size = size
        self.num_workers = num_workers
        self.keys = list(collection.keys())
        self.multi_frame: set[int] = set()
        """The positions of images of which only the first frame or page was read."""
        self._digests: dict[int, bytes] = {}
        self._watches: list[Watch] = []

    def describe(self) -> str:
        through = f", {self.transform} to {self.size} px" if self.transform else ", as they are"
        return self.collection.describe() + through

    @property
    def num_read(self) -> int:
        """How many different images were read so far."""
        return len(self._digests)

    def on(self, device: torch.device, *, num_workers: int) -> Self:
        self.num_workers = num_workers
        return self

    def begin(self, order: Sequence[int]) -> None:
        if len(order) == len(self) and not self._watches:
            self._watches = [Watch(self.collection, shard) for shard in range(len(self.collection.shards))]

    def hand_over(self) -> ReadSoFar:
        read = ReadSoFar(super().hand_over().failures, self._digests, self.multi_frame)
        self._digests, self.multi_frame = {}, set()
        return read

    def take_over(self, read: ReadSoFar) -> None:
        super().take_over(read)
        self._digests.update(read.digests)
        self.multi_frame |= read.multi_frame

    def fingerprint_of_read(self) -> str | None:
        """The fingerprint of the images that were read, as a collection of their own; None when none was.

        The digests of shards that were read as a whole are remembered.
        """
        if not self._digests:
            return None
        positions = sorted(self._digests)
        view, rows, found = select_positions(self.collection, positions), iter(positions), dict[int, str]()
        for number, shard in enumerate(view.shards):
            digest = ShardDigest(shard.name)
            for position in islice(rows, shard.num_images):
                digest.add(self._digests[position])
            found[number] = digest.hexdigest()
            if view is self.collection and self._watches:
                self._watches[number].content(found[number])
        return fingerprint_of(view, found)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        order = range(len(self)) if positions is None else positions
        self.begin(order)
        is_remote, num_begun = _is_remote(self.collection), 0

        def requests() -> Iterator[list[Place]]:
            nonlocal num_begun
            for batch in in_batches(order, self.batch_size):
                places = [Place(*place) for place in self.collection.places(batch)]
                if is_remote and (last := min(places[-1].shard_index + 2, len(self.collection.shards))) > num_begun:
                    for shard_index in range(max(num_begun, places[0].shard_index), last):
                        fetch_ahead(self.collection.files(shard_index))
                    num_begun = last
                yield places

        batches = decode_ahead(
            self.collection,
            requests(),
            transform=FAST if self.transform == CUDA else self.transform,  # what is measured needs no GPU
            size=self.size,
            num_images=len(order),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
        with closing(batches):
            for read, batch in zip(in_batches(order, self.batch_size), batches, strict=True):
                self._digests.update(zip(read, (image.digest for image in batch.loaded), strict=True))
                self.failures += batch.failures
                self.multi_frame.update(
                    at for at, image in zip(read, batch.loaded, strict=True) if image.num_frames > 1
                )
                yield [image.pixels for image in batch.loaded]


def in_batches(order: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """`order`, `batch_size` positions at a time."""
    for start in range(0, len(order), batch_size):
        yield list(order[start : start + batch_size])


def say_enlarged(reporter: Reporter, num_enlarged: int, num_images: int, *, size: int) -> None:
    """Say how many of the images that were decoded were made larger."""
    if num_enlarged:
        were = "was" if num_enlarged == 1 else "were"
        reporter.message(f"{num_enlarged:,} of {num_images:,} images {were} enlarged: smaller than {size} px")


def say_multi_frame(reporter: Reporter, num_multi_frame: int, num_images: int) -> None:
    """Say how many of the images that were decoded have more frames than were read."""
    if num_multi_frame:
        have = "has" if num_multi_frame == 1 else "have"
        reporter.warning(
            f"{num_multi_frame:,} of {num_images:,} images {have} several frames or pages: the first of each is read, "
            "the others are not"
        )


def _batch(pixels: np.ndarray, parts: list[Future[list[Loaded]]]) -> Batch:
    """Wait until it is filled, then close the gaps of images that failed."""
    loaded = [image for part in parts for image in part.result()]
    kept = [number for number, image in enumerate(loaded) if image.pixels is not None]
    return Batch(loaded, pixels if len(kept) == len(loaded) else pixels[kept])  # (B, S, S, 3)


@dataclass(frozen=True)
class _Work:
    """What the threads of `decode_ahead` do; the arguments are its own."""

    collection: Collection
    decoders: Decoders
    digests: bool
    instead: Callable[[Place], Iterable[Place]] | None

    def __call__(self, places: Sequence[Place], pixels: np.ndarray) -> list[Loaded]:
        """Read and decode images into `pixels` (their number, S, S, 3), and others in place of those that fail."""
        loaded = self._load(places, pixels)
        for number, place in enumerate(places):
            if loaded[number].pixels is None and self.instead is not None:
                attempts = [loaded[number]]
                for other in self.instead(place):
                    attempts += self._load([other], pixels[number : number + 1])
                    if attempts[-1].pixels is not None:
                        break
                loaded[number] = replace(attempts[-1], instead_of=tuple(attempts[:-1]))
        return loaded

    def _load(self, places: Sequence[Place], pixels: np.ndarray) -> list[Loaded]:
        loaded: list[Loaded] = []
        for group in self._read_groups(places):
            out = pixels[len(loaded) : len(loaded) + len(group)]
            files = [b"" if isinstance(raw, ImageError) else raw.data for _, raw in group]
            if self.decoders.processes:
                outcomes = self.decoders.decode(files, out)
            else:
                outcomes = decode_files(files, out, transform=self.decoders.transform)
            for (place, raw), outcome, image in zip(group, outcomes, out, strict=True):
                loaded.append(self._loaded(place, raw, outcome, image))
        return loaded

    def _loaded(self, place: Place, raw: RawImage | ImageError, outcome: Outcome, pixels: np.ndarray) -> Loaded:
        shard_index, index = place.shard_index, place.index
        if isinstance(raw, ImageError):
            key = self.collection.key(shard_index, index)
            return Loaded(shard_index, index, key, None, str(raw), digest=image_digest(key, None))
        digest = image_digest(raw.key, raw) if self.digests else b""
        if isinstance(outcome, str):
            return Loaded(shard_index, index, raw.key, None, outcome, digest=digest)
        decoded, side = (pixels, outcome) if isinstance(outcome, int) else (outcome, min(outcome.shape[:2]))
        frames = num_frames(raw.data)
        return Loaded(shard_index, index, raw.key, decoded, "", side, raw.label, raw.meta, digest, frames)

    def _read_groups(self, places: Sequence[Place]) -> Iterator[list[tuple[Place, RawImage | ImageError]]]:
        """The files of images, a group at a time: a thread that reads gives up the interpreter, and if it decoded each
        image at once it would wait for its turn once per file, a tenth of the time of decoding a small one."""
        group: list[tuple[Place, RawImage | ImageError]] = []
        num_bytes = 0
        for place in places:
            raw: RawImage | ImageError
            try:
                raw = place.read() if place.read is not None else self.collection.read(place.shard_index, place.index)
                num_bytes += len(raw.data)
            except ImageError as error:
                raw = error
            group.append((place, raw))
            if num_bytes > READ_TOGETHER:
                yield group
                group, num_bytes = [], 0
        yield group
