"""Where everything in a tar is: one pass over its headers, offsets kept.

Most tars say nothing but names and sizes; their headers are read here, three times as fast as `tarfile` does. A tar
with anything else in it (links, long names, PAX records, damage) is left to `tarfile` as a whole. A tar inside a tar
(ImageNet's, one for each class) is read as a folder of its name, one level deep.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import printable
from brics_cli.images.names import Names
from brics_cli.images.sources.process_cache import Descriptor
from brics_cli.images.sources.samples import tidy_name

AGAIN = "Download or pack that shard again."
BLOCK = tarfile.BLOCKSIZE
_READ_TOGETHER = 2**20
_FILE, _FOLDER = (b"0", b"\0"), b"5"


class TarIndex(NamedTuple):
    """Where everything in a tar is. M members that are files and not hidden."""

    names: Names  # (M,)
    offsets: np.ndarray  # (M,)
    sizes: np.ndarray  # (M,)
    num_hidden: int


class Member(NamedTuple):
    """A file in a tar: its name as it stands, and where its bytes are."""

    name: str
    offset: int
    size: int


def index_tar(tar: Path, descriptor: Descriptor) -> TarIndex:
    """What is in a tar; `descriptor` is of its unpacked bytes.

    Raises ArtefactError when it is no tar, damaged, ends too early, or holds more after its end mark.
    """
    where = f"the tar {tar}"
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    num_hidden = 0
    for name, offset, size in _with_inner_tars(where, descriptor):
        tidy = tidy_name(name, where=where)
        if tidy is None:
            num_hidden += 1
            continue
        names.append(tidy)
        offsets.append(offset)
        sizes.append(size)
    return TarIndex(Names(names), np.array(offsets, np.int64), np.array(sizes, np.int64), num_hidden)


def _with_inner_tars(where: str, descriptor: Descriptor) -> Iterator[Member]:
    size_bytes = os.fstat(descriptor.number).st_size
    for member in _members(where, Window(descriptor, 0, size_bytes)):
        if not member.name.lower().endswith(".tar"):
            yield member
            continue
        window = Window(descriptor, member.offset, member.size)
        if not _begins_as_tar(window):
            yield member
            continue
        folder = member.name[: -len(".tar")]
        for inner in _members(f"{where}: the tar {printable(member.name)!r} in it", window):
            yield Member(f"{folder}/{inner.name}", member.offset + inner.offset, inner.size)


def _begins_as_tar(window: Window) -> bool:
    try:
        tarfile.TarInfo.frombuf(window.read_at(0, BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _members(where: str, window: Window) -> list[Member]:
    """The files of a tar, every one whole, with two blocks of zeros after the last, and nothing but zeros after those.

    tarfile stops in silence at a damaged header, at a missing end and at an end in the middle; so the end is looked at
    here.
    """
    members, end = plain_members(window) or tarfile_members(where, window)
    if end > window.size:
        raise ArtefactError(f"{where} is truncated: {window.size:,} of at least {end:,} bytes", next=AGAIN)
    tail = window.read_at(end, 2 * BLOCK)
    if len(tail) < 2 * BLOCK:
        raise ArtefactError(f"{where} is truncated: its end mark is missing", next=AGAIN)
    if any(tail):
        raise ArtefactError(f"{where} is damaged at byte {end:,}", next=AGAIN)
    for offset in range(end, window.size, _READ_TOGETHER):
        if window.read_at(offset, _READ_TOGETHER).strip(b"\0"):
            raise ArtefactError(
                f"{where} holds more after its end mark: {window.size - end - 2 * BLOCK:,} bytes that no reader sees "
                "(several tars in one file?)",
                next="Unpack it with tar --ignore-zeros, and pack what comes out; or make it again with one end.",
            )
    return members


class Window(io.RawIOBase):
    """Part of a file: `size` bytes from `start` on, read by position or as a file of their own."""

    def __init__(self, descriptor: Descriptor, start: int, size: int) -> None:
        self._descriptor, self._start, self.size = descriptor, start, size
        self._place = 0

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` from `offset` on; fewer at the end."""
        return self._descriptor.read(self._start + offset, max(0, min(num_bytes, self.size - offset)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read_at(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place


def plain_members(window: Window) -> tuple[list[Member], int] | None:
    """The files of a tar of plain files and folders, and where its end mark begins; None for any other tar."""
    members: list[Member] = []
    offset = 0
    while True:
        header = window.read_at(offset, BLOCK)
        if len(header) < BLOCK:
            return None
        if header[0] == 0:
            return (members, offset) if not any(header) else None
        kind, prefix = header[156:157], header[345]
        if prefix or not (kind in _FILE or kind == _FOLDER):
            return None
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
        except ValueError:
            return None
        if size < 0 or sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
            return None
        name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        offset += BLOCK
        if kind != _FOLDER:
            if name.endswith("/"):  # a folder in tars of old
                return None
            members.append(Member(name, offset, size))
            offset += -(-size // BLOCK) * BLOCK


def tarfile_members(where: str, window: Window) -> tuple[list[Member], int]:
    """The same for any tar, by `tarfile`. A hard link is the file it links to.

    Raises ArtefactError for a tar that is damaged or holds sparse files or other links.
    """
    members: list[Member] = []
    places: dict[str, Member] | None = None
    try:
        file = io.BufferedReader(window)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
            while (info := opened.next()) is not None:
                opened.members.clear()  # type: ignore[attr-defined]  # else every TarInfo stays
                if info.issparse():
                    raise ArtefactError(
                        f"{where} holds {info.name!r} as a sparse file", next="Pack it again without --sparse."
                    )
                if info.islnk() or info.issym():
                    if places is None:
                        places = {member.name: member for member in members}
                    if info.issym() or info.linkname not in places:
                        raise ArtefactError(
                            f"{where} holds {printable(info.name)!r} as a link",
                            next="Pack it again with tar --dereference --hard-dereference.",
                        )
                    members.append(places[info.linkname]._replace(name=info.name))
                elif info.isreg():
                    members.append(Member(info.name, info.offset_data, info.size))
                    if places is not None:
                        places[info.name] = members[-1]
            return members, opened.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{where} is truncated or damaged ({error})", next=AGAIN) from None
