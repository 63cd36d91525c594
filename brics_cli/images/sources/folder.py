"""A folder of images, nested to any depth, in sorted order; cut into virtual shards of a fixed number of images."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import (
    ANYTHING,
    HIDDEN,
    OF_BRICS,
    PassedOver,
    Wanted,
    check_num_bytes,
    printable,
    virtual_shards,
    visible_path,
)
from brics_cli.images.listings import LISTINGS, Listing, read_listing
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.members import MemberCollection, Members
from brics_cli.images.sources.memory import Names
from brics_cli.images.splits import is_part
from brics_cli.workspace.mirrors import present

_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""What can be wrong with one file; any other error is the machine's, and ends the job."""
FFHQ_NAME = re.compile(r"\d{5}/\d{5}\.png")


class FolderCollection(MemberCollection):
    """Every image below `root`. Hidden files and folders are passed over; links to folders are followed once.

    Raises NoImagesError when there is no image, with what is there instead; UsageError for labels that cannot be
    meant; ArtefactError for a damaged listing.
    """

    kind = "folder"

    def __init__(self, root: Path, wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        self._root = str(root.resolve())
        found = sorted(_walk(self._root, "", set(), self.passed_over))
        members = Members(Names(name for name, _ in found), np.array([[size] for _, size in found], np.int64))
        above = _listings_above(visible_path(root))
        self._listings_above = [(path.name, path.stat().st_size) for path in above]
        self._arrange(
            [members],
            wanted,
            path=self._root,
            titles=[f"the folder {root}"],
            listings=list(above.values()),
            enter_splits=True,
        )
        (members,), (samples,) = self._members, self._samples
        listed = samples.listings
        self._files = [*(f"{self._root}/{members.names[place]}" for place in listed), *map(str, above)]
        sizes = members.columns[:, 0]
        of_samples = [int(sizes[samples.members(image)].sum()) for image in range(len(samples))]
        names = [samples.name(image) for image in range(len(samples))]
        num_folders = len({name.rpartition("/")[0] for name in names} - {""})
        self.form = f" with {num_folders:,} subfolders" if num_folders > 1 else ""
        if FFHQ_NAME.fullmatch(names[0]) and FFHQ_NAME.fullmatch(names[-1]):
            self.form += " in FFHQ's layout"
        also = [(members.names[place], int(sizes[place])) for place in listed]
        also += [(path.name, path.stat().st_size) for path in above]
        self.shards = virtual_shards(
            of_samples, rows=list(zip(map(printable, names), of_samples, strict=True)), also=also
        )

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterator[str]:
        names = self._members[0].names
        for index in range(self.shards[shard_index].num_images) if indices is None else indices:
            for member in self._samples[0].members(self.starts[shard_index] + index):
                yield f"{self._root}/{names[member]}"
        yield from self._files

    def _bytes(self, container: int, member: int) -> bytes:
        return _read(Path(self._root, self._members[container].names[member]))


def _read(path: Path) -> bytes:
    try:
        with present(path) as here:
            check_num_bytes(here.stat().st_size)
            return here.read_bytes()
    except OSError as error:
        if error.errno not in _OF_ONE_FILE:
            raise
        raise ImageError(f"cannot be read: {error.strerror}") from None


def _listings_above(folder: Path) -> dict[Path, Listing]:
    """What listings beside the folder of a split say of the images in it, as `train/cat.png`."""
    if not is_part(folder.name):
        return {}
    found = {}
    for path in (folder.parent / name for name in LISTINGS):
        if not path.is_file():
            continue
        source = f"{path.name} of the folder above"
        try:
            listing = read_listing(path.name, _read(path), where="").of_folder(folder.name, source=source)
        except (ArtefactError, ImageError):
            listing = Listing(source, note=f"{source} cannot be read")
        if listing.names or listing.note:
            found[path] = listing
    return found


def files_beside(folder: Path, *, suffixes: tuple[str, ...], read: Sequence[str] = ()) -> PassedOver:
    """What stands in `folder` and below beside its files of these `suffixes` and those in `read`, which are read."""
    passed = PassedOver()
    ours = {*OF_BRICS, *read, *({"README.md"} if Path(folder, "brics.json").is_file() else ())}
    for name, _ in _walk(str(folder), "", set(), passed):
        of_img2dataset = (
            name.endswith("_stats.json") and Path(folder, name.removesuffix("_stats.json") + ".tar").is_file()
        )
        if not ("/" not in name and name.lower().endswith(suffixes)) and name not in ours and not of_img2dataset:
            passed.add(name)
    return passed


def _walk(root: str, below: str, seen: set[tuple[int, int]], passed: PassedOver) -> Iterator[tuple[str, int]]:
    """(path relative to `root`, size in bytes) of every file that is not hidden; a link to nothing has size 0."""
    status = os.stat(os.path.join(root, below))  # noqa: PTH116, PTH118 - os.scandir's strings, for speed
    if (status.st_dev, status.st_ino) in seen:
        passed.reasons["links to folders visited before"] += 1
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(os.path.join(root, below)) as entries:  # noqa: PTH118
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            passed.reasons[HIDDEN] += 1
            continue
        name = f"{below}/{entry.name}" if below else entry.name
        if _leads_nowhere(entry):
            yield name, 0  # an image that cannot be read, not one that is not there
        elif entry.is_dir():
            yield from _walk(root, name, seen, passed)
        elif entry.is_file():
            yield name, entry.stat().st_size
        else:
            passed.reasons["sockets, pipes or devices"] += 1


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
