"""What a collection is: images in a fixed order, cut into shards, each image with a key that is its identity.

Nothing here decodes a pixel: `RawImage.data` is the file as it stands. `pixels` decodes, `loader` batches.
"""

from __future__ import annotations

import copy
import hashlib
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from os.path import commonpath
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from brics_cli.config.names import Labels
from brics_cli.images.fingerprints import StatRow, fingerprint, stat_row
from brics_cli.images.pixels import HOW_TO_READ, IMAGE_EXTENSIONS, ImageError
from brics_cli.wording import count
from brics_cli.workspace.mirrors import Mirror

VIRTUAL_SHARD_SIZE = 1000
"""Images per shard of a collection that has no shards of its own."""
MAX_FILE_BYTES = 2**30
"""A larger file is no image that `pixels` would decode: 89 million pixels of 16-bit RGBA are 0.7 GiB."""


HIDDEN = "hidden files or folders"
_ONE = {
    HIDDEN: "hidden file or folder",
    "links to folders": "link to a folder",
    "sockets, pipes or devices": "socket, pipe or device",
    "rows that were": "row that was",
    "images ": "image ",
    "values ": "value ",
}
"""How a reason begins -> how it does where it holds for one alone."""
OF_BRICS = frozenset({"brics.json", "manifest.json", "failures.jsonl", "wids.json"})
"""What brics itself writes beside images."""
_LONGEST_EXTENSION = 16
"""Characters. What is longer, or holds a space, is a name with a dot in it."""
_NUM_SHOWN = 12


class Wanted(NamedTuple):
    """What a user asks of a collection beside its path.

    `subset` chooses where a path holds several collections or splits, `image_field` where samples hold several images;
    `labels="folder"` makes folders classes, "none" reads no labels.
    """

    subset: str | None = None
    labels: Labels | None = None
    image_field: str | None = None

    def of(self, path: str) -> str:
        """A path that opens what `path` opens with this `image_field`: `shards/*.left.png`, `shards/*` for all."""
        if self.image_field is None:
            return path
        fields = self.image_field.lower().replace(" ", "").lstrip(".")
        return f"{path}/*" if fields == "all" else f"{path}/*.{fields}"


ANYTHING = Wanted()


@dataclass(frozen=True)
class Shard:
    """One shard: a tar file, or a run of a folder's images in sorted order.

    `size_bytes` is of the tar, or the sum of the files; `layout` is a sha256 of the name, the size and the index (names
    and sizes of members), never of pixels: it is cheap, survives a copy, and changes when an image comes, goes, moves
    or changes its length. What is in the images is said by digests (`fingerprints`).
    """

    name: str
    num_images: int
    size_bytes: int
    layout: str


@dataclass(frozen=True)
class RawImage:
    """One image as it stands in its collection, not decoded.

    `key` is unique in the collection: `shard/member-stem`, or the relative path without extension for a folder.
    `label` (`labels` has the rules) and `meta` are None when there is none.
    """

    key: str
    data: bytes
    label: int | None
    meta: dict[str, Any] | None
    shard_index: int
    index: int


