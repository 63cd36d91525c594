"""A folder of images, nested to any depth, in sorted order; cut into virtual shards of a fixed number of images."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import Annotations, Texts
from brics_cli.images.classes import FolderClasses
from brics_cli.images.collection import (
    RawImage,
    UnshardedCollection,
    check_num_bytes,
    printable,
    split_extension,
    visible_path,
)
from brics_cli.images.fields import survey
from brics_cli.images.listings import FILE_NAMES, Listing, is_listing, read_listing
from brics_cli.images.passed_over import HIDDEN, OF_BRICS, PassedOver, extension_of
from brics_cli.images.pixels import ImageError
from brics_cli.images.sidecars import EXTENSIONS
from brics_cli.images.sources.samples import Samples
from brics_cli.images.splits import is_part, scope_of
from brics_cli.images.wanted import ANYTHING, Wanted

_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""What can be wrong with one file; any other error is the machine's, and ends the job."""
FFHQ_NAME = re.compile(r"\d{5}/\d{5}\.png")


class NoImagesError(UsageError):
    """There is no image in a folder, whatever else there is."""


class FolderCollection(UnshardedCollection):
    """Every image below `root`. Hidden files and folders are passed over; links to folders are followed once.

    Labels and metadata come from `listings` and from files beside an image (`a.cls`, `a.json`, `a.txt`).
    Where folders are splits, the training one is read, or `subset`; where samples have several images, `image_field`.
    `labels="folder"` makes the top-level folders below that classes, numbered in sorted order; "none": there are none.
    Raises UsageError when there is no image, with what is there instead, and for labels that cannot be meant;
    ArtefactError for a damaged listing.
    """

    kind = "folder"

    def __init__(self, root: Path, wanted: Wanted = ANYTHING) -> None:
        where, whole = f"the folder {root}", str(root.resolve())
        found, listings, passed = _scan(whole)
        images = [name for name, _ in found if split_extension(name) is not None]
        if not images:
            passed += PassedOver(name for name, _ in [*found, *listings])
            what = f"no images in the folder {root}; {passed.describe()}" if passed else f"the folder {root} is empty"
            raise NoImagesError(what, next="Give a folder with png, jpg, webp, bmp, tiff or ppm files.")
        scope = scope_of(images, wanted.subset, where=where)
        self.note = scope.note
        passed += PassedOver(name for name, _ in found if scope.is_above(name) and split_extension(name) is None)
        found = [(name, size) for name, size in found if scope.holds(name)]
        listings = [(name, size) for name, size in listings if scope.is_beside(name, images)]
        above = _listings_above(visible_path(root))
        depth = scope.depth
        self.path, self._root = scope.of(whole, wanted.subset), whole
        prefix = _common_folders([name for name, _ in found], depth=depth)
        if prefix:  # as if that folder had been given
            self._root = self.path = f"{whole}/{prefix}"
            found, depth = [(name[len(prefix) + 1 :], size) for name, size in found], 0
        names = [name for name, _ in found]
        fields = survey([names]).fields(wanted.image_field, where=where)
        self.path, self.remark = wanted.of(self.path), fields.remark
        self._samples = Samples(names, where=where, fields=fields)
        self.passed_over = passed + self._samples.passed_over(used=OF_BRICS)
        image_names = [self._samples.image_name(position) for position in range(len(self._samples))]
        self.num_folders = len({name.rpartition("/")[0] for name in image_names} - {""})
        self._classes = FolderClasses(image_names, depth=depth) if wanted.labels == "folder" else None
        self._annotations = Annotations(
            [f"{prefix}/{name}" for name in image_names] if prefix else image_names,
            where=where,
            listings=[*(_listing(Path(whole), name, where=where) for name, _ in listings), *above.values()],
            sidecars=self._samples.labelled(),
            texts=self._texts,
            labels=wanted.labels is None,
            left_out=[name for name in images if not scope.holds(name)],
        )
        self._listings = [*(f"{whole}/{name}" for name, _ in listings), *map(str, above)]
        self.class_names = self._annotations.class_names if self._classes is None else self._classes.names
        sizes = np.array([size for _, size in found], np.int64)
        rows = [(printable(name), self._row_size(i, sizes)) for i, name in enumerate(image_names)]
        self._cut(rows, also=[*listings, *((path.name, path.stat().st_size) for path in above)])

    def _row_size(self, position: int, sizes: np.ndarray) -> int:
        """Bytes of the image and of its sidecars: a change of either changes the fingerprint."""
        return int(sizes[self._samples.image(position)] + sizes[self._samples.sidecars(position)].sum())

    def describe(self) -> str:
        layout = f" with {self.num_folders:,} subfolders" if self.num_folders > 1 else ""
        if FFHQ_NAME.fullmatch(self._samples.image_name(0)) and FFHQ_NAME.fullmatch(self._samples.image_name(-1)):
            layout += " in FFHQ's layout"
        if self._classes is not None:
            layout += f", {len(self._classes):,} of them classes{self._classes.said}"
        return f"{len(self):,} images, folder{layout}{self._annotations.said}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return self._samples.key(self._position(shard_index, index))

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self._position(shard_index, index)
        name = self._samples.image_name(position)
        data = self._file(name)
        label, meta = self._annotations.of(position, self._texts(position))
        if self._classes is not None:
            label, meta = self._classes.of(name, meta)
        return RawImage(self._samples.key(position), data, label, meta, shard_index, index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterator[str]:
        for index in range(self.shards[shard_index].num_images) if indices is None else indices:
            position = self._position(shard_index, index)
            for member in (self._samples.image(position), *self._samples.sidecars(position)):
                yield f"{self._root}/{self._samples.names[member]}"
        yield from self._listings

    def _file(self, name: str) -> bytes:
        path = Path(self._root, name)
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


def _listing(root: Path, name: str, *, where: str) -> Listing:
    try:
        check_num_bytes((root / name).stat().st_size)
        data = (root / name).read_bytes()
    except (OSError, ImageError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_ONE_FILE:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtefactError(
            f"{where}: its {printable(name)} cannot be read: {reason}", next="Make it readable, or move it away."
        ) from None
    return read_listing(name, data, where=where)


def _listings_above(folder: Path) -> dict[Path, Listing]:
    """What listings beside the folder of a split say of the images in it, as `train/cat.png`."""
    if not is_part(folder.name):
        return {}
    found = {}
    for path in (folder.parent / name for name in FILE_NAMES):
        if not path.is_file():
            continue
        source = f"{path.name} of the folder above"
        try:
            listing = _listing(folder.parent, path.name, where="").of_folder(folder.name, source=source)
        except ArtefactError:
            listing = Listing(source, note=f"{source} cannot be read")
        if listing.names or listing.note:
            found[path] = listing
    return found


def files_beside(folder: Path, *, suffixes: tuple[str, ...]) -> PassedOver:
    """What stands in `folder` and below beside its own files of these `suffixes`, which are read."""
    passed = PassedOver()
    ours = OF_BRICS | ({"README.md"} if Path(folder, "brics.json").is_file() else set())
    for name, _ in _walk(str(folder), "", set(), passed):
        of_img2dataset = (
            name.endswith("_stats.json") and Path(folder, name.removesuffix("_stats.json") + ".tar").is_file()
        )
        if not ("/" not in name and name.lower().endswith(suffixes)) and name not in ours and not of_img2dataset:
            passed.files[extension_of(name)] += 1
    return passed


def _scan(root: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]], PassedOver]:
    """(path relative to `root`, size in bytes) of the images and possible sidecars, sorted, and of the listings; and
    what else is there."""
    passed = PassedOver()
    found, listings = [], []
    for name, size in _walk(root, "", set(), passed):
        if is_listing(name):
            listings.append((name, size))
        elif split_extension(name) is not None or name.rpartition(".")[2].lower() in EXTENSIONS:
            found.append((name, size))
        elif name not in OF_BRICS:
            passed.files[extension_of(name)] += 1
    return sorted(found), listings, passed


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


def _common_folders(names: list[str], *, depth: int) -> str | None:
    """The first `depth` folders of `names` where all have the same."""
    found = {"/".join(name.split("/", depth)[:depth]) for name in names}
    return found.pop() if len(found) == 1 else None
