"""WebDataset shards: tar files whose members of one stem (`0001.jpg`, `0001.cls`, `0001.json`) make one sample.

Our own pass over the tar headers (`tar_index`), since webdataset's grouping splits names at the first dot, accepts
truncated files and can merge the last sample of one shard into the next (its issue #237). Any image is one `pread`
away. Tars are read as bytes alone: nothing is extracted, run or unpickled. A compressed tar has no offsets:
it is unpacked to a temporary file that has no name, so that nothing of it stays.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, cast

from brics_cli.data.annotations import Annotations, Texts
from brics_cli.data.collection import (
    Collection,
    RawImage,
    Shard,
    check_num_bytes,
    shard_fingerprint,
    shard_names,
    visible_path,
)
from brics_cli.data.sources.process_cache import Descriptor, ProcessCache
from brics_cli.data.sources.tar_index import AGAIN, TarIndex, index_tar
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace import read_provenance

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Names that say `tar`. What a file is packed with is seen in its first bytes."""
MAX_OPEN_TARS = 64
MAX_UNPACKED = 4

_MAGIC_OF: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


class WebDatasetCollection(Collection):
    """The tars `paths`, in that order; `path` is what the user gave, made absolute.

    Raises ArtefactError for a truncated or damaged tar, or one that holds another number of images than the
    statistics of img2dataset beside it say; UsageError when there is no image in any of them.
    """

    kind = "WebDataset"

    def __init__(self, path: str, paths: Sequence[Path]) -> None:
        self.path = path
        self._paths = [visible_path(tar) for tar in paths]
        self._plain = ProcessCache(Descriptor.of, limit=MAX_OPEN_TARS)
        self._unpacked = ProcessCache(unpack, limit=MAX_UNPACKED)
        self._compressed = [is_compressed(tar) for tar in self._paths]
        names = shard_names(self._paths, [_without_suffix(tar.name) for tar in self._paths])
        self._indices: list[TarIndex] = []
        self.shards = []
        for number, (tar, name) in enumerate(zip(self._paths, names, strict=True)):
            index = index_tar(tar, self._descriptor(number))
            size_bytes = tar.stat().st_size
            fingerprint = shard_fingerprint(name, size_bytes, index.fingerprint_rows)
            self._indices.append(index._replace(fingerprint_rows=[]))
            self.shards.append(Shard(name, len(index.samples), size_bytes, fingerprint))
        self._num_checked = check_img2dataset_counts(self._paths, [len(index.samples) for index in self._indices])
        if not len(self):
            raise UsageError(f"no images in the {len(self._paths)} tar files of {path}", next="Give tars with images.")
        self._starts = [0, *accumulate(shard.num_images for shard in self.shards)]
        sidecars = [
            start + image
            for start, index in zip(self._starts, self._indices, strict=False)
            for image in index.samples.labelled()
        ]
        self._annotations = Annotations(
            self.keys(),
            where=path,
            sidecars=sidecars,
            texts=lambda image: self._texts(*self.places([image])[0]),
            class_names=class_names_of(self._paths),
        )
        self.class_names = self._annotations.class_names

    def describe(self) -> str:
        num_shards = f"{len(self.shards):,} shard" + ("s" if len(self.shards) != 1 else "")
        compressed = ", compressed" if any(self._compressed) else ""
        checked = ", made by img2dataset (counts checked)" if self._num_checked else ""
        return f"{len(self):,} images, WebDataset, {num_shards}{compressed}{checked}{self._annotations.said}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return f"{self.shards[shard_index].name}/{self._indices[shard_index].samples.key(index)}"

    def read(self, shard_index: int, index: int) -> RawImage:
        samples = self._indices[shard_index].samples
        label, meta = self._annotations.of(self._starts[shard_index] + index, self._texts(shard_index, index))
        data = self._bytes(shard_index, samples.image(index))
        return RawImage(self.key(shard_index, index), data, label, meta, shard_index, index)

    def _texts(self, shard_index: int, index: int) -> Texts:
        samples = self._indices[shard_index].samples
        return samples.texts(index, lambda member: self._bytes(shard_index, member))

    def _bytes(self, shard_index: int, member: int) -> bytes:
        tar = self._indices[shard_index]
        offset, size = int(tar.offsets[member]), int(tar.sizes[member])
        check_num_bytes(size)
        data = self._descriptor(shard_index).read(offset, size)
        if len(data) != size:
            raise ArtefactError(f"the tar {self._paths[shard_index]} became shorter while it was read")
        return data

    def _descriptor(self, shard_index: int) -> Descriptor:
        cache = self._unpacked if self._compressed[shard_index] else self._plain
        return cache[self._paths[shard_index]]


def class_names_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """The names of the classes in the folder of `paths`, where brics wrote it and knew them."""
    folders = {tar.parent for tar in paths}
    artefact = read_provenance(folders.pop()) if len(folders) == 1 else None
    return tuple(artefact.details.get("class_names", ())) if artefact is not None else ()


def is_compressed(tar: Path) -> bool:
    """Whether the first bytes are those of gzip, bzip2 or xz."""
    return _compression(tar) is not None


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        first = file.read(6)
    return next((name for magic, name in _MAGIC_OF.items() if first.startswith(magic)), None)


def _open_compressed(path: Path) -> IO[bytes]:
    compression = _compression(path)
    if compression == "gzip":
        return cast("IO[bytes]", gzip.open(path))
    return bz2.open(path) if compression == "bzip2" else lzma.open(path)


def unpack(tar: Path) -> Descriptor:
    """The compressed `tar`, unpacked to a temporary file without a name. Raises ArtefactError for a damaged one."""
    with tempfile.TemporaryFile(prefix="brics-") as temporary, _open_compressed(tar) as source:
        try:
            shutil.copyfileobj(source, temporary, 2**20)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ArtefactError(f"the tar {tar} is truncated or damaged ({error})", next=AGAIN) from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decompressor's
                raise
            raise ArtefactError(f"the tar {tar} is damaged ({error})", next=AGAIN) from None
        temporary.flush()
        return Descriptor(os.dup(temporary.fileno()))


def check_img2dataset_counts(paths: Sequence[Path], counts: Sequence[int]) -> int:
    """Hold the `NNNNN_stats.json` that img2dataset writes last beside each tar against the tar's images.

    Returns how many were held. Raises ArtefactError when a count differs, or a tar lacks the file others have.
    """
    expected = [_img2dataset_successes(tar) for tar in paths]
    for tar, count, successes in zip(paths, counts, expected, strict=True):
        if successes is not None and successes != count:
            raise ArtefactError(
                f"the tar {tar} holds {count:,} images, and {_stats_path(tar).name} says {successes:,}", next=AGAIN
            )
    num_checked = sum(successes is not None for successes in expected)
    if num_checked:
        unfinished = next(
            (tar for tar, found in zip(paths, expected, strict=True) if found is None and tar.stem.isdigit()), None
        )
        if unfinished is not None:
            raise ArtefactError(
                f"img2dataset has not finished {unfinished}: {_stats_path(unfinished).name} is missing",
                next="Run img2dataset again, or move that tar away.",
            )
    return num_checked


def _stats_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name.partition('.')[0]}_stats.json")


def _img2dataset_successes(tar: Path) -> int | None:
    try:
        stats = json.loads(_stats_path(tar).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    successes = stats.get("successes") if isinstance(stats, dict) else None
    return successes if isinstance(successes, int) else None


def _without_suffix(name: str) -> str:
    for suffix in sorted(TAR_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name
