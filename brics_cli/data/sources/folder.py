"""A folder of images, nested to any depth, in sorted order; cut into virtual shards of a fixed number of images."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from brics_cli.data.annotations import Annotations, Texts
from brics_cli.data.collection import RawImage, UnshardedCollection, check_num_bytes, printable, split_extension
from brics_cli.data.listings import is_listing, read_listing
from brics_cli.data.pixels import ImageError
from brics_cli.data.sidecars import EXTENSIONS
from brics_cli.data.sources.samples import Samples
from brics_cli.errors import UsageError

_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""What can be wrong with one file; any other error is the machine's, and ends the job."""
FFHQ_NAME = re.compile(r"\d{5}/\d{5}\.png")


class FolderCollection(UnshardedCollection):
    """Every image below `root`. Hidden files and folders are passed over; links to folders are followed once.

    Labels and metadata come from `listings` and from files beside an image (`a.cls`, `a.json`, `a.txt`).
    `labels="folder"` makes the top-level folders classes instead, numbered in sorted order; "none": there are none.
    Raises UsageError when there is no image, with what is there instead, and for labels that cannot be meant;
    ArtefactError for a damaged listing.
    """

    kind = "folder"

    def __init__(self, root: Path, *, labels: Literal["folder", "none"] | None = None) -> None:
        self.path = str(root.resolve())
        found: list[tuple[str, int]] = []
        listings: list[tuple[str, int]] = []
        others: Counter[str] = Counter()
        for name, size in _walk(self.path, "", set()):
            if is_listing(name):
                listings.append((name, size))
            elif split_extension(name) is not None or name.rpartition(".")[2].lower() in EXTENSIONS:
                found.append((name, size))
            if split_extension(name) is None:
                others[Path(name).suffix.lower() or "no extension"] += 1
        found.sort()
        self._samples = Samples([name for name, _ in found], where=f"the folder {root}")
        if not len(self._samples):
            raise UsageError(
                _nothing_in(root, others), next="Give a folder with png, jpg, webp, bmp, tiff or ppm files."
            )
        self.num_folders = len({self._samples.image_name(i).rpartition("/")[0] for i in range(len(self._samples))})
        self._classes = _top_folders(self._samples) if labels == "folder" else None
        self._annotations = Annotations(
            [self._samples.image_name(position) for position in range(len(self._samples))],
            where=f"the folder {root}",
            listings=[
                read_listing(name, Path(self.path, name).read_bytes(), where=f"the folder {root}")
                for name, _ in listings
            ],
            sidecars=self._samples.labelled(),
            texts=self._texts,
            labels=labels is None,
        )
        self.class_names = self._annotations.class_names if self._classes is None else tuple(self._classes)
        sizes = np.array([size for _, size in found], np.int64)
        rows = [(printable(self._samples.image_name(i)), self._row_size(i, sizes)) for i in range(len(self._samples))]
        self._cut(rows, also=listings)

    def _row_size(self, position: int, sizes: np.ndarray) -> int:
        """Bytes of the image and of its sidecars: a change of either changes the fingerprint."""
        return int(sizes[self._samples.image(position)] + sizes[self._samples.sidecars(position)].sum())

    def describe(self) -> str:
        layout = f" with {self.num_folders:,} subfolders" if self.num_folders > 1 else ""
        if FFHQ_NAME.fullmatch(self._samples.image_name(0)) and FFHQ_NAME.fullmatch(self._samples.image_name(-1)):
            layout += " in FFHQ's layout"
        if self._classes is not None:
            layout += f", {len(self._classes):,} of them classes"
        return f"{len(self):,} images, folder{layout}{self._annotations.said}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return self._samples.key(self._position(shard_index, index))

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self._position(shard_index, index)
        name = self._samples.image_name(position)
        data = self._file(name)
        label, meta = self._annotations.of(position, self._texts(position))
        if self._classes is not None:
            top, slash, _ = name.partition("/")
            label, meta = (self._classes[top], {**(meta or {}), "class": printable(top)}) if slash else (None, meta)
        return RawImage(self._samples.key(position), data, label, meta, shard_index, index)

    def _file(self, name: str) -> bytes:
        path = Path(self.path, name)
        try:
            check_num_bytes(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            raise ImageError(f"cannot be read: {error.strerror}") from None

    def _texts(self, position: int) -> Texts:
        return self._samples.texts(position, lambda member: self._sidecar(self._samples.names[member]))

    def _sidecar(self, name: str) -> bytes:
        """The bytes of a sidecar; one that has gone says nothing."""
        try:
            return self._file(name)
        except ImageError:
            return b""


def _top_folders(samples: Samples) -> dict[str, int]:
    names = {samples.image_name(position).partition("/")[0] for position in range(len(samples))}
    files = {samples.image_name(position) for position in range(len(samples))}
    return {name: number for number, name in enumerate(sorted(names - files))}


def _walk(root: str, below: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """(path relative to `root`, size in bytes) of every file that is not hidden; a link to nothing has size 0."""
    status = os.stat(os.path.join(root, below))  # noqa: PTH116, PTH118 - os.scandir's strings, for speed
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(os.path.join(root, below)) as entries:  # noqa: PTH118
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        name = f"{below}/{entry.name}" if below else entry.name
        if _leads_nowhere(entry):
            yield name, 0  # an image that cannot be read, not one that is not there
        elif entry.is_dir():
            yield from _walk(root, name, seen)
        elif entry.is_file():
            yield name, entry.stat().st_size


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to nothing, or to itself."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return True
        raise
    return False


def _nothing_in(root: Path, others: Counter[str]) -> str:
    if not others:
        return f"the folder {root} is empty"
    listed = ", ".join(f"{num} {extension}" for extension, num in others.most_common(4))
    return f"no images in the folder {root}; it holds other files ({listed})"
