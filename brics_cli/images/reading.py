"""Images in a fixed order, whatever they come from: the protocol, and a collection read that way.

B images, (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from brics_cli.images.collection import Collection
from brics_cli.images.fingerprints import ShardDigest, Watch, fingerprint_of
from brics_cli.images.loader import Failure, Place, decode_ahead
from brics_cli.images.pixels import CUDA, FAST
from brics_cli.images.selection import select_positions

Image = NDArray[np.uint8]


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
        self._digests: dict[int, bytes] = {}
        self._watches: list[Watch] = []

    def describe(self) -> str:
        through = f", {self.transform} to {self.size} px" if self.transform else ", as they are"
        return self.collection.describe() + through

    @property
    def num_read(self) -> int:
        """How many different images were read so far."""
        return len(self._digests)

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
        if len(order) == len(self) and not self._watches:
            self._watches = [Watch(self.collection, shard) for shard in range(len(self.collection.shards))]
        requests = (
            [Place(*place) for place in self.collection.places(batch)] for batch in in_batches(order, self.batch_size)
        )
        batches = decode_ahead(
            self.collection,
            requests,
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
                yield [image.pixels for image in batch.loaded]


def in_batches(order: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """`order`, `batch_size` positions at a time."""
    for start in range(0, len(order), batch_size):
        yield list(order[start : start + batch_size])
