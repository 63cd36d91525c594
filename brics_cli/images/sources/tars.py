"""WebDataset shards: tar files whose members of one stem (`0001.jpg`, `0001.cls`, `0001.json`) make one sample.

Our own pass over the tar headers (`index_tar`), since webdataset's grouping splits all names at the first dot (`fields`
says when that is meant), accepts truncated files and can merge the last sample of one shard into the next (its issue
#237). Any image is one `pread` away. Tars are read as bytes alone: nothing is extracted, run or unpickled. A compressed
tar has no offsets: it is unpacked to a temporary file that has no name, so that nothing of it stays.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.images.annotations import recorded_class_names
from brics_cli.images.collection import (
    ANYTHING,
    HIDDEN,
    Shard,
    Wanted,
    check_num_bytes,
    is_image,
    printable,
    shard_layout,
    shard_names,
    visible_path,
)
from brics_cli.images.listings import LISTINGS, Listing, read_listing
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.members import MemberCollection, Members, tidy_name
from brics_cli.images.sources.memory import Descriptor, Names, ProcessCache
from brics_cli.images.unpacking import COMPRESSED_SUFFIXES, copy_unpacked
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.wording import count
from brics_cli.workspace.mirrors import HOLES, is_mirrored, present

TAR_SUFFIXES = (".tar", *COMPRESSED_SUFFIXES)
"""Names that say `tar`. What a file is packed with is seen in its first bytes."""
AGAIN = "Download or pack that shard again."
BLOCK = tarfile.BLOCKSIZE
_READ_TOGETHER = 2**20
_FILE, _FOLDER = (b"0", b"\0"), b"5"
MAX_OPEN_TARS = 64
MAX_UNPACKED = 4

_MAGIC_OF: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class TarCollection(MemberCollection):
    """The tars `paths`, in that order; `path` is what the user gave, made absolute.

    Listings in a tar say something of its images, those in the folder of all of them of any. Raises ArtefactError for
    a truncated or damaged tar, or one that holds another number of images than the statistics of img2dataset beside it
    say; NoImagesError when there is no image in any of them.
    """

    kind = "WebDataset"

    def __init__(self, path: str, paths: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        self._paths = [visible_path(tar) for tar in paths]
        limit = 1 if is_mirrored(self._paths[0]) else MAX_OPEN_TARS  # what is open cannot make room
        self._plain = ProcessCache(Descriptor.of, limit=limit)
        self._unpacked = ProcessCache(unpack, limit=MAX_UNPACKED)
        self._compressed = [compression_of(tar) is not None for tar in self._paths]
        names = shard_names(self._paths, [_without_suffix(tar.name) for tar in self._paths])
        titles = [f"the tar {tar}" for tar in self._paths]
        indices = [index_tar(title, self._descriptor(number)) for number, title in enumerate(titles)]
        self.passed_over.reasons[HIDDEN] += sum(num_hidden for _, num_hidden in indices)
        beside = _listings_beside(self._paths)
        self._listings_beside = list(map(str, beside))
        self._arrange(
            [members for members, _ in indices],
            wanted,
            path=path,
            titles=titles,
            where=titles[0] if len(titles) == 1 else f"the {len(titles):,} tar files of {path}",
            prefixes=[f"{name}/" for name in names],
            listings=list(beside.values()),
            class_names=recorded_class_names(*self._paths),
            is_tar=True,
        )
        fields = [] if self.image_fields is None else [("images", *sorted(self.image_fields))]
        also = [(listing, os.stat(listing).st_size) for listing in self._listings_beside]  # noqa: PTH116
        self.shards = []
        for tar, name, members, samples in zip(self._paths, names, self._members, self._samples, strict=True):
            shown, size_bytes = map(printable, members.names), tar.stat().st_size
            rows: list[tuple[object, ...]] = list(zip(shown, *members.columns.T.tolist(), strict=True))
            layout = shard_layout(name, size_bytes, [*rows, *fields, *also])
            self.shards.append(Shard(name, len(samples), size_bytes, layout))
        downloads = {} if self.in_split else _check_img2dataset(self._paths, [len(each) for each in self._samples])
        if num_failed := sum(max(stats.get("count", 0) - stats["successes"], 0) for stats in downloads.values()):
            self.passed_over.reasons["images that img2dataset could not download"] += num_failed
        self.form = f", {count(len(self.shards), 'shard')}{', compressed' if any(self._compressed) else ''}"
        self.form += ", made by img2dataset (counts checked)" if downloads else ""
        self._plain.clear()  # of a remote tar it may be all but the images

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return [str(self._paths[shard_index]), *self._listings_beside]

    def _bytes(self, container: int, member: int) -> bytes:
        size, offset = self._members[container].columns[member].tolist()
        check_num_bytes(size)
        data = self._descriptor(container).read(offset, size)
        if len(data) != size:
            raise ArtefactError(f"the tar {self._paths[container]} became shorter while it was read")
        return data

    def _descriptor(self, container: int) -> Descriptor:
        cache = self._unpacked if self._compressed[container] else self._plain
        return cache[self._paths[container]]


def _listings_beside(tars: Sequence[Path]) -> dict[Path, Listing]:
    """The listings in the folder that all `tars` are in."""
    folders = {tar.parent for tar in tars}
    paths = [folder / name for folder in folders for name in LISTINGS] if len(folders) == 1 else []
    found = {}
    for path in paths:
        if path.is_file():
            listing = read_listing(path.name, path.read_bytes(), where=f"the folder {path.parent}")
            if listing.names:
                found[path] = listing
    return found


def compression_of(path: Path) -> str | None:
    """What a file is compressed with by its first bytes: gzip, bzip2, xz, zstd, or None."""
    with present(path) as here, here.open("rb") as file:
        first = file.read(6)
    return next((name for magic, name in _MAGIC_OF.items() if first.startswith(magic)), None)


def unpack(tar: Path) -> Descriptor:
    """The compressed `tar`, unpacked to a temporary file without a name. Raises ArtefactError for a damaged one."""
    compression = compression_of(tar)
    damage: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    if compression == "zstd":
        import zstandard

        damage = (zstandard.ZstdError,)
    with (
        tempfile.TemporaryFile(prefix="brics-") as temporary,
        present(tar) as here,
        _open_compressed(here, compression) as source,
    ):
        try:
            copy_unpacked(source, temporary, where=tar)
        except damage as error:
            raise ArtefactError(f"the tar {tar} is truncated or damaged ({error})", next=AGAIN) from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decompressor's
                raise
            raise ArtefactError(f"the tar {tar} is damaged ({error})", next=AGAIN) from None
        temporary.flush()
        return Descriptor(os.dup(temporary.fileno()))


def _open_compressed(path: Path, compression: str | None) -> IO[bytes]:
    if compression == "gzip":
        return cast("IO[bytes]", gzip.open(path))
    if compression == "zstd":
        import zstandard

        source = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
        return cast("IO[bytes]", source)
    return bz2.open(path) if compression == "bzip2" else lzma.open(path)


def _check_img2dataset(paths: Sequence[Path], counts: Sequence[int]) -> dict[Path, dict[str, int]]:
    """Hold the `NNNNN_stats.json` that img2dataset writes last beside each tar against the tar's images.

    Returns the statistics by tar. Raises ArtefactError when a count differs, or a tar lacks the file others have.
    """
    found = {tar: stats for tar in paths if "successes" in (stats := _img2dataset_stats(tar))}
    for tar, num in zip(paths, counts, strict=True):
        if tar in found and (successes := found[tar]["successes"]) != num:
            raise ArtefactError(
                f"the tar {tar} holds {count(num, 'image')}, and {_stats_path(tar).name} says {successes:,}", next=AGAIN
            )
    unfinished = [tar for tar in paths if tar not in found and tar.stem.isdigit()]
    if found and unfinished:
        raise ArtefactError(
            f"img2dataset has not finished {unfinished[0]}: {_stats_path(unfinished[0]).name} is missing",
            next="Run img2dataset again, or move that tar away.",
        )
    return found


def _stats_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name.partition('.')[0]}_stats.json")


def _img2dataset_stats(tar: Path) -> dict[str, int]:
    """The whole numbers in the statistics beside a tar; none where there are no statistics."""
    try:
        stats = parse_json(read_bytes(_stats_path(tar)))
    except (OSError, ValueError):
        return {}
    return {name: num for name, num in stats.items() if isinstance(num, int)} if isinstance(stats, dict) else {}


def _without_suffix(name: str) -> str:
    for suffix in sorted(TAR_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name


# Where everything in a tar is: one pass over its headers, offsets kept. Most tars say nothing but names and sizes;
# their headers are read here, three times as fast as `tarfile` does. A tar with anything else in it (links, long names,
# PAX records, damage) is left to `tarfile` as a whole. A tar inside a tar (ImageNet's, one for each class) is read as a
# folder of its name, one level deep.


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


def images_in(tar: Path) -> list[tuple[int, int]] | None:
    """Where the images of a tar are, (offset, size) in order; None of a compressed one, and of one that is damaged."""
    try:
        members = list(_with_inner_tars("", Descriptor(os.open(tar, os.O_RDONLY | os.O_CLOEXEC))))
    except ArtefactError:
        return None
    return sorted((member.offset, member.size) for member in members if is_image(member.name))


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


HOLES[".tar"] = images_in
FORMAT = Format(
    "a tar",
    reads="WebDataset tars (x.tar, a folder of tars, x-{000..003}.tar)",
    suffixes=TAR_SUFFIXES,
    open=TarCollection,
    is_file=lambda path, first: path.name.lower().endswith(TAR_SUFFIXES) or first[257:].startswith(b"ustar"),
    joins=True,
    several="shards",
    has_subsets=True,
)
