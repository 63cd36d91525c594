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
from itertools import accumulate
from pathlib import Path
from typing import IO, cast

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import Annotations, Texts, recorded_class_names
from brics_cli.images.classes import FolderClasses
from brics_cli.images.collection import (
    Collection,
    RawImage,
    Shard,
    check_num_bytes,
    printable,
    shard_layout,
    shard_names,
    split_extension,
    visible_path,
)
from brics_cli.images.fields import survey
from brics_cli.images.names import Names
from brics_cli.images.passed_over import HIDDEN, PassedOver
from brics_cli.images.sources.process_cache import Descriptor, ProcessCache
from brics_cli.images.sources.samples import Samples
from brics_cli.images.sources.tar_index import AGAIN, TarIndex, index_tar
from brics_cli.images.splits import Scope, scope_of
from brics_cli.images.unpacking import copy_unpacked
from brics_cli.images.wanted import ANYTHING, Wanted
from brics_cli.parsing import parse_json, read_bytes

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


class WebDatasetCollection(Collection):
    """The tars `paths`, in that order; `path` is what the user gave, made absolute.

    Raises ArtefactError for a truncated or damaged tar, or one that holds another number of images than the
    statistics of img2dataset beside it say; UsageError when there is no image in any of them.
    """

    kind = "WebDataset"

    def __init__(self, path: str, paths: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        self._paths = [visible_path(tar) for tar in paths]
        self._plain = ProcessCache(Descriptor.of, limit=MAX_OPEN_TARS)
        self._unpacked = ProcessCache(unpack, limit=MAX_UNPACKED)
        self._compressed = [is_compressed(tar) for tar in self._paths]
        names = shard_names(self._paths, [_without_suffix(tar.name) for tar in self._paths])
        members = [index_tar(tar, self._descriptor(number)) for number, tar in enumerate(self._paths)]
        scope = Scope()
        if wanted.subset is not None or any(each.names.any_holds("/") for each in members):
            images = (name for each in members for name in each.names if _is_image(name))
            scope = scope_of(images, wanted.subset, where=path)
        self.path, self.note = wanted.of(scope.of(path, wanted.subset)), scope.note
        self.passed_over = PassedOver()
        self.passed_over.reasons[HIDDEN] += sum(each.num_hidden for each in members)
        if scope.parts:
            members = [self._within(scope, each) for each in members]
        counted = survey(each.names for each in members)
        fields = counted.fields(wanted.image_field, where=path, is_tar=True)
        self.remark = fields.remark
        self._samples: list[Samples] = []
        self._places: list[tuple[np.ndarray, np.ndarray]] = []  # (M,) offsets, (M,) sizes
        self.shards = []
        for tar, name, each in zip(self._paths, names, members, strict=True):
            samples = Samples(each.names, where=f"the tar {tar}", fields=fields)
            size_bytes = tar.stat().st_size
            shown = map(printable, each.names)
            rows: list[tuple[object, ...]] = list(zip(shown, each.sizes.tolist(), each.offsets.tolist(), strict=True))
            if fields.images is not None:
                rows.append(("images", *sorted(fields.images)))
            self.shards.append(Shard(name, len(samples), size_bytes, shard_layout(name, size_bytes, rows)))
            self.passed_over += samples.passed_over()
            self._samples.append(samples)
            self._places.append((each.offsets, each.sizes))
        if not len(self):
            raise UsageError(
                f"no images in the {len(self._paths)} tar files of {path}; {self.passed_over.describe() or 'empty'}",
                next="Give tars with images.",
            )
        self._num_checked = 0
        if not scope.parts:
            self._num_checked = check_img2dataset_counts(self._paths, [len(samples) for samples in self._samples])
            if num_failed := sum(map(_num_not_downloaded, self._paths)):
                self.passed_over.reasons["images that img2dataset could not download"] += num_failed
        self._starts = [0, *accumulate(shard.num_images for shard in self.shards)]
        self._annotations = Annotations(
            self.keys(),
            where=path,
            sidecars=[
                start + image
                for start, samples in zip(self._starts, self._samples, strict=False)
                for image in samples.labelled()
            ],
            texts=lambda image: self._texts(*self.places([image])[0]),
            class_names=recorded_class_names(*self._paths),
            labels=wanted.labels is None,
        )
        self.class_names = self._annotations.class_names
        self._classes = None
        if wanted.labels == "folder":
            image_names = [samples.image_name(i) for samples in self._samples for i in range(len(samples))]
            self._classes = FolderClasses(image_names, depth=scope.depth)
            self.class_names = self._classes.names

    def _within(self, scope: Scope, members: TarIndex) -> TarIndex:
        """The members of one tar that are read; what is in no split at all is counted as passed over."""
        names = list(members.names)
        self.passed_over += PassedOver(name for name in names if scope.is_above(name) and not _is_image(name))
        kept = [place for place, name in enumerate(names) if scope.holds(name)]
        return TarIndex(Names(names[place] for place in kept), members.offsets[kept], members.sizes[kept], 0)

    def describe(self) -> str:
        num_shards = f"{len(self.shards):,} shard" + ("s" if len(self.shards) != 1 else "")
        compressed = ", compressed" if any(self._compressed) else ""
        checked = ", made by img2dataset (counts checked)" if self._num_checked else ""
        classes = (
            f", {len(self._classes):,} folders as classes{self._classes.said}" if self._classes is not None else ""
        )
        said = f"{compressed}{checked}{classes}{self._annotations.said}{self.note}"
        return f"{len(self):,} images, WebDataset, {num_shards}{said}"

    def key(self, shard_index: int, index: int) -> str:
        return f"{self.shards[shard_index].name}/{self._samples[shard_index].key(index)}"

    def read(self, shard_index: int, index: int) -> RawImage:
        samples = self._samples[shard_index]
        label, meta = self._annotations.of(self._starts[shard_index] + index, self._texts(shard_index, index))
        if self._classes is not None:
            label, meta = self._classes.of(samples.image_name(index), meta)
        data = self._bytes(shard_index, samples.image(index))
        return RawImage(self.key(shard_index, index), data, label, meta, shard_index, index)

    def _texts(self, shard_index: int, index: int) -> Texts:
        samples = self._samples[shard_index]
        return samples.texts(index, lambda member: self._bytes(shard_index, member))

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return [str(self._paths[shard_index])]

    def _bytes(self, shard_index: int, member: int) -> bytes:
        offset, size = (int(places[member]) for places in self._places[shard_index])
        check_num_bytes(size)
        data = self._descriptor(shard_index).read(offset, size)
        if len(data) != size:
            raise ArtefactError(f"the tar {self._paths[shard_index]} became shorter while it was read")
        return data

    def _descriptor(self, shard_index: int) -> Descriptor:
        cache = self._unpacked if self._compressed[shard_index] else self._plain
        return cache[self._paths[shard_index]]


def _is_image(name: str) -> bool:
    return split_extension(name) is not None


def is_compressed(tar: Path) -> bool:
    """Whether the first bytes are those of gzip, bzip2, xz or zstd."""
    return _compression(tar) is not None


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        first = file.read(6)
    return next((name for magic, name in _MAGIC_OF.items() if first.startswith(magic)), None)


def _open_compressed(path: Path) -> IO[bytes]:
    compression = _compression(path)
    if compression == "gzip":
        return cast("IO[bytes]", gzip.open(path))
    if compression == "zstd":
        import zstandard

        source = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
        return cast("IO[bytes]", source)
    return bz2.open(path) if compression == "bzip2" else lzma.open(path)


def _errors_of_damage(path: Path) -> tuple[type[Exception], ...]:
    if _compression(path) == "zstd":
        import zstandard

        return (zstandard.ZstdError,)
    return EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error


def unpack(tar: Path) -> Descriptor:
    """The compressed `tar`, unpacked to a temporary file without a name. Raises ArtefactError for a damaged one."""
    with tempfile.TemporaryFile(prefix="brics-") as temporary, _open_compressed(tar) as source:
        try:
            copy_unpacked(source, temporary, where=tar)
        except _errors_of_damage(tar) as error:
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
    return _img2dataset_stats(tar).get("successes")


def _num_not_downloaded(tar: Path) -> int:
    stats = _img2dataset_stats(tar)
    return max(stats.get("count", 0) - stats.get("successes", 0), 0) if "successes" in stats else 0


def _img2dataset_stats(tar: Path) -> dict[str, int]:
    """The whole numbers in the statistics beside a tar; none where there are no statistics."""
    try:
        stats = parse_json(read_bytes(_stats_path(tar)))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: num for name, num in stats.items() if isinstance(num, int)} if isinstance(stats, dict) else {}


def _without_suffix(name: str) -> str:
    for suffix in sorted(TAR_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name
