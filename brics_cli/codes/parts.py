"""One part of a store being written: the rows of one shard, `codes.h5.parts/<shard>.h5`.

A part is built under a temporary name, fsynced and renamed: that it exists is the record that its shard is done.
Rows are at the front of datasets with room for every image of the shard; attribute `n_ok` says how many are real.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import h5py
import numpy as np

from brics_cli.codes.format import (
    ABSENT,
    NO_LABEL,
    PART_COLUMNS,
    Array,
    RowHash,
    Statistics,
    StoreHeader,
    StoreShard,
    fixed_bytes,
)
from brics_cli.errors import ArtefactError, machine_error
from brics_cli.workspace import atomic_path, open_hdf5
from brics_cli.workspace.hdf5 import MOST_AT_ONCE, Hdf5File, look_ahead

if TYPE_CHECKING:
    from brics_cli.codes.reader import KeyCodeStore

PART_VERSION = 1
HEADER_BYTES = 64 * 1024
"""Room for HDF5's own structures."""
BLOCK_BYTES = 16 * 2**20
"""Of rows that are copied at a time."""
NO_LOCK = False
"""A file being written has a name of its own, and `hold_lock` keeps other writers away."""
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class RawRows:
    """A new HDF5 file with room for the codes of `num_rows` images, which are written directly, in a `with` block.

    libhdf5 crashes the process when a disk fills under it. So the datasets of codes are laid out and their bytes
    reserved first, where a full disk is an ordinary OSError (ENOSPC); rows are then written by `pwrite` at the
    dataset's offset; and room for the `small_datasets` is reserved before HDF5 writes them.
    """

    def __init__(self, path: Path, header: StoreHeader, num_rows: int) -> None:
        self.path = path
        if shutil.disk_usage(path.parent).free < num_rows * header.bytes_per_image + HEADER_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._offsets: dict[str, int | None] = {}
        with h5py.File(path, "w", locking=NO_LOCK) as file:
            for name in ("codes", "codes_flipped") if header.flipped else ("codes",):
                shape = (num_rows, *header.code_shape)
                dataset = file.create_dataset(name, shape, header.dtype, dcpl=layout.copy())
                self._offsets[name] = dataset.id.get_offset()
        self._descriptor = os.open(path, os.O_RDWR)

    def __enter__(self) -> Self:
        try:
            self._reserve(0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, start: int, codes: Array, flipped: Array | None) -> None:
        """Write rows from row `start` on."""
        for name, rows in (("codes", codes), ("codes_flipped", flipped)):
            offset = self._offsets.get(name)
            if rows is None or len(rows) == 0 or offset is None:  # a dataset of no rows has no place in the file
                continue
            data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
            position = offset + start * (len(data) // len(rows))
            while data:
                written = os.pwrite(self._descriptor, data, position)
                data, position = data[written:], position + written

    @contextmanager
    def small_datasets(self, num_bytes: int) -> Iterator[h5py.File]:
        """The file, open in h5py, for datasets of about `num_bytes` in all, for which room is reserved."""
        self._reserve(num_bytes + HEADER_BYTES)
        self.close()
        try:
            with h5py.File(self.path, "r+", locking=NO_LOCK) as file:
                yield file
        except RuntimeError as error:
            said = machine_error(error, where=self.path)
            if said is None:
                raise
            raise said from None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _reserve(self, num_bytes: int) -> None:
        """Make sure of the bytes of the file and so many more."""
        if hasattr(os, "posix_fallocate"):  # macOS has not; there the check of the free space must do
            try:
                os.posix_fallocate(self._descriptor, 0, os.fstat(self._descriptor).st_size + num_bytes)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    error.filename = str(self.path)
                    raise


def meta_bytes(metas: Sequence[str] | None) -> int:
    """About how much room a column of texts takes in HDF5: a reference each, and heaps that are half full."""
    return sum(16 + 2 * len(text.encode()) for text in metas or ())


def part_path(directory: Path, shard: StoreShard) -> Path:
    """Where the part of `shard` is."""
    name = quote(shard.name, safe=" ")
    if len(name) > 150:
        name = name[:100] + hashlib.sha256(name.encode()).hexdigest()[:16]
    return directory / f"{name}.h5"


@contextmanager
def write_part(directory: Path, header: StoreHeader, shard: StoreShard) -> Iterator[PartWriter]:
    """Write one part: `add` batches in order; leaving the block without an exception makes it final."""
    with atomic_path(part_path(directory, shard)) as temporary, RawRows(temporary, header, shard.num_images) as raw:
        part = PartWriter(raw, header, shard)
        yield part
        part.finish()


class PartWriter:
    """The rows of one part as they come: see `write_part`."""

    def __init__(self, raw: RawRows, header: StoreHeader, shard: StoreShard) -> None:
        self._raw, self._header, self._shard = raw, header, shard
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._indices: list[int] = []
        self._metas: list[str] = []
        self._failures: list[tuple[str, str]] = []
        self._statistics = Statistics.empty(header.code_shape[0])
        self._hash = RowHash()
        self.digest = ""
        """Of the content of what was encoded (`images.fingerprints`); to be set before the end where it is known."""

    def add(
        self,
        codes: Array,
        *,
        keys: Sequence[str],
        indices: Sequence[int],
        flipped: Array | None = None,
        labels: Sequence[int | None] | None = None,
        metas: Sequence[dict[str, Any] | None] | None = None,
        failures: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add stored values `codes` (B, C, h, w) and, with flips, `flipped`; and (key, reason) of failed images."""
        self._failures.extend(failures)
        num, start = len(keys), len(self._keys)
        if num == 0:
            return
        flipped = flipped if self._header.flipped else None
        if codes.shape != (num, *self._header.code_shape) or codes.dtype != self._header.dtype:
            raise ValueError(f"rows of {codes.shape} {codes.dtype} for {num} keys of {self._header.code_shape}")
        if self._header.flipped and (flipped is None or flipped.shape != codes.shape):
            raise ValueError("flipped codes are missing or of another shape")
        self._raw.write(start, codes, flipped)
        self._hash.add(codes, flipped)
        self._statistics.add(codes, self._header)
        self._keys.extend(keys)
        self._indices.extend(indices)
        self._labels.extend(NO_LABEL if label is None else label for label in labels or [None] * num)
        self._metas.extend(
            "" if meta is None else json.dumps(meta, ensure_ascii=False, sort_keys=True)
            for meta in metas or [None] * num
        )

    def finish(self) -> None:
        """Write the columns beside the codes."""
        shard, num_ok, num_failed = self._shard, len(self._keys), len(self._failures)
        if num_ok + num_failed != shard.num_images:
            raise AssertionError(f"shard {shard.name}: {num_ok} + {num_failed} of {shard.num_images} images")
        metas = self._metas if any(self._metas) else None
        keys, labels = fixed_bytes(self._keys), np.array(self._labels, np.int64)
        index_in_shard = np.array(self._indices, np.int64)
        failures = fixed_bytes([text for failure in self._failures for text in failure]).reshape(-1, 2)
        statistics = self._statistics
        num_bytes = keys.nbytes + 2 * labels.nbytes + failures.nbytes + statistics.histogram.nbytes
        with self._raw.small_datasets(num_bytes + meta_bytes(metas)) as file:
            file["keys"], file["labels"], file["index_in_shard"] = keys, labels, index_in_shard
            if metas is not None:
                file.create_dataset("meta", data=metas, dtype=h5py.string_dtype())
            file["failures"] = failures
            file["total"], file["squares"] = statistics.total, statistics.squares
            file["histogram"] = statistics.histogram
            file.attrs.update(
                part_version=PART_VERSION,
                identity=json.dumps(self._header.identity(), sort_keys=True),
                n_in=shard.num_images,
                n_ok=num_ok,
                num_values=statistics.num_values,
                sha256=self._hash.hexdigest((key.encode() for key in self._keys), labels, index_in_shard, metas),
                shard=shard.name,
                fingerprint=shard.fingerprint,
                digest=self.digest,
            )


class ShardRows:
    """The rows of one shard, open for reading: those of a part, or of a store from row `start` of it on.

    `record` says `n_ok`, `sha256` and `digest`, as the attributes of a part and the shards table of a store do;
    `failures` are (key, reason); `statistics` None: to be taken from the codes. `damaged` gives the error that says
    that `what` is, for a reason. Raises KeyError or ValueError when they do not fit together.
    """

    def __init__(
        self,
        file: Hdf5File,
        record: Mapping[str, Any],
        *,
        what: str,
        advice: str,
        failures: Sequence[tuple[str, str]],
        statistics: Statistics | None = None,
        start: int = 0,
    ) -> None:
        self.num_ok, self.sha256 = int(record["n_ok"]), str(record["sha256"])
        self.digest = str(record.get("digest", ""))
        self.failures, self.statistics = failures, statistics
        self._what, self._advice, self._start = what, advice, start
        rows = slice(start, start + self.num_ok)
        self.keys: Array = file["keys"][rows]
        self.labels: Array = file["labels"][rows]
        self.index_in_shard: Array = file["index_in_shard"][rows]
        self._codes, self._flipped, self._meta = file["codes"], file.get("codes_flipped"), file.get("meta")
        found = {name: file.get(name) for name in PART_COLUMNS}
        self.offsets = {
            name: ABSENT if dataset is None or dataset.offset is None else dataset.offset
            for name, dataset in found.items()
        }
        """Where in the file each dataset begins."""
        if {len(self.keys), len(self.labels), len(self.index_in_shard)} != {self.num_ok}:
            raise ValueError("its datasets do not fit together")

    def blocks(self) -> Iterator[tuple[int, Array, Array | None]]:
        """(first row, codes, flipped codes or None) in blocks of about BLOCK_BYTES. Raises ArtefactError."""
        bytes_per_row = max(int(np.prod(self._codes.shape[1:])) * self._codes.dtype.itemsize, 1)
        step = max(BLOCK_BYTES // bytes_per_row, 1)
        for first in range(0, self.num_ok, step):
            rows = slice(self._start + first, self._start + min(first + step, self.num_ok))
            try:
                yield first, self._codes[rows], None if self._flipped is None else self._flipped[rows]
            except (OSError, RuntimeError, ValueError) as error:
                raise self.damaged(str(error)) from None

    def metas(self) -> list[str] | None:
        """The metadata texts, or None when no image has any."""
        texts = [] if self._meta is None else self._meta[self._start : self._start + self.num_ok]
        return [text.decode() for text in texts] if any(texts) else None

    def damaged(self, reason: object) -> ArtefactError:
        return ArtefactError(f"{self._what} is damaged ({reason})", next=self._advice)


@contextmanager
def open_part(path: Path, header: StoreHeader, num_images: int) -> Iterator[ShardRows]:
    """The rows of a finished part of `num_images`, while the block runs. Raises ArtefactError when it is damaged."""
    what, advice = f"the part {path}", "Remove it and run the same command again."
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_hdf5(path))
            failures = [(key.decode(), reason.decode()) for key, reason in file["failures"][()]]
            sums = (file["total"][()], file["squares"][()], file["histogram"][()], int(file.attrs["num_values"]))
            rows = ShardRows(
                file, file.attrs, what=what, advice=advice, failures=failures, statistics=Statistics(*sums)
            )
            if (file["codes"].shape, file["codes"].dtype) != ((num_images, *header.code_shape), header.dtype):
                raise ValueError("its codes have another shape or type")
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ArtefactError(f"{what} is damaged ({error})", next=advice) from None
        yield rows


@contextmanager
def open_kept_part(store: KeyCodeStore, number: int) -> Iterator[ShardRows]:
    """The same of the part `number` of a store that is a folder; it is the one that was indexed. They are best opened
    in order: a process looks at several at a time."""
    paths, shard = store.part_paths, store.shards[number]
    if number % MOST_AT_ONCE == 0:
        look_ahead(paths[number : number + MOST_AT_ONCE])
    with open_part(paths[number], store.header, shard["n_in"]) as rows:
        if (rows.num_ok, rows.sha256, rows.digest) != (shard["n_ok"], shard["sha256"], shard["digest"]):
            raise ArtefactError(
                f"{paths[number]} holds other rows than its store was made of (their sha256)",
                next=f"See: brics info {store.path} --verify",
            )
        yield rows


def part_mismatch(directory: Path, header: StoreHeader, shard: StoreShard) -> str | None:
    """Why an existing part of `shard` cannot be used (None: it can): other contents, or a damaged file.

    Raises MachineError when it cannot be read now: it may well be whole.
    """
    try:
        with open_hdf5(part_path(directory, shard)) as file:
            found = [file.attrs.get(name) for name in ("identity", "fingerprint", "n_in")]
    except (OSError, RuntimeError) as error:
        return f"unreadable: {error}"
    wanted = [json.dumps(header.identity(), sort_keys=True), shard.fingerprint, shard.num_images]
    return None if found == wanted else "made from another source or with other settings"
