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

from brics_cli.data.collection import RawImage, UnshardedCollection, check_num_bytes, printable, split_extension
from brics_cli.data.pixels import ImageError
from brics_cli.data.sidecars import EXTENSIONS, DatasetJson, Meta, merged
from brics_cli.data.sources.samples import Samples
from brics_cli.errors import UsageError

_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""What can be wrong with one file; any other error is the machine's, and ends the job."""
FFHQ_NAME = re.compile(r"\d{5}/\d{5}\.png")


class FolderCollection(UnshardedCollection):
    """Every image below `root`. Hidden files and folders are passed over; links to folders are followed once.

    Labels and metadata come from `dataset.json` (EDM) and from files beside an image (`a.cls`, `a.json`, `a.txt`).
    `labels="folder"` makes the top-level folders classes instead, numbered in sorted order. Raises UsageError when
    there is no image, with what is there instead; ArtefactError for a damaged `dataset.json`.
    """

    kind = "folder"

    def __init__(self, root: Path, *, labels: Literal["folder"] | None = None) -> None:
        self.path = str(root.resolve())
        found: list[tuple[str, int]] = []
        others: Counter[str] = Counter()
        for name, size in _walk(self.path, "", set()):
            if split_extension(name) is not None or name.rpartition(".")[2].lower() in EXTENSIONS:
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
        self._dataset_json = _dataset_json(root)
        self._classes = _top_folders(self._samples) if labels == "folder" else None
        sizes = np.array([size for _, size in found], np.int64)
        rows = [(printable(self._samples.image_name(i)), self._row_size(i, sizes)) for i in range(len(self._samples))]
        dataset_json = root / "dataset.json"
        also = [("dataset.json", dataset_json.stat().st_size)] if self._dataset_json is not None else []
        self._cut(rows, also=also)

    def _row_size(self, position: int, sizes: np.ndarray) -> int:
        """Bytes of the image and of its sidecars: a change of either changes the fingerprint."""
        return int(sizes[self._samples.image(position)] + sizes[self._samples.sidecars(position)].sum())

    def describe(self) -> str:
        layout = f" with {self.num_folders:,} subfolders" if self.num_folders > 1 else ""
        if FFHQ_NAME.fullmatch(self._samples.image_name(0)) and FFHQ_NAME.fullmatch(self._samples.image_name(-1)):
            layout += " in FFHQ's layout"
        if self._classes is not None:
            layout += f", {len(self._classes):,} of them classes"
        elif self._dataset_json is not None and self._dataset_json.labels:
            layout += ", labels from dataset.json"
        return f"{len(self):,} images, folder{layout}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return self._samples.key(self._position(shard_index, index))

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self._position(shard_index, index)
        name = self._samples.image_name(position)
        data = self._file(name)
        annotations = self._samples.annotations(position, lambda member: self._sidecar(self._samples.names[member]))
        if self._dataset_json is not None:
            annotations = merged(self._dataset_json.label(name), annotations)
        if self._classes is not None:
            annotations = merged(self._class(name), (None, annotations[1]))
        label, meta = annotations
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

    def _sidecar(self, name: str) -> bytes:
        """The bytes of a sidecar; one that has gone says nothing."""
        try:
            return self._file(name)
        except ImageError:
            return b""

    def _class(self, name: str) -> tuple[int | None, Meta | None]:
        top, slash, _ = name.partition("/")
        if not slash or self._classes is None:
            return None, None
        return self._classes[top], {"class": printable(top)}


def _top_folders(samples: Samples) -> dict[str, int]:
    names = {samples.image_name(position).partition("/")[0] for position in range(len(samples))}
    files = {samples.image_name(position) for position in range(len(samples))}
    return {name: number for number, name in enumerate(sorted(names - files))}


def _dataset_json(root: Path) -> DatasetJson | None:
    path = root / "dataset.json"
    return DatasetJson(path.read_bytes(), where=f"the folder {root}") if path.is_file() else None


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
