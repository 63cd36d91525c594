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
from brics_cli.images.annotations import recorded_class_names
from brics_cli.images.collection import ANYTHING, HIDDEN, Wanted, check_num_bytes, printable, virtual_shards
from brics_cli.images.listings import DATASET_JSON, Listing
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.members import MemberCollection, Members, tidy_name
from brics_cli.images.sources.memory import Descriptor, Names, ProcessCache
from brics_cli.workspace.mirrors import present

AGAIN = "Download or pack it again."
ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra field


class ZipCollection(MemberCollection):
    """The images in a zip, in sorted order.

    Where `dataset.json` names `keys`, as `brics decode` writes them, they are the images' keys. Raises UsageError when
    there is no image, the zip is encrypted or holds an LMDB, or for labels that cannot be meant; ArtefactError when it
    is truncated or damaged.
    """

    kind = "zip"

    def __init__(self, path: str, files: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        self._file = Path(path)
        self._descriptors = ProcessCache(Descriptor.of, limit=1)
        title = f"the zip {files[0]}"
        members = self._list(files[0], title)
        names = recorded_class_names(files[0])
        self._arrange([members], wanted, path=path, titles=[title], class_names=names)
        (members,), (samples,) = self._members, self._samples
        self._keys = self._listed_keys(title)
        sizes, crcs = members.columns[:, 0], members.columns[:, 2]
        images = [samples.image(image) for image in range(len(samples))]
        beside = {member for image in range(len(samples)) for member, _ in samples.sidecars(image)}
        self.shards = virtual_shards(
            sizes[images].tolist(),
            rows=[(printable(members.names[image]), int(sizes[image]), int(crcs[image])) for image in images],
            also=[(members.names[place], int(crcs[place])) for place in sorted({*beside, *samples.listings})],
        )

    def _list(self, path: Path, title: str) -> Members:
        """Its files by tidy name: compressed size, size, CRC, offset of the header, whether it is deflated."""
        found: dict[str, zipfile.ZipInfo] = {}
        for info in read_directory(path, title, again=AGAIN):
            if os.path.basename(info.filename) == "data.mdb":  # noqa: PTH119 - a name, not a path
                raise UsageError(f"{path} is a zipped LMDB, which cannot be mapped", next=f"Unzip it: unzip {path}")
            name = tidy_name(info.filename, where=title)
            if name is None:
                self.passed_over.reasons[HIDDEN] += 1
                continue
            if info.flag_bits & ENCRYPTED:
                raise UsageError(f"{path} is encrypted", next="Unpack it with its password and give the folder.")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UsageError(
                    f"{path} is compressed by method {info.compress_type}, which is not read",
                    next="Unpack it and give the folder.",
                )
            if name in found:
                raise ArtefactError(f"{title} holds {printable(name)!r} twice", next="Pack it again with unique names.")
            found[name] = info
        names, infos = sorted(found), [found[name] for name in sorted(found)]
        columns = [
            (each.compress_size, each.file_size, each.CRC, each.header_offset, each.compress_type) for each in infos
        ]
        return Members(Names(names), np.array(columns, np.int64))

    def _listed_keys(self, title: str) -> Names | None:
        """The keys that `dataset.json` gives, if it gives every image one of its own."""
        listing = next((each for each in self.listings if each.source == DATASET_JSON), Listing(""))
        if not listing.keys:
            return None
        keys = [listing.keys.get(self._samples[0].name(image), "") for image in range(len(self._samples[0]))]
        tidy = all(tidy_name(key, where=title) == key for key in keys)
        return Names(keys) if tidy and len(set(keys)) == len(keys) else None

    def key(self, shard_index: int, index: int) -> str:
        if self._keys is None:
            return super().key(shard_index, index)
        return self._keys[self.starts[shard_index] + index]

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return [str(self._file)]

    def _bytes(self, container: int, member: int) -> bytes:
        compressed, size, crc, offset, method = self._members[container].columns[member].tolist()
        check_num_bytes(max(compressed, size))
        file = self._descriptors[self._file]
        start = start_of_member(file, offset)
        if start is None:
            raise ImageError("damaged: its header in the zip is gone")
        data = file.read(start, compressed)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ImageError(f"damaged: {error}") from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise ImageError("damaged: its checksum in the zip differs")
        return data


def start_of_member(file: Descriptor, offset: int) -> int | None:
    """Where the bytes of a member begin whose header is at `offset`; None where there is no header."""
    header = file.read(offset, _LOCAL_HEADER.size) if offset >= 0 else b""  # it is reckoned from the end
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        return None
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def read_directory(path: Path, title: str, *, again: str) -> list[zipfile.ZipInfo]:
    """The files of a zip. Raises ArtefactError for a damaged one, and when members overlap: a few megabytes can stand
    for petabytes then."""
    try:
        with present(path) as here, zipfile.ZipFile(here) as archive:
            infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
        starts = np.array([info.header_offset for info in infos], np.int64)
        ends = starts + _LOCAL_HEADER.size + np.array([info.compress_size for info in infos], np.int64)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise ArtefactError(f"{title} is truncated or damaged ({error})", next=again) from None
    order = np.argsort(starts, kind="stable")
    overlapping = np.flatnonzero(ends[order][:-1] > starts[order][1:])
    if len(overlapping):
        first = infos[int(order[overlapping[0]])].filename
        raise ArtefactError(f"{title} is damaged: {printable(first)!r} overlaps the file after it", next=again)
    return infos


FORMAT = Format(
    "a zip file",
    reads="zips",
    suffixes=(".zip",),
    open=ZipCollection,
    is_file=lambda path, first: first.startswith((b"PK\x03\x04", b"PK\x05\x06")),
    several="choices",
    has_subsets=True,
)
