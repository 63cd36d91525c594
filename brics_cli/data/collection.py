"""What a collection is: images in a fixed order, cut into shards, each image with a key that is its identity.

Nothing here decodes a pixel: `RawImage.data` is the file as it stands. `pixels` decodes, `loader` batches.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

IMAGE_EXTENSIONS: frozenset[str] = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm"})
"""Extensions, lower case and without the dot, that make a file an image."""


@dataclass(frozen=True)
class Shard:
    """One shard: a tar file, or a run of a folder's images in sorted order.

    `size_bytes` is of the tar, or the sum of the files; `fingerprint` is a sha256 of the name, the size and the
    index (names and sizes of members), never of pixels: it is cheap, survives a copy, and changes when an image
    comes, goes, moves or changes its length.
    """

    name: str
    num_images: int
    size_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class RawImage:
    """One image as it stands in its collection, not decoded.

    `key` is unique in the collection: `shard/member-stem`, or the relative path without extension for a folder.
    `label` and `meta` come from sidecar members and are None when there is none.
    """

    key: str
    data: bytes
    label: int | None
    meta: dict[str, Any] | None
    shard_index: int
    index: int


class Collection(ABC):
    """Any source of images. Sub-classes set `path`, `kind` and `shards`, and read; they can be pickled."""

    path: str
    """Absolute path (or brace pattern) as text."""
    kind: str
    shards: Sequence[Shard]

    @abstractmethod
    def describe(self) -> str:
        """What it is in a few words: `970 images, WebDataset, 2 shards`."""

    @abstractmethod
    def key(self, shard_index: int, index: int) -> str:
        """The key of one image, without reading it."""

    @abstractmethod
    def read(self, shard_index: int, index: int) -> RawImage:
        """One image by position. Raises ImageError when this one cannot be read, ArtefactError for its shard."""

    def iter_shard(self, shard_index: int) -> Iterator[RawImage]:
        """The images of one shard in order."""
        for index in range(self.shards[shard_index].num_images):
            yield self.read(shard_index, index)

    def __len__(self) -> int:
        return sum(shard.num_images for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, fingerprints and numbers of images: the identity of the whole."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name}\0{shard.fingerprint}\0{shard.num_images}\n".encode())
        return digest.hexdigest()

    def first(self, num_images: int) -> Self:
        """The collection of the first `num_images` images alone."""
        limited = copy.copy(self)
        limited.__dict__.pop("fingerprint", None)
        kept, left = [], num_images
        for shard in self.shards:
            if left <= 0:
                break
            kept.append(replace(shard, num_images=min(shard.num_images, left)))
            left -= shard.num_images
        limited.shards = kept
        return limited


def shard_fingerprint(name: str, size_bytes: int, index: Sequence[tuple[Any, ...]]) -> str:
    """The sha256 of a shard's name, size and index rows."""
    digest = hashlib.sha256(f"{name}\0{size_bytes}\n".encode())
    for row in index:
        digest.update(("\0".join(str(value) for value in row) + "\n").encode())
    return digest.hexdigest()


def split_extension(name: str) -> tuple[str, str] | None:
    """`a/my.photo.1.jpg` -> (`a/my.photo.1`, `jpg`) when the last extension is an image's, else None.

    webdataset splits at the first dot instead and merges such files into one sample (its issue #237).
    """
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or stem.endswith("/") or extension.lower() not in IMAGE_EXTENSIONS:
        return None
    return stem, extension.lower()


def unique_keys(names: Sequence[str]) -> list[str]:
    """The keys of image files `names`: without extension, but with it where two differ in nothing else."""
    stems = [name.rpartition(".")[0] for name in names]
    seen: set[str] = set()
    twice: set[str] = set()
    for stem in stems:
        (twice if stem in seen else seen).add(stem)
    return [name if stem in twice else stem for name, stem in zip(names, stems, strict=True)]


def printable(name: str) -> str:
    """A file name that may hold bytes outside UTF-8, as text that can be printed and stored."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
