"""From whole shards to a store: `write_merged` copies their rows into one file, `write_index` makes one store of the
parts as they are. Both check that each image is there once, encoded or failed.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import brics_cli
from brics_cli.codes.format import (
    ABSENT,
    FAILURE_FIELDS,
    FOLDER_VERSION,
    PART_COLUMNS,
    PART_FIELDS,
    SEAL_ATTRIBUTE,
    SHARD_FIELDS,
    VIRTUAL_ATTRIBUTE,
    Array,
    RowHash,
    Statistics,
    StoreHeader,
    StoreShard,
    bin_edges,
    fixed_bytes,
    names_sha256,
    seal,
    store_sha256,
)
from brics_cli.codes.parts import RawRows, ShardRows, meta_bytes, part_path
from brics_cli.errors import TooManyFailuresError
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Kind, Parent
from brics_cli.workspace.artefacts import STORE_ATTRIBUTE, now
from brics_cli.workspace.files import atomic_path, fsync
from brics_cli.workspace.hdf5 import remember_own
from brics_cli.workspace.naming import INDEX_NAME, PARTS_FOLDER

TABLE_ROW_BYTES = 2048
"""Room for a row of the shards or the failures table."""
ROWS_AT_ONCE = 2**20
"""Of `/shard_id` of an index."""

OpenRows = Callable[[int], AbstractContextManager[ShardRows]]
"""Opens the rows of a shard, by its number: a part, or those in a store that is joined to others."""


@dataclass
class Contents:
    """What the shards of a store hold, without their rows."""

    header: StoreHeader
    shards: Sequence[StoreShard]
    table: list[tuple[Any, ...]] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    num_rows: int = 0
    key_bytes: int = 1

    def add(self, part: ShardRows) -> None:
        """Add the next shard. Raises ArtefactError when its images are not all there once."""
        shard = self.shards[len(self.table)]
        if part.num_ok + len(part.failures) != shard.num_images or len(np.unique(part.keys)) != part.num_ok:
            raise part.damaged("its images are not all there exactly once")
        counts = (shard.num_images, part.num_ok, len(part.failures))
        self.table.append((shard.name, shard.size_bytes, shard.fingerprint, *counts, part.sha256, part.digest))
        self.failures.extend((shard.name, key, reason) for key, reason in part.failures)
        self.num_rows, self.key_bytes = self.num_rows + part.num_ok, max(self.key_bytes, part.keys.dtype.itemsize)

    def artefact(self, kind: Kind, path: Path, *, parents: Sequence[Parent], details: Mapping[str, Any]) -> Artefact:
        """The provenance of a store of all this. Raises TooManyFailuresError for one without rows."""
        header = self.header
        if self.num_rows == 0:
            first = f"; the first, {self.failures[0][1]}: {self.failures[0][2]}" if self.failures else ""
            raise TooManyFailuresError(f"none of {header.num_images:,} images could be encoded{first}")
        shape = "x".join(str(side) for side in header.code_shape)
        counted = {
            "sha256": store_sha256(str(row[SHARD_FIELDS.index("sha256")]) for row in self.table),
            "num_images": self.num_rows,
            "num_failed": len(self.failures),
            "summary": f"{self.num_rows:,} codes {shape} {header.quantisation}, {header.image_size} px",
            "sealed": True,
        }
        return Artefact(kind, path, now(), True, tuple(parents), {**details, **counted})

    def write(self, file: h5py.File, artefact: Artefact, statistics: Statistics, **attributes: Any) -> None:
        """Write tables, statistics and attributes, and at last the seal."""
        file["shards"] = _table(SHARD_FIELDS, self.table)
        file["failures"] = _table(FAILURE_FIELDS, self.failures)
        stats = file.create_group("stats")
        stats["mean"], stats["std"], stats["histogram"] = statistics.mean, statistics.std, statistics.histogram
        stats["histogram"].attrs["range"] = bin_edges(self.header.code_kind)
        if self.header.class_names:
            class_names = fixed_bytes(self.header.class_names)
            file["class_names"] = class_names
            file["class_names"].attrs["sha256"] = names_sha256(class_names)
        file.attrs.update(
            self.header.attributes(),
            sha256=artefact.details["sha256"],
            brics_version=brics_cli.__version__,
            created=artefact.created,
        )
        file.attrs.update(attributes)
        file.attrs[STORE_ATTRIBUTE] = json.dumps(artefact.to_json())
        file.attrs[SEAL_ATTRIBUTE] = seal(file)


def write_merged(
    path: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard],
    open_rows: OpenRows,
    *,
    kind: Kind,
    parents: Sequence[Parent],
    details: Mapping[str, Any],
    reporter: Reporter,
) -> Artefact:
    """Write the store that `shards` add up to as one file, whole or not at all; returns its provenance.

    The shards are the finished parts of an encoding, or those of whole stores that are joined. Checks that rows are
    those once hashed. Raises ArtefactError, or TooManyFailuresError for a store without rows.
    """
    contents = Contents(header, shards)
    for number in range(len(shards)):
        with open_rows(number) as part:
            contents.add(part)
    num_ok = contents.num_rows
    artefact = contents.artefact(kind, path, parents=parents, details=details)
    statistics = Statistics.empty(header.code_shape[0])
    columns: dict[str, Array] = {
        "keys": np.empty(num_ok, f"S{contents.key_bytes}"),
        **{name: np.empty(num_ok, "<i8") for name in ("labels", "shard_id", "index_in_shard")},
    }
    metas: list[tuple[int, list[str]]] = []
    temporary = path.with_name(path.name + ".tmp")
    try:
        with RawRows(temporary, header, num_ok) as raw, reporter.task("merge", total=num_ok, unit="img") as task:
            start = 0
            for number in range(len(shards)):
                with open_rows(number) as part:
                    row_hash = RowHash()
                    for position, codes, flipped in part.blocks():
                        row_hash.add(codes, flipped)
                        if part.statistics is None:
                            statistics.add(codes, header)
                        raw.write(start + position, codes, flipped)
                        task.advance(len(codes))
                    texts = part.metas()
                    if row_hash.hexdigest(part.keys, part.labels, part.index_in_shard, texts) != part.sha256:
                        raise part.damaged("its rows do not have the sha256 they were written with")
                    if part.statistics is not None:
                        statistics.merge(part.statistics)
                    if texts is not None:
                        metas.append((start, texts))
                    rows = slice(start, start + part.num_ok)
                    columns["keys"][rows], columns["labels"][rows] = part.keys, part.labels
                    columns["shard_id"][rows], columns["index_in_shard"][rows] = number, part.index_in_shard
                    start += part.num_ok
            num_bytes = fixed_bytes(header.class_names).nbytes + 16 * num_ok
            num_bytes += TABLE_ROW_BYTES * (len(contents.table) + len(contents.failures))
            num_bytes += sum(column.nbytes for column in columns.values()) + sum(meta_bytes(of) for _, of in metas)
            with raw.small_datasets(num_bytes) as file:
                for name, column in columns.items():
                    file[name] = column
                written = file.create_dataset("meta", (num_ok,), h5py.string_dtype())
                for start, texts in metas:
                    written[start : start + len(texts)] = texts
                contents.write(file, artefact, statistics)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return artefact


def write_index(
    folder: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard],
    open_rows: OpenRows,
    *,
    kind: Kind,
    parents: Sequence[Parent],
    details: Mapping[str, Any],
    reporter: Reporter,
) -> Artefact:
    """Make one store of the parts in `folder`: write its index, whole or not at all; returns its provenance.

    That the index is there says that the store is whole, so it is the last that is written. The parts' codes are not
    read again: `brics info --verify` does. Raises as `write_merged`.
    """
    contents, statistics = Contents(header, shards), Statistics.empty(header.code_shape[0])
    places: list[tuple[Any, ...]] = []
    with reporter.task("index", total=len(shards), unit="part") as task:
        for number, shard in enumerate(shards):
            with open_rows(number) as part:
                contents.add(part)
                assert part.statistics is not None  # as of every part
                statistics.merge(part.statistics)
                places.append(place_of(part_path(folder / PARTS_FOLDER, shard), part))
                task.advance(1)
    artefact = contents.artefact(kind, folder, parents=parents, details=details)
    parts = _table(PART_FIELDS, places)
    # in memory: libhdf5 crashes the process when a disk fills under it
    with h5py.File(INDEX_NAME, "w", driver="core", backing_store=False) as file:
        names = [name for name in PART_COLUMNS if (parts[name] != ABSENT).any() or name == "meta"]
        for name in names:
            _virtual(file, name, contents, parts)
        starts = np.cumsum([0, *(row[SHARD_FIELDS.index("n_ok")] for row in contents.table)])
        shard_id = file.create_dataset(
            "shard_id", (contents.num_rows,), "<i8", chunks=(min(contents.num_rows, 2**16),), compression="gzip"
        )
        for first in range(0, contents.num_rows, ROWS_AT_ONCE):
            rows = np.arange(first, min(first + ROWS_AT_ONCE, contents.num_rows))
            shard_id[first : first + len(rows)] = np.searchsorted(starts, rows, side="right") - 1
        file["parts"] = parts
        attributes = {"format_version": FOLDER_VERSION, VIRTUAL_ATTRIBUTE: " ".join(names)}
        contents.write(file, artefact, statistics, **attributes)
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(folder / INDEX_NAME) as temporary:
        temporary.write_bytes(image)
    remember_own(folder / INDEX_NAME)
    return artefact


def place_of(path: Path, part: ShardRows) -> tuple[Any, ...]:
    """Its row of `/parts`. Raises ArtefactError when it does not name the sha256 of its rows."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (at := data.rfind(part.sha256.encode())) < 0:  # HDF5 puts texts of attributes behind the codes
            raise part.damaged("it does not name the sha256 of its rows")
        return (path.name, len(data), part.keys.dtype.itemsize, at, *part.offsets.values())