class PassedOver:
    """Files that are not read by extension (`.heic`), and whatever else was left aside by its reason; see `describe`.

    `num_read` is of the files that are read, images and sidecars, where it is known.
    """

    def __init__(self, names: Iterable[str] = (), *, num_read: int = 0) -> None:
        self.files = Counter(extension_of(name) for name in names)
        self.reasons: Counter[str] = Counter()
        self.num_read = num_read

    def add(self, name: str) -> None:
        """Count one more file."""
        self.files[extension_of(name)] += 1

    def __bool__(self) -> bool:
        return bool(self.files or self.reasons)

    def __add__(self, other: PassedOver) -> PassedOver:
        both = PassedOver(num_read=self.num_read + other.num_read)
        both.files = self.files + other.files
        both.reasons = self.reasons + other.reasons
        return both

    def describe(self) -> str:
        """`not read: 65 of 75 files (30 .gif, 20 .heic, 15 without extension); 2 links to folders visited before`."""
        parts = []
        if num := self.files.total():
            listed = [f"{each:,} {extension}" for extension, each in self.files.most_common(_NUM_SHOWN)]
            if num_others := num - sum(each for _, each in self.files.most_common(_NUM_SHOWN)):
                listed.append(count(num_others, "other"))
            parts.append(f"{num:,} of {count(num + self.num_read, 'file')} ({', '.join(listed)})")
            reads = {how: extension for extension, how in HOW_TO_READ.items() if extension in self.files}
            parts += [f"{extension} is read after {how}" for how, extension in reads.items()]
        for reason, num in self.reasons.most_common():
            begins = next((begins for begins in _ONE if num == 1 and reason.startswith(begins)), "")
            parts.append(f"{num:,} {_ONE.get(begins, '')}{reason.removeprefix(begins)}")
        return f"not read: {'; '.join(parts)}" if parts else ""

    def to_json(self) -> dict[str, int]:
        """Numbers by extension and by reason."""
        return {**dict(self.files.most_common()), **dict(self.reasons.most_common())}


