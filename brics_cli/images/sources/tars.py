"""WebDataset shards: tar files whose members of one stem (`0001.jpg`, `0001.cls`, `0001.json`) make one sample.

Our own pass over the tar headers (`tar_index`), since webdataset's grouping splits all names at the first dot (`fields`
says when that is meant), accepts truncated files and can merge the last sample of one shard into the next (its issue
#237). Any image is one `pread` away. Tars are read as bytes alone: nothing is extracted, run or unpickled. A compressed
tar has no offsets: it is unpacked to a temporary file that has no name, so that nothing of it stays.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from brics_cli.errors import ArtefactError
from brics_cli.images.annotations import recorded_class_names
from brics_cli.images.collection import (
    ANYTHING,
    Shard,
    Wanted,
    check_num_bytes,
    printable,
    shard_layout,
    shard_names,
    visible_path,
)
from brics_cli.images.listings import LISTINGS, Listing, read_listing
from brics_cli.images.passed_over import HIDDEN
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.members import MemberCollection
from brics_cli.images.sources.memory import Descriptor, ProcessCache
from brics_cli.images.sources.tar_index import AGAIN, index_tar
from brics_cli.images.unpacking import copy_unpacked
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.wording import count

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst")
"""Names that say `tar`. What a file is packed with is seen in its first bytes."""
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
        self._plain = ProcessCache(Descriptor.of, limit=MAX_OPEN_TARS)
        self._unpacked = ProcessCache(unpack, limit=MAX_UNPACKED)
        self._compressed = [compression_of(tar) is not None for tar in self._paths]
        names = shard_names(self._paths, [_without_suffix(tar.name) for tar in self._paths])
        titles = [f"the tar {tar}" for tar in self._paths]
        indices = [index_tar(title, self._descriptor(number)) for number, title in enumerate(titles)]
        self.passed_over.reasons[HIDDEN] += sum(num_hidden for _, num_hidden in indices)
        beside = _listings_beside(self._paths)
        self._listings_beside = list(map(str, beside))
        num_files = f"the {count(len(paths), 'tar file')} of {path}"
        self._arrange(
            [members for members, _ in indices],
            wanted,
            path=path,
            titles=titles,
            where=num_files,
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
        whole = not self.in_split
        num_checked = check_img2dataset_counts(self._paths, [len(each) for each in self._samples]) if whole else 0
        num_failed = sum(map(_num_not_downloaded, self._paths)) if whole else 0
        if num_failed:
            self.passed_over.reasons["images that img2dataset could not download"] += num_failed
        self.form = f", {count(len(self.shards), 'shard')}{', compressed' if any(self._compressed) else ''}"
        self.form += ", made by img2dataset (counts checked)" if num_checked else ""

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
    with path.open("rb") as file:
        first = file.read(6)
    return next((name for magic, name in _MAGIC_OF.items() if first.startswith(magic)), None)


def unpack(tar: Path) -> Descriptor:
    """The compressed `tar`, unpacked to a temporary file without a name. Raises ArtefactError for a damaged one."""
    compression = compression_of(tar)
    damage: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    if compression == "zstd":
        import zstandard

        damage = (zstandard.ZstdError,)
    with tempfile.TemporaryFile(prefix="brics-") as temporary, _open_compressed(tar, compression) as source:
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


def check_img2dataset_counts(paths: Sequence[Path], counts: Sequence[int]) -> int:
    """Hold the `NNNNN_stats.json` that img2dataset writes last beside each tar against the tar's images.

    Returns how many were held. Raises ArtefactError when a count differs, or a tar lacks the file others have.
    """
    expected = [_img2dataset_stats(tar).get("successes") for tar in paths]
    for tar, num, successes in zip(paths, counts, expected, strict=True):
        if successes is not None and successes != num:
            raise ArtefactError(
                f"the tar {tar} holds {count(num, 'image')}, and {_stats_path(tar).name} says {successes:,}", next=AGAIN
            )
    unfinished = [tar for tar, found in zip(paths, expected, strict=True) if found is None and tar.stem.isdigit()]
    num_checked = sum(successes is not None for successes in expected)
    if num_checked and unfinished:
        raise ArtefactError(
            f"img2dataset has not finished {unfinished[0]}: {_stats_path(unfinished[0]).name} is missing",
            next="Run img2dataset again, or move that tar away.",
        )
    return num_checked


def _num_not_downloaded(tar: Path) -> int:
    stats = _img2dataset_stats(tar)
    return max(stats.get("count", 0) - stats.get("successes", 0), 0) if "successes" in stats else 0


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
