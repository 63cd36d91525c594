"""A zip of images: StyleGAN's and EDM's layout (`00000/img00000000.png`, `dataset.json`), or any other.

Read in place. The central directory is read once; after that an image is one `pread` and, where it is deflated, one
`decompress`, so that threads and processes share nothing but the file.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import Annotations, Texts, recorded_class_names
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
from brics_cli.images.listings import DATASET_JSON, Listing, is_listing, read_listing
from brics_cli.images.names import Names
from brics_cli.images.passed_over import HIDDEN, PassedOver
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.process_cache import Descriptor, ProcessCache
from brics_cli.images.sources.samples import Samples, tidy_name
from brics_cli.images.splits import scope_of
from brics_cli.images.wanted import ANYTHING, Wanted

AGAIN = "Download or pack it again."
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra field


class ZipCollection(UnshardedCollection):
    """The images in the zip `path`, in sorted order.

    Labels come from `listings` and from sidecars; where `dataset.json` names `keys`,
    as `brics decode` writes them, they are the images' keys. Raises UsageError when there is no image, the zip is
    encrypted or holds an LMDB, or for labels that cannot be meant; ArtefactError when it is truncated or damaged.
    """

    kind = "zip"

    def __init__(self, path: Path, wanted: Wanted = ANYTHING) -> None:
        where = f"the zip {path}"
        self._file = visible_path(path)
        self._descriptors = ProcessCache(Descriptor.of, limit=1)
        found, self.passed_over = _members(path)
        members = sorted(found.items())
        names = [name for name, _ in members]
        images = [name for name in names if split_extension(name) is not None]
        if not images:
            self.passed_over += PassedOver(names)
            raise UsageError(
                f"no images in the zip {path}; {self.passed_over.describe() or 'it is empty'}",
                next="Give a zip with png, jpg or webp files.",
            )
        scope = scope_of(images, wanted.subset, where=where)
        self.note = scope.note
        above = {name for name in names if scope.is_above(name) and split_extension(name) is None}
        self.passed_over += PassedOver(name for name in above if not is_listing(name))
        members = [
            member
            for member in members
            if scope.holds(member[0]) or (is_listing(member[0]) and scope.is_beside(member[0], images))
        ]
        names = [name for name, _ in members]
        self.path = wanted.of(scope.of(str(self._file), wanted.subset))
        fields = survey([names]).fields(wanted.image_field, where=where)
        self.remark = fields.remark
        self._samples = Samples(names, where=where, fields=fields)
        infos = [info for _, info in members]
        self._offsets = np.array([info.header_offset for info in infos], np.int64)
        self._sizes = np.array([[info.compress_size, info.file_size] for info in infos], np.int64)
        self._crcs = np.array([info.CRC for info in infos], np.int64)
        self._deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in infos])
        listings = [self._listing(place, name) for place, name in enumerate(names) if is_listing(name)]
        self.passed_over += self._samples.passed_over(used={listing.source for listing in listings})
        image_names = [self._samples.image_name(position) for position in range(len(self._samples))]
        self._annotations = Annotations(
            image_names,
            where=where,
            listings=listings,
            sidecars=self._samples.labelled(),
            texts=self._texts,
            labels=wanted.labels is None,
            class_names=recorded_class_names(path),
            left_out=[name for name in images if not scope.holds(name)],
        )
        self._classes = FolderClasses(image_names, depth=scope.depth) if wanted.labels == "folder" else None
        self.class_names = self._annotations.class_names if self._classes is None else self._classes.names
        self._keys = self._listed_keys(next((each for each in listings if each.source == DATASET_JSON), None))
        used = {place for i in range(len(self._samples)) for place in self._samples.sidecars(i)}
        rows = [
            (printable(self._samples.image_name(i)), int(self._sizes[member, 0]), int(self._crcs[member]))
            for i, member in enumerate(self._samples.images.tolist())
        ]
        also = [(name, info.CRC) for place, (name, info) in enumerate(members) if place in used or is_listing(name)]
        self._cut(rows, also=also)

    def _listing(self, member: int, name: str) -> Listing:
        try:
            return read_listing(name, self._bytes(member), where=f"the zip {self._file}")
        except ImageError as error:
            raise ArtefactError(f"the zip {self._file}: its {printable(name)} is {error}", next=AGAIN) from None

    def _listed_keys(self, listing: Listing | None) -> Names | None:
        """The keys that `dataset.json` gives, if it gives every image one of its own."""
        if listing is None or not listing.keys:
            return None
        keys = [listing.keys.get(self._samples.image_name(i), "") for i in range(len(self._samples))]
        tidy = all(tidy_name(key, where=f"the zip {self._file}") == key for key in keys)
        return Names(keys) if tidy and len(set(keys)) == len(keys) else None

    def describe(self) -> str:
        classes = (
            f", {len(self._classes):,} folders as classes{self._classes.said}" if self._classes is not None else ""
        )
        return f"{len(self):,} images, zip{classes}{self._annotations.said}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        position = self._position(shard_index, index)
        return self._samples.key(position) if self._keys is None else self._keys[position]

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self._position(shard_index, index)
        label, meta = self._annotations.of(position, self._texts(position))
        if self._classes is not None:
            label, meta = self._classes.of(self._samples.image_name(position), meta)
        data = self._bytes(self._samples.image(position))
        return RawImage(self.key(shard_index, index), data, label, meta, shard_index, index)

    def _texts(self, position: int) -> Texts:
        return self._samples.texts(position, self._sidecar)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return [str(self._file)]

    def _sidecar(self, member: int) -> bytes:
        try:
            return self._bytes(member)
        except ImageError:
            return b""

    def _bytes(self, member: int) -> bytes:
        compressed, size = self._sizes[member].tolist()
        check_num_bytes(max(compressed, size))
        file, offset = self._descriptors[self._file], int(self._offsets[member])
        header = file.read(offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise ImageError("damaged: its header in the zip is gone")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        data = file.read(offset + _LOCAL_HEADER.size + name_length + extra_length, compressed)
        if self._deflated[member]:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ImageError(f"damaged: {error}") from None
        if len(data) != size or zlib.crc32(data) != int(self._crcs[member]):
            raise ImageError("damaged: its checksum in the zip differs")
        return data


def _check_apart(infos: list[zipfile.ZipInfo], *, where: str) -> None:
    """Raise ArtefactError when members overlap: a few megabytes can stand for petabytes then."""
    starts = np.array([info.header_offset for info in infos], np.int64)
    ends = starts + _LOCAL_HEADER.size + np.array([info.compress_size for info in infos], np.int64)
    order = np.argsort(starts, kind="stable")
    overlapping = np.flatnonzero(ends[order][:-1] > starts[order][1:])
    if len(overlapping):
        first = infos[int(order[overlapping[0]])].filename
        raise ArtefactError(f"{where} is damaged: {printable(first)!r} overlaps the file after it", next=AGAIN)


def _members(path: Path) -> tuple[dict[str, zipfile.ZipInfo], PassedOver]:
    """The files of a zip by tidy name, and what is left aside."""
    where = f"the zip {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise ArtefactError(f"{where} is truncated or damaged ({error})", next=AGAIN) from None
    _check_apart(infos, where=where)
    members: dict[str, zipfile.ZipInfo] = {}
    passed = PassedOver()
    for info in infos:
        if os.path.basename(info.filename) == "data.mdb":  # noqa: PTH119 - a name, not a path
            raise UsageError(f"{path} is a zipped LMDB, which cannot be mapped", next=f"Unzip it: unzip {path}")
        name = tidy_name(info.filename, where=where)
        if name is None:
            passed.reasons[HIDDEN] += 1
            continue
        if info.flag_bits & _ENCRYPTED:
            raise UsageError(f"{path} is encrypted", next="Unpack it with its password and give the folder.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(
                f"{path} is compressed by method {info.compress_type}, which is not read",
                next="Unpack it and give the folder.",
            )
        if name in members:
            raise ArtefactError(f"{where} holds {printable(name)!r} twice", next="Pack it again with unique names.")
        members[name] = info
    return members, passed