def extension_of(name: str) -> str:
    """`.heic`, lower case; `without extension` for a name that has none."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    is_one = dot and stem and 0 < len(extension) <= _LONGEST_EXTENSION
    if not is_one or " " in extension:
        return "without extension"
    return "." + extension.lower().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Collection(ABC):
    """Any source of images. Sub-classes set `path`, `kind` and `shards`, and read; they can be pickled."""

    path: str
    """Absolute path (or brace pattern) as text."""
    kind: str
    shards: Sequence[Shard]
    opened_ns: int = 0
    """When it was opened, before anything of it was looked at (ns since 1970)."""
    options: Wanted = ANYTHING
    """What was asked of it that decides keys, labels or metadata."""
    note: str = ""
    """What `open_collection` chose among several, for `describe` to end with."""
    remark: str = ""
    """What is odd about the images that are read, for a user to hear."""
    class_names: tuple[str, ...] = ()
    """What labels 0, 1, ... stand for; empty where they have no names."""
    mirror: Mirror | None = None
    """Of a remote one: what fetches its files."""
    passed_over: PassedOver = PassedOver()
    """What was found beside the images and is not read."""

    def __init__(self, wanted: Wanted = ANYTHING) -> None:
        self.opened_ns = time.time_ns()
        self.options = wanted._replace(subset=None)
        self.passed_over = PassedOver()

    @abstractmethod
    def describe(self) -> str:
        """What it is in a few words: `970 images, WebDataset, 2 shards`."""

    @abstractmethod
    def key(self, shard_index: int, index: int) -> str:
        """The key of one image, without reading it."""

    @abstractmethod
    def read(self, shard_index: int, index: int) -> RawImage:
        """One image by position. Raises ImageError when this one cannot be read, ArtefactError for its shard."""

    @abstractmethod
    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterable[str]:
        """The paths of the files that a shard's images (all, or those at `indices`), labels and metadata are in."""

    def stat_rows(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterable[StatRow]:
        """What can be said of those files without reading them, and when each last changed (ns since 1970)."""
        return map(stat_row, self.files(shard_index, indices))

    def iter_shard(self, shard_index: int) -> Iterator[RawImage]:
        """The images of one shard in order."""
        for index in range(self.shards[shard_index].num_images):
            yield self.read(shard_index, index)

    @cached_property
    def starts(self) -> list[int]:
        """The position of each shard's first image in the whole collection, and at the end the number of all."""
        return [0, *accumulate(shard.num_images for shard in self.shards)]

    def __len__(self) -> int:
        return sum(shard.num_images for shard in self.shards)

    def places(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(shard_index, index) of images by their position in the whole collection."""
        shard_indices = (bisect_right(self.starts, position) - 1 for position in positions)
        return [
            (shard, position - self.starts[shard]) for shard, position in zip(shard_indices, positions, strict=True)
        ]

    def keys(self) -> Sequence[str]:
        """The keys of all images in order, each made when it is asked for."""
        return _Keys(self)

    @cached_property
    def layout(self) -> str:
        """sha256 over the shards' names, layouts and numbers of images: what is where, not what is in it. Cheap."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name}\0{shard.layout}\0{shard.num_images}\n".encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """The identity of all that is in it: any change of any image changes it, a copy has the same.

        Where it is not known from an earlier run every image is read for it (`fingerprints`).
        """
        return fingerprint(self)

    def first(self, num_images: int) -> Self:
        """The collection of the first `num_images` images alone."""
        limited = copy.copy(self)
        for name in ("starts", "layout", "fingerprint"):
            limited.__dict__.pop(name, None)
        kept, left = [], num_images
        for shard in self.shards:
            if left <= 0:
                break
            kept.append(replace(shard, num_images=min(shard.num_images, left)))
            left -= shard.num_images
        limited.shards = kept
        return limited


class Strings(Sequence[str]):
    """Strings that are made when they are asked for: `_at` gives one by its position."""

    @abstractmethod
    def _at(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        chosen = range(len(self))[position]
        return self._at(chosen) if isinstance(chosen, int) else [self._at(place) for place in chosen]


class _Keys(Strings):
    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def __len__(self) -> int:
        return len(self._collection)

    def _at(self, position: int) -> str:
        return self._collection.key(*self._collection.places([position])[0])

    def __iter__(self) -> Iterator[str]:
        for shard_index, shard in enumerate(self._collection.shards):
            for index in range(shard.num_images):
                yield self._collection.key(shard_index, index)


def virtual_shards(
    sizes: Sequence[int] | npt.NDArray[np.int64],
    *,
    rows: Sequence[tuple[Any, ...]] = (),
    also: Sequence[tuple[Any, ...]] = (),
) -> list[Shard]:
    """Runs of `VIRTUAL_SHARD_SIZE` images of a collection that has no shards of its own.

    `sizes` are the images' in bytes, `rows` their rows in the index; every shard depends on `also` too.
    """
    shards = []
    for number, start in enumerate(range(0, len(sizes), VIRTUAL_SHARD_SIZE)):
        part = slice(start, start + VIRTUAL_SHARD_SIZE)
        name, size_bytes = f"{number:05d}", int(np.sum(sizes[part]))
        shards.append(Shard(name, len(sizes[part]), size_bytes, shard_layout(name, size_bytes, [*rows[part], *also])))
    return shards


def shard_layout(name: str, size_bytes: int, index: Sequence[tuple[Any, ...]]) -> str:
    """The sha256 of a shard's name, size and index rows."""
    digest = hashlib.sha256(f"{name}\0{size_bytes}\n".encode())
    for row in index:
        digest.update(("\0".join(str(value) for value in row) + "\n").encode())
    return digest.hexdigest()


def check_num_bytes(num_bytes: int) -> None:
    """Raise ImageError for a file too large to be an image."""
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(f"a file of {num_bytes:,} bytes is too large for an image")


def split_extension(name: str) -> tuple[str, str] | None:
    """`a/my.photo.1.jpg` -> (`a/my.photo.1`, `jpg`) when the last extension is an image's, else None.

    webdataset splits at the first dot instead and merges such files into one sample (its issue #237).
    """
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or stem.endswith("/") or extension.lower() not in IMAGE_EXTENSIONS:
        return None
    return stem, extension.lower()


def is_image(name: str) -> bool:
    """Whether the extension of `name` is an image's."""
    return split_extension(name) is not None


def visible_path(path: Path) -> Path:
    """`path`, absolute, under the name it is seen by: links above it are followed, one that it is itself is not.

    The files of a Hugging Face snapshot are links to blobs that are named by their hashes.
    """
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def shard_names(paths: Sequence[Path], stems: Sequence[str]) -> list[str]:
    """The stem of each file of shards; with its folders below the common one where stems repeat."""
    if len(set(stems)) == len(stems):
        return list(stems)
    base = commonpath([path.parent for path in paths])
    return [(path.relative_to(base).parent / stem).as_posix() for path, stem in zip(paths, stems, strict=True)]


def printable(name: str) -> str:
    """A file name that may hold bytes outside UTF-8, as text that can be printed and stored."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
