"""A folder of images, nested to any depth, in sorted order; cut into virtual shards of a fixed number of images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from brics_cli.data.collection import (
    Collection,
    RawImage,
    Shard,
    printable,
    shard_fingerprint,
    split_extension,
    unique_keys,
)
from brics_cli.data.pixels import ImageError
from brics_cli.errors import UsageError

VIRTUAL_SHARD_SIZE = 1000


class FolderCollection(Collection):
    """Every image below `root`. Hidden files and folders are passed over; links to folders are followed once.

    Raises UsageError when there is none, with what is there instead.
    """

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.path = str(root.resolve())
        found: list[tuple[str, int]] = []
        others: Counter[str] = Counter()
        for name, size in _walk(self.path, "", set()):
            if split_extension(name) is not None:
                found.append((name, size))
            else:
                others[Path(name).suffix.lower() or "no extension"] += 1
        if not found:
            raise UsageError(
                _nothing_in(root, others), next="Give a folder with png, jpg, webp, bmp, tiff or ppm files."
            )
        found.sort()
        self._names = [name for name, _ in found]
        self._keys = unique_keys([printable(name) for name in self._names])
        self.shards = []
        for number, start in enumerate(range(0, len(found), VIRTUAL_SHARD_SIZE)):
            rows = [(printable(name), size) for name, size in found[start : start + VIRTUAL_SHARD_SIZE]]
            size_bytes = sum(size for _, size in rows)
            fingerprint = shard_fingerprint(f"{number:05d}", size_bytes, rows)
            self.shards.append(Shard(f"{number:05d}", len(rows), size_bytes, fingerprint))

    def describe(self) -> str:
        num_folders = len({name.rpartition("/")[0] for name in self._names[: len(self)]})
        return f"{len(self):,} images, folder" + (f" with {num_folders:,} subfolders" if num_folders > 1 else "")

    def key(self, shard_index: int, index: int) -> str:
        return self._keys[shard_index * VIRTUAL_SHARD_SIZE + index]

    def read(self, shard_index: int, index: int) -> RawImage:
        position = shard_index * VIRTUAL_SHARD_SIZE + index
        try:
            data = Path(self.path, self._names[position]).read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ImageError(f"cannot be read: {error.strerror}") from None
        return RawImage(self._keys[position], data, None, None, shard_index, index)


def _walk(root: str, below: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """(path relative to `root`, size in bytes) of every file that is not hidden."""
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
        if entry.is_dir():
            yield from _walk(root, name, seen)
        elif entry.is_file():
            yield name, entry.stat().st_size


def _nothing_in(root: Path, others: Counter[str]) -> str:
    if not others:
        return f"the folder {root} is empty"
    listed = ", ".join(f"{num} {extension}" for extension, num in others.most_common(4))
    return f"no images in the folder {root}; it holds other files ({listed})"
