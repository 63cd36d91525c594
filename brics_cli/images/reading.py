"""Images in a fixed order, whatever they come from: the protocol, and a collection read that way.

B images, (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from brics_cli.images import Collection, ImageError, apply_transform, decode_image
from brics_cli.images.fingerprints import ShardDigest, Watch, digested, fingerprint_of
from brics_cli.images.loader import Failure, default_num_workers
from brics_cli.images.selection import select_positions

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageBatch:
    """Images of one size: `images` uint8 (B, H, W, 3), and their `keys`."""

    keys: list[str]
    images: Image


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
        """The images at `positions` (None: all) in that order, `batch_size` at a time; None for one that failed."""

    def __iter__(self) -> Iterator[ImageBatch]:
        """All images in order, failed ones left out. A batch ends early where the size of the images changes."""
        keys = iter(self.keys)
        for images in self.read():
            kept = [(key, image) for image, key in zip(images, keys, strict=False) if image is not None]
            while kept:
                shape = kept[0][1].shape
                end = next((index for index, (_, image) in enumerate(kept) if image.shape != shape), len(kept))
                yield ImageBatch([key for key, _ in kept[:end]], np.stack([image for _, image in kept[:end]]))
                kept = kept[end:]


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
        self.num_workers = num_workers or default_num_workers()
        shards = collection.shards
        self.keys = [
            collection.key(shard, index) for shard in range(len(shards)) for index in range(shards[shard].num_images)
        ]
        self._starts = [0, *accumulate(shard.num_images for shard in shards)]
        self._digests = np.zeros((len(self.keys), 64), np.uint8)
        self._was_read = np.zeros(len(self.keys), bool)
        self._watches: dict[int, Watch] = {}

    def describe(self) -> str:
        through = f", {self.transform} to {self.size} px" if self.transform else ", as they are"
        return self.collection.describe() + through

    @property
    def num_read(self) -> int:
        """How many different images were read so far."""
        return int(self._was_read.sum())

    def fingerprint_of_read(self) -> str | None:
        """The fingerprint of the images that were read, as a collection of their own; None when none was.

        The digests of shards that were read as a whole are remembered.
        """
        positions = np.flatnonzero(self._was_read).tolist()
        if not positions:
            return None
        view = select_positions(self.collection, positions)
        found, start = {}, 0
        for number, shard in enumerate(view.shards):
            digest = ShardDigest(shard.name)
            for position in positions[start : start + shard.num_images]:
                digest.add(self._digests[position].tobytes())
            found[number] = digest.hexdigest()
            start += shard.num_images
            if view is self.collection and number in self._watches:
                self._watches[number].content(found[number])
        return fingerprint_of(view, found)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        order = range(len(self)) if positions is None else positions
        if len(order) == len(self) and not self._watches:
            self._watches = {shard: Watch(self.collection, shard) for shard in range(len(self.collection.shards))}
        waiting: deque[list[Future[Image | Failure]]] = deque()
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="brics-images") as pool:
            try:
                for batch in in_batches(order, self.batch_size):
                    waiting.append([pool.submit(self._load, position) for position in batch])
                    if len(waiting) > 2:  # two batches are decoded ahead of the one in use
                        yield self._gather(waiting.popleft())
                while waiting:
                    yield self._gather(waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _gather(self, batch: list[Future[Image | Failure]]) -> list[Image | None]:
        images: list[Image | None] = []
        for future in batch:
            loaded = future.result()
            if isinstance(loaded, Failure):
                self.failures.append(loaded)
                images.append(None)
            else:
                images.append(loaded)
        return images

    def _load(self, position: int) -> Image | Failure:
        shard = bisect_right(self._starts, position) - 1
        try:
            raw, digest = digested(self.collection, shard, position - self._starts[shard])
            self._digests[position], self._was_read[position] = np.frombuffer(digest, np.uint8), True
            if isinstance(raw, ImageError):
                raise raw
            image = decode_image(raw.data)
            if self.transform is None or self.size is None:
                return np.array(image)  # (H, W, 3)
            return apply_transform(image, self.transform, self.size)
        except ImageError as error:
            return Failure(self.keys[position], str(error))


def in_batches(order: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """`order`, `batch_size` positions at a time."""
    for start in range(0, len(order), batch_size):
        yield list(order[start : start + batch_size])
