"""A collection in shards of another size: those of an output, so that each shard of it knows what it was made from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from brics_cli.images.collection import Collection, RawImage, Shard, shard_layout
from brics_cli.images.fingerprints import StatRow


def recut(collection: Collection, shard_size: int) -> Collection:
    """`collection` in shards of `shard_size` images, the last of what is left; itself where that is what it has."""
    *others, last = collection.shards
    if all(shard.num_images == shard_size for shard in others) and last.num_images <= shard_size:
        return collection
    return RecutCollection(collection, shard_size)


class RecutCollection(Collection):
    """The images of another collection in its order, with their keys, in shards `00000`, `00001`, ..."""

    def __init__(self, whole: Collection, shard_size: int) -> None:
        self._whole = whole
        self._shard_size = shard_size
        self._ends = list(accumulate(shard.num_images for shard in whole.shards))
        self.path = whole.path
        self.kind = whole.kind
        self.opened_ns = whole.opened_ns
        self.options = whole.options
        self.class_names = whole.class_names
        num, num_bytes = self._ends[-1], sum(shard.size_bytes for shard in whole.shards)
        self.shards = []
        for number, start in enumerate(range(0, num, shard_size)):
            size = min(shard_size, num - start)
            layout = shard_layout(
                "", start, [(whole.shards[origin].layout,) for origin, _ in self._pieces(start, size)]
            )
            self.shards.append(Shard(f"{number:05d}", size, num_bytes * size // num, layout))

    def describe(self) -> str:
        return self._whole.describe()

    def key(self, shard_index: int, index: int) -> str:
        return self._whole.key(*self._place(shard_index, index))

    def read(self, shard_index: int, index: int) -> RawImage:
        return replace(self._whole.read(*self._place(shard_index, index)), shard_index=shard_index, index=index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterator[str]:
        for origin, taken in self._pieces_of(shard_index):
            yield from self._whole.files(origin, taken)

    def stat_rows(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterator[StatRow]:
        for origin, taken in self._pieces_of(shard_index):
            yield from self._whole.stat_rows(origin, taken)
            yield ("images", taken.start, taken.stop), 0

    def _place(self, shard_index: int, index: int) -> tuple[int, int]:
        position = shard_index * self._shard_size + index
        origin = bisect_right(self._ends, position)
        return origin, position - self._ends[origin] + self._whole.shards[origin].num_images

    def _pieces_of(self, shard_index: int) -> Iterator[tuple[int, range]]:
        return self._pieces(shard_index * self._shard_size, self.shards[shard_index].num_images)

    def _pieces(self, start: int, num: int) -> Iterator[tuple[int, range]]:
        """(shard of the whole, positions in it) of `num` images from `start` on."""
        origin = bisect_right(self._ends, start)
        while num > 0:
            num_images = self._whole.shards[origin].num_images
            first = start - self._ends[origin] + num_images
            taken = range(first, min(first + num, num_images))
            yield origin, taken
            start, num, origin = start + len(taken), num - len(taken), origin + 1
