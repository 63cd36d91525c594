"""WebDataset shards: tar files whose members of one stem (`0001.jpg`, `0001.cls`, `0001.json`) make one sample.

Our own pass over the tar headers, since webdataset's grouping splits names at the first dot, accepts truncated
files and can merge the last sample of one shard into the next (its issue #237). Offsets are kept: any image is one
`pread` away. Tars are read as bytes alone: nothing is extracted, run or unpickled.
"""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from brics_cli.data.collection import (
    Collection,
    RawImage,
    Shard,
    printable,
    shard_fingerprint,
    split_extension,
    unique_keys,
)
from brics_cli.errors import ArtefactError, UsageError

SIDECARS = ("cls", "json", "txt")


class Span(NamedTuple):
    """Where the bytes of a member are in its tar."""

    offset: int
    size: int


class Sample(NamedTuple):
    """One image of a shard: its key below the shard, its bytes, and its sidecars by extension."""

    stem: str
    image: Span
    sidecars: tuple[tuple[str, Span], ...]


class WebDatasetCollection(Collection):
    """The tars `paths`, in that order; `path` is what the user gave, made absolute.

    Raises ArtefactError for a truncated or damaged tar, UsageError when there is no image in any of them.
    """

    kind = "WebDataset"

    def __init__(self, path: str, paths: Sequence[Path]) -> None:
        self.path = path
        self._paths = [tar.resolve() for tar in paths]
        names = _shard_names(self._paths)
        self._samples: list[list[Sample]] = []
        self.shards = []
        for tar, name in zip(self._paths, names, strict=True):
            samples, rows = _index(tar)
            size_bytes = tar.stat().st_size
            self._samples.append(samples)
            self.shards.append(Shard(name, len(samples), size_bytes, shard_fingerprint(name, size_bytes, rows)))
        if not len(self):
            raise UsageError(f"no images in the {len(self._paths)} tar files of {path}", next="Give tars with images.")
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def describe(self) -> str:
        num_shards = f"{len(self.shards):,} shard" + ("s" if len(self.shards) != 1 else "")
        return f"{len(self):,} images, WebDataset, {num_shards}"

    def key(self, shard_index: int, index: int) -> str:
        return f"{self.shards[shard_index].name}/{self._samples[shard_index][index].stem}"

    def read(self, shard_index: int, index: int) -> RawImage:
        sample = self._samples[shard_index][index]
        label, meta = None, None
        for extension, span in sample.sidecars:
            text = self._bytes(shard_index, span).decode("utf-8", "replace").strip()
            label, meta = _with_sidecar(label, meta, extension, text)
        return RawImage(
            self.key(shard_index, index), self._bytes(shard_index, sample.image), label, meta, shard_index, index
        )

    def _bytes(self, shard_index: int, span: Span) -> bytes:
        data = os.pread(self._file(shard_index).fileno(), span.size, span.offset)
        if len(data) != span.size:
            raise ArtefactError(f"the tar {self._paths[shard_index]} became shorter while it was read")
        return data

    def _file(self, shard_index: int) -> BinaryIO:
        """The open tar; each thread keeps the last one it read."""
        if getattr(self._local, "shard_index", None) != shard_index:
            if hasattr(self._local, "file"):
                self._local.file.close()
            self._local.file = self._paths[shard_index].open("rb")
            self._local.shard_index = shard_index
        file: BinaryIO = self._local.file
        return file


def _with_sidecar(
    label: int | None, meta: dict[str, Any] | None, extension: str, text: str
) -> tuple[int | None, dict[str, Any] | None]:
    """`label` and `meta` with one sidecar's text added. A `.cls` that is no integer is kept as metadata."""
    if extension == "cls" and text.lstrip("-").isascii() and text.lstrip("-").isdigit():
        return int(text), meta
    value: Any = text
    if extension == "json":
        try:
            value = json.loads(text)
        except ValueError:
            value = text
    if extension == "json" and isinstance(value, dict):
        return label, {**value, **(meta or {})}
    return label, {**(meta or {}), extension: value}


def _index(tar: Path) -> tuple[list[Sample], list[tuple[str, int, int]]]:
    """The samples of a tar in order of their images, and its index rows (name, size, offset)."""
    images: list[tuple[str, Span]] = []
    others: dict[str, list[tuple[str, Span]]] = {}
    rows: list[tuple[str, int, int]] = []
    for member in _members(tar):
        name = member.name.removeprefix("./").lstrip("/")
        if Path(name).name.startswith("."):
            continue
        if ".." in name.split("/"):
            raise ArtefactError(f"the tar {tar} holds {printable(name)!r}, a name that leaves its folder")
        span = Span(member.offset_data, member.size)
        name = printable(name)
        rows.append((name, span.size, span.offset))
        if split_extension(name) is not None:
            images.append((name, span))
        else:
            stem, _, extension = name.rpartition(".")
            if extension.lower() in SIDECARS:
                others.setdefault(stem, []).append((extension.lower(), span))
    stems = unique_keys([name for name, _ in images])
    if len(set(stems)) != len(stems):
        twice = next(stem for position, stem in enumerate(stems) if stem in stems[:position])
        raise ArtefactError(f"the tar {tar} holds {twice!r} twice", next="Pack it again with unique names.")
    samples = [
        Sample(stem, span, tuple(sorted(others.get(name.rpartition(".")[0], ()))))
        for stem, (name, span) in zip(stems, images, strict=True)
    ]
    return samples, rows


def _members(tar: Path) -> list[tarfile.TarInfo]:
    """The regular files of a tar. Raises ArtefactError when it is no tar, damaged, or ends too early.

    tarfile stops in silence at a damaged header and at a missing end; so the end is looked at here: every member
    whole, then two blocks of zeros.
    """
    size_bytes = tar.stat().st_size
    again = "Download or pack that shard again."
    try:
        with tarfile.open(tar, "r:", encoding="utf-8", errors="surrogateescape") as opened:
            members = [member for member in opened if member.isreg()]
            end = opened.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        with tar.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UsageError(f"{tar} is compressed (gzip)", next=f"Unpack it first: gunzip {tar}") from None
        raise ArtefactError(f"the tar {tar} is truncated or damaged ({error})", next=again) from None
    if end > size_bytes:
        raise ArtefactError(f"the tar {tar} is truncated: {size_bytes:,} of at least {end:,} bytes", next=again)
    with tar.open("rb") as file:
        file.seek(end)
        tail = file.read(2 * tarfile.BLOCKSIZE)
    if len(tail) < 2 * tarfile.BLOCKSIZE:
        raise ArtefactError(f"the tar {tar} is truncated: its end mark is missing", next=again)
    if any(tail):
        raise ArtefactError(f"the tar {tar} is damaged at byte {end:,}", next=again)
    sparse = next((member for member in members if member.issparse()), None)
    if sparse is not None:
        raise ArtefactError(
            f"the tar {tar} holds {sparse.name!r} as a sparse file", next="Pack it again without --sparse."
        )
    return members


def _shard_names(paths: Sequence[Path]) -> list[str]:
    """The stem of each tar; with its folders below the common one where stems repeat."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    base = commonpath([path.parent for path in paths])
    return [path.relative_to(base).with_suffix("").as_posix() for path in paths]