def _virtual(file: h5py.File, name: str, contents: Contents, parts: Array) -> None:
    """A dataset of N rows whose values are those of the parts: h5py's own classes take quadratic time to write it."""
    shape: tuple[int, ...] = ()
    dtype = np.dtype("<i8")
    if name in PART_COLUMNS[:2]:
        shape, dtype = contents.header.code_shape, contents.header.dtype
    elif name == "keys":
        dtype = np.dtype(f"S{contents.key_bytes}")
    elif name == "meta":
        dtype = h5py.string_dtype()
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    there, zeros, ones = h5py.h5s.create_simple((contents.num_rows, *shape)), (0,) * len(shape), (1,) * (len(shape) + 1)
    start = 0
    for row, place in zip(contents.table, parts, strict=True):
        counts = dict(zip(SHARD_FIELDS, row, strict=True))
        num_ok = counts["n_ok"]
        if num_ok and place[name] != ABSENT:
            source = h5py.h5s.create_simple((counts["n_in"] if shape else num_ok, *shape))
            source.select_hyperslab((0, *zeros), ones, block=(num_ok, *shape))
            there.select_hyperslab((start, *zeros), ones, block=(num_ok, *shape))
            path = f"{PARTS_FOLDER}/{place['file'].decode()}".replace("%", "%%")  # which stands for a block's number
            layout.set_virtual(there, path.encode(), name.encode(), source)
        start += num_ok
    there.select_all()
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), there, layout)


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Array:
    """A compound dataset: texts as fixed-length bytes, counts as int64."""
    columns: dict[str, Array] = {}
    for position, name in enumerate(names):
        values = [row[position] for row in rows]
        is_number = bool(values) and isinstance(values[0], int)
        columns[name] = np.array(values, "<i8") if is_number else fixed_bytes([str(value) for value in values])
    table = np.empty(len(rows), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a whole file its final name, safe from a power cut at any moment."""
    fsync(temporary)
    temporary.replace(final)
    fsync(final.parent)
    remember_own(final)
