"""Some of a collection: the images of a list of keys, or every n-th shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from brics_cli.errors import UsageError
from brics_cli.images.collection import Collection, RawImage, Shard
from brics_cli.images.fingerprints import StatRow
from brics_cli.wording import count


class SelectedCollection(Collection):
    """Images of another collection, in its order: `positions[i]` are those taken of its shard `origins[i]`.

    A shard keeps its name, size and layout; `index` counts the images taken.
    """

    def __init__(self, whole: Collection, origins: Sequence[int], positions: Sequence[Sequence[int]]) -> None:
        self._whole = whole
        self._origins = list(origins)
        self._positions = list(positions)
        self.path = whole.path
        self.kind = whole.kind
        self.opened_ns = whole.opened_ns
        self.options = whole.options
        self.class_names = whole.class_names
        self.passed_over = whole.passed_over
        self.shards: list[Shard] = [
            replace(whole.shards[origin], num_images=len(taken))
            for origin, taken in zip(origins, positions, strict=True)
        ]

    def describe(self) -> str:
        return f"{len(self):,} of {self._whole.describe()}"

    def key(self, shard_index: int, index: int) -> str:
        return self._whole.key(self._origins[shard_index], self._positions[shard_index][index])

    def read(self, shard_index: int, index: int) -> RawImage:
        raw = self._whole.read(self._origins[shard_index], self._positions[shard_index][index])
        return replace(raw, shard_index=shard_index, index=index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterable[str]:
        return self._whole.files(self._origins[shard_index], self._taken(shard_index, indices))

    def stat_rows(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterator[StatRow]:
        taken = self._taken(shard_index, indices)
        yield from self._whole.stat_rows(self._origins[shard_index], taken)
        if len(taken) != self._whole.shards[self._origins[shard_index]].num_images:
            yield ("of it", *taken), 0

    def _taken(self, shard_index: int, indices: Sequence[int] | None) -> Sequence[int]:
        """The positions in the shard of the whole of all images of a shard, or of those at `indices`."""
        positions = self._positions[shard_index]
        if indices is None:
            return positions[: self.shards[shard_index].num_images]
        return [positions[index] for index in indices]


def held_out_by_hash(keys: Sequence[str], fraction: float) -> npt.NDArray[np.bool_]:
    """Which of `keys` (N,) are held out: about `fraction` of them, those with the lowest sha256; never none nor all.

    It depends on keys alone, so the images that an autoencoder holds out are those whose codes a diffusion model does.
    """
    digests = (hashlib.sha256(key).digest() for key in map(str.encode, keys))
    hashes = np.fromiter((int.from_bytes(digest[:8], "big") for digest in digests), np.uint64, len(keys))
    held_out = hashes < np.uint64(int(fraction * 2**64))
    return hashes == hashes.min() if not held_out.any() or held_out.all() else held_out


def spread(num: int, most: int) -> list[int]:
    """At most `most` places of `num`, increasing, evenly spread, the first and the last among them."""
    return np.linspace(0, max(num - 1, 0), min(num, most)).round().astype(int).tolist()


def select_keys(collection: Collection, keys: Iterable[str]) -> SelectedCollection:
    """The images of `keys`, in the collection's order. Raises UsageError when one is not there, or for none at all."""
    wanted = set(keys)
    if not wanted:
        raise UsageError("the list of keys is empty")
    origins, positions, found = [], [], set()
    for shard_index, shard in enumerate(collection.shards):
        taken = []
        for index in range(shard.num_images):
            key = collection.key(shard_index, index)
            if key in wanted:
                taken.append(index)
                found.add(key)
        if taken:
            origins.append(shard_index)
            positions.append(taken)
    if missing := sorted(wanted - found):
        raise UsageError(
            f"{len(missing):,} of {len(wanted):,} keys are not in {collection.path}, first {missing[0]!r}",
            next=f"Its keys look like {collection.key(0, 0)!r}.",
        )
    return SelectedCollection(collection, origins, positions)


def select_positions(collection: Collection, positions: Sequence[int]) -> Collection:
    """The images at `positions` of the whole, in its order; the collection itself when these are all."""
    if len(positions) == len(collection):
        return collection
    taken: dict[int, list[int]] = {}
    for shard_index, index in collection.places(sorted(positions)):
        taken.setdefault(shard_index, []).append(index)
    return SelectedCollection(collection, list(taken), list(taken.values()))


def every_nth_shard(collection: Collection, *, part: int, num_parts: int) -> SelectedCollection:
    """Shards `part` - 1, `part` - 1 + n, ... of n = `num_parts`. Raises UsageError when there is not one."""
    origins = list(range(part - 1, len(collection.shards), num_parts))
    if not origins:
        has = count(len(collection.shards), "shard")
        raise UsageError(
            f"{collection.path} has {has}: there is nothing in part {part}/{num_parts}", next="Use fewer parts."
        )
    return SelectedCollection(collection, origins, [range(collection.shards[origin].num_images) for origin in origins])
