"""Where everything in a tar is: one pass over its headers, offsets kept.

Most tars say nothing but names and sizes; their headers are read here, three times as fast as `tarfile` does. A tar
with anything else in it (links, long names, PAX records, damage) is left to `tarfile` as a whole. A tar inside a tar
(ImageNet's, one for each class) is read as a folder of its name, one level deep.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import printable
from brics_cli.images.sources.members import Members, tidy_name
from brics_cli.images.sources.memory import Descriptor, Names

AGAIN = "Download or pack that shard again."
BLOCK = tarfile.BLOCKSIZE
_READ_TOGETHER = 2**20
_FILE, _FOLDER = (b"0", b"\0"), b"5"


class TarMember(NamedTuple):
    """A file in a tar: its name as it stands, and where its bytes are."""

    name: str
    offset: int
    size: int


def index_tar(title: str, descriptor: Descriptor) -> tuple[Members, int]:
    """What is in the tar called `title`: its files (size, offset), and how many are hidden. `descriptor` is of its
    unpacked bytes.

    Raises ArtefactError when it is no tar, damaged, ends too early, or holds more after its end mark.
    """
    names: list[str] = []
    sizes: list[int] = []
    offsets: list[int] = []
    num_hidden = 0
    for name, offset, size in _with_inner_tars(title, descriptor):
        tidy = tidy_name(name, where=title)
        if tidy is None:
            num_hidden += 1
            continue
        names.append(tidy)
        sizes.append(size)
        offsets.append(offset)
    return Members(Names(names), np.array([sizes, offsets], np.int64).T), num_hidden


def _with_inner_tars(title: str, descriptor: Descriptor) -> Iterator[TarMember]:
    for member in _members(title, descriptor, 0, os.fstat(descriptor.number).st_size):
        if member.name.lower().endswith(".tar") and _begins_as_tar(descriptor, member.offset):
            inner_title = f"{title}: the tar {printable(member.name)!r} in it"
            for inner in _members(inner_title, descriptor, member.offset, member.offset + member.size):
                yield inner._replace(name=f"{member.name[: -len('.tar')]}/{inner.name}")
        else:
            yield member


def _begins_as_tar(descriptor: Descriptor, offset: int) -> bool:
    try:
        tarfile.TarInfo.frombuf(descriptor.read(offset, BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _members(title: str, descriptor: Descriptor, start: int, stop: int) -> list[TarMember]:
    """The files of the tar in bytes `start` to `stop`, every one whole, with two blocks of zeros after the last, and
    nothing but zeros after those.

    tarfile stops in silence at a damaged header, at a missing end and at an end in the middle; so the end is looked at
    here.
    """
    members, end = plain_members(descriptor, start, stop) or tarfile_members(title, descriptor, start, stop)
    if end > stop:
        raise ArtefactError(f"{title} is truncated: {stop - start:,} of at least {end - start:,} bytes", next=AGAIN)
    tail = descriptor.read(end, min(2 * BLOCK, stop - end))
    if len(tail) < 2 * BLOCK:
        raise ArtefactError(f"{title} is truncated: its end mark is missing", next=AGAIN)
    if any(tail):
        raise ArtefactError(f"{title} is damaged at byte {end - start:,}", next=AGAIN)
    for offset in range(end, stop, _READ_TOGETHER):
        if descriptor.read(offset, min(_READ_TOGETHER, stop - offset)).strip(b"\0"):
            raise ArtefactError(
                f"{title} holds more after its end mark: {stop - end - 2 * BLOCK:,} bytes that no reader sees "
                "(several tars in one file?)",
                next="Unpack it with tar --ignore-zeros, and pack what comes out; or make it again with one end.",
            )
    return members


def plain_members(descriptor: Descriptor, start: int, stop: int) -> tuple[list[TarMember], int] | None:
    """The files of a tar of plain files and folders, and where its end mark begins; None for any other tar."""
    members: list[TarMember] = []
    offset = start
    while True:
        header = descriptor.read(offset, BLOCK) if offset + BLOCK <= stop else b""
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
            members.append(TarMember(name, offset, size))
            offset += -(-size // BLOCK) * BLOCK


def _opened(file: IO[bytes], start: int) -> tarfile.TarFile:
    file.seek(start)
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")


def tarfile_members(title: str, descriptor: Descriptor, start: int, stop: int) -> tuple[list[TarMember], int]:
    """The same for any tar, by `tarfile`. A hard link is the file it links to.

    Raises ArtefactError for a tar that is damaged or holds sparse files or other links.
    """
    members: list[TarMember] = []
    places: dict[str, TarMember] | None = None
    try:
        with os.fdopen(os.dup(descriptor.number), "rb") as file, _opened(file, start) as opened:
            while opened.offset < stop and (info := opened.next()) is not None:
                opened.members.clear()  # type: ignore[attr-defined]  # else every TarInfo stays
                if info.issparse():
                    raise ArtefactError(
                        f"{title} holds {info.name!r} as a sparse file", next="Pack it again without --sparse."
                    )
                if info.islnk() or info.issym():
                    if places is None:
                        places = {member.name: member for member in members}
                    if info.issym() or info.linkname not in places:
                        raise ArtefactError(
                            f"{title} holds {printable(info.name)!r} as a link",
                            next="Pack it again with tar --dereference --hard-dereference.",
                        )
                    members.append(places[info.linkname]._replace(name=info.name))
                elif info.isreg():
                    members.append(TarMember(info.name, info.offset_data, info.size))
                    if places is not None:
                        places[info.name] = members[-1]
            return members, opened.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{title} is truncated or damaged ({error})", next=AGAIN) from None
