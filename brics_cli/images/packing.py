"""From images to packed WebDataset shards: decoded ahead, encoded in threads, each shard whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain

from brics_cli.images.collection import Collection
from brics_cli.images.fingerprints import read_digest, settled_digest
from brics_cli.images.loader import Batch, load_shards
from brics_cli.images.sinks import OutputImage, WebDatasetSink

BATCH_SIZE = 64


@dataclass(frozen=True)
class Packed:
    """What one batch adds: images read, packed, made larger, and of several frames; failures (place, key, reason).

    `digest` is that of the content of `shard`, with its last batch; then, the shard being whole, `num_tasks` is 1
    (`runtime.executors.Event`).
    """

    shard: int
    num_read: int = 0
    num_packed: int = 0
    num_enlarged: int = 0
    num_multi_frame: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    digest: str | None = None
    num_tasks: int = 0


@dataclass(frozen=True)
class PackWork:
    """Shards of `sources` to be packed into those of the same number of `sink`, at `size` px by `transform`.

    Place i of the output is image i of `sources`.
    """

    sources: Collection
    sink: WebDatasetSink
    transform: str
    size: int
    num_workers: int | None

    def __call__(self, device: str) -> Callable[[Iterable[int]], Iterator[Packed]]:
        return self.pack

    def pack(self, shards: Iterable[int]) -> Iterator[Packed]:
        """Write these shards. Raises ArtefactError when one cannot be read or changes meanwhile, OSError when it
        cannot be written; MemoryError."""
        batches = load_shards(
            self.sources,
            shards,
            transform=self.transform,
            size=self.size,
            num_workers=self.num_workers,
            batch_size=BATCH_SIZE,
        )
        with closing(batches):
            for first in batches:
                told: list[Packed] = []
                images = self._images(chain([first], batches), told)
                with self.sink.part(first.shard_index) as put, self.sink.encoded(images) as ahead:
                    for image in ahead:
                        put(image)
                        yield from told
                        told.clear()
                yield Packed(first.shard_index, num_tasks=1)

    def _images(self, batches: Iterable[Batch], told: list[Packed]) -> Iterator[OutputImage]:
        """The images of a shard, whose batches come first; what each adds is `told`."""
        for batch in batches:
            start = batch.shard_index * self.sink.shard_size
            bad = [image for image in batch.loaded if image.pixels is None]
            packed = Packed(
                batch.shard_index,
                len(batch.loaded),
                len(batch.images),
                len(batch.enlarged),
                len(batch.multi_frame),
                [(start + image.index, image.key, image.reason) for image in bad],
            )
            if batch.content is not None:
                digest = settled_digest(self.sources, batch.shard_index, batch.content)
                packed = replace(packed, digest=digest)
            told.append(packed)
            for image in batch.loaded:
                yield OutputImage(image.key, image.pixels, image.label, image.meta)
            if batch.content is not None:
                return

    def give_up(self, shard: int, reason: str) -> Packed:
        """Write the shard without its images, none of which can be packed, for this reason."""
        start, num = shard * self.sink.shard_size, self.sources.shards[shard].num_images
        failures = [(start + index, self.sources.key(shard, index), reason) for index in range(num)]
        with self.sink.part(shard):
            pass
        return Packed(shard, num, failures=failures, digest=read_digest(self.sources, shard), num_tasks=1)
