"""From shards to one store: everything is checked on the way, nothing is written twice or left out.

The shards are the finished parts of an encoding (`parts`), or those of whole stores that are joined (`joining`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

import brics_cli
from brics_cli.codes.allocation import RawRows
from brics_cli.codes.format import (
    FAILURE_FIELDS,
    SHARD_FIELDS,
    Array,
    RowHash,
    Statistics,
    StoreHeader,
    StoreShard,
    bin_edges,
    fixed_bytes,
    names_sha256,
    store_sha256,
)
from brics_cli.codes.sealing import SEAL_ATTRIBUTE, seal
from brics_cli.errors import ArtefactError, TooManyFailuresError
from brics_cli.runtime.reporting import Task
from brics_cli.workspace import Artefact
from brics_cli.workspace.artefacts import STORE_ATTRIBUTE, finished

COPY_BYTES = 16 * 2**20
TABLE_ROW_BYTES = 2048
"""Room for a row of the shards or the failures table."""


class ShardRows(Protocol):
    """The rows of one shard, open for reading. `metas` None: no image has any; `failures` are (key, reason) bytes.

    `codes` and `flipped` (None without flips) are sliced by row; `statistics` None: to be taken from the codes.
    """

    num_ok: int
    sha256: str
    digest: str
    keys: Array
    labels: Array
    index_in_shard: Array
    failures: Array
    codes: Any
    flipped: Any
    statistics: Statistics | None

    @property
    def metas(self) -> list[str] | None: ...

    def damaged(self, reason: str) -> ArtefactError:
        """The error that says so."""


OpenRows = Callable[[int], AbstractContextManager[ShardRows]]


def write_merged(
    temporary: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard],
    open_rows: OpenRows,
    *,
    artefact: Artefact,
    task: Task,
) -> Artefact:
    """Write the store that `shards` add up to, as `temporary`; returns `artefact`, its provenance, with counts.

    `open_rows(number)` opens the rows of one of them.

    Checks that each shard's images are all there once, encoded or failed, and that rows are those once hashed.
    """
    table, failures, key_width, num_ok = _survey(shards, open_rows)
    if num_ok == 0:
        first = f"; the first, {failures[0][1]}: {failures[0][2]}" if failures else ""
        raise TooManyFailuresError(f"none of {header.num_images:,} images could be encoded{first}")
    names = ("codes", "codes_flipped") if header.flipped else ("codes",)
    shape = (num_ok, *header.code_shape)
    statistics = Statistics.empty(header.code_shape[0])
    columns = _Columns(num_ok, key_width)
    raw = RawRows(temporary, dict.fromkeys(names, shape), header.dtype)
    try:
        start = 0
        for number in range(len(shards)):
            with open_rows(number) as part:
                row_hash = RowHash()
                for block, block_flipped, position in _blocks(part):
                    row_hash.add(block, block_flipped)
                    if part.statistics is None:
                        statistics.add(block, header)
                    raw.write("codes", start + position, block)
                    if block_flipped is not None:
                        raw.write("codes_flipped", start + position, block_flipped)
                    task.advance(len(block))
                metas = part.metas
                if row_hash.hexdigest(part.keys, part.labels, part.index_in_shard, metas) != part.sha256:
                    raise part.damaged("its rows do not have the sha256 they were written with")
                columns.add(start, number, part, metas)
                if part.statistics is not None:
                    statistics.merge(part.statistics)
                start += part.num_ok
        sha256 = store_sha256(str(row[SHARD_FIELDS.index("sha256")]) for row in table)
        artefact = _counted(artefact, header, sha256=sha256, num_ok=num_ok, num_failed=len(failures))
        table_bytes = TABLE_ROW_BYTES * (len(table) + len(failures)) + fixed_bytes(header.class_names).nbytes
        with raw.small_datasets(columns.num_bytes + table_bytes) as file:
            columns.write(file)
            _write_table(file, "shards", SHARD_FIELDS, table)
            _write_table(file, "failures", FAILURE_FIELDS, failures)
            _write_statistics(file, statistics, header.code_kind)
            if header.class_names:
                class_names = fixed_bytes(header.class_names)
                file["class_names"] = class_names
                file["class_names"].attrs["sha256"] = names_sha256(class_names)
            file.attrs.update(
                header.attributes(),
                sha256=sha256,
                brics_version=brics_cli.__version__,
                created=artefact.created,
            )
            file.attrs[STORE_ATTRIBUTE] = json.dumps(artefact.to_json())
            file.attrs[SEAL_ATTRIBUTE] = seal(file)
    finally:
        raw.close()
    return artefact


def _survey(
    shards: Sequence[StoreShard], open_rows: OpenRows
) -> tuple[list[tuple[Any, ...]], list[tuple[str, str, str]], int, int]:
    """The shards table, the failures, the width of the keys and N, from all shards."""
    table: list[tuple[Any, ...]] = []
    failures: list[tuple[str, str, str]] = []
    key_width, num_ok = 1, 0
    for number, shard in enumerate(shards):
        with open_rows(number) as part:
            num_failed = len(part.failures)
            if part.num_ok + num_failed != shard.num_images or len(np.unique(part.keys)) != part.num_ok:
                raise part.damaged("its images are not all there exactly once")
            table.append(
                (
                    shard.name, shard.size_bytes, shard.fingerprint, shard.num_images,
                    part.num_ok, num_failed, part.sha256, part.digest,
                )
            )  # fmt: skip
            failures.extend((shard.name, key.decode(), reason.decode()) for key, reason in part.failures)
            key_width = max(key_width, part.keys.dtype.itemsize)
            num_ok += part.num_ok
    return table, failures, key_width, num_ok


def _counted(artefact: Artefact, header: StoreHeader, *, sha256: str, num_ok: int, num_failed: int) -> Artefact:
    shape = "x".join(str(side) for side in header.code_shape)
    summary = f"{num_ok:,} codes {shape} {header.quantisation}, {header.image_size} px"
    return finished(artefact, sha256=sha256, num_images=num_ok, num_failed=num_failed, summary=summary, sealed=True)


class _Columns:
    """The columns of a store beside its codes, gathered part by part."""

    def __init__(self, num_rows: int, key_width: int) -> None:
        self.keys = np.empty(num_rows, f"S{key_width}")
        self.numbers = {name: np.empty(num_rows, "<i8") for name in ("labels", "shard_id", "index_in_shard")}
        self.metas: list[tuple[int, list[str]]] = []

    def add(self, start: int, shard_id: int, part: ShardRows, metas: list[str] | None) -> None:
        rows = slice(start, start + part.num_ok)
        self.keys[rows] = part.keys
        self.numbers["labels"][rows] = part.labels
        self.numbers["shard_id"][rows] = shard_id
        self.numbers["index_in_shard"][rows] = part.index_in_shard
        if metas is not None:
            self.metas.append((start, metas))

    @property
    def num_bytes(self) -> int:
        texts = sum(meta_bytes(metas) for _, metas in self.metas) + 16 * len(self.keys)
        return self.keys.nbytes + sum(column.nbytes for column in self.numbers.values()) + texts

    def write(self, file: h5py.File) -> None:
        file["keys"] = self.keys
        for name, column in self.numbers.items():
            file[name] = column
        texts = file.create_dataset("meta", self.keys.shape, h5py.string_dtype())
        for start, metas in self.metas:
            texts[start : start + len(metas)] = metas


def meta_bytes(metas: Sequence[str] | None) -> int:
    """About how much room a column of texts takes in HDF5: a reference each, and heaps that are half full."""
    return sum(16 + 2 * len(text.encode()) for text in metas or ())


def _blocks(part: ShardRows) -> Iterator[tuple[Array, Array | None, int]]:
    """(codes, flipped codes or None, first row) of a part in blocks of about COPY_BYTES."""
    bytes_per_row = max(int(np.prod(part.codes.shape[1:])) * part.codes.dtype.itemsize, 1)
    step = max(COPY_BYTES // bytes_per_row, 1)
    for position in range(0, part.num_ok, step):
        stop = min(position + step, part.num_ok)
        try:
            codes: Array = part.codes[position:stop]
            flipped: Array | None = None if part.flipped is None else part.flipped[position:stop]
        except (OSError, RuntimeError) as error:
            raise part.damaged(str(error)) from None
        yield codes, flipped, position


def _write_table(file: h5py.File, name: str, fields: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """A compound dataset: texts as fixed-length bytes, counts as int64."""
    columns: list[Array] = []
    for position in range(len(fields)):
        values = [row[position] for row in rows]
        is_number = bool(values) and isinstance(values[0], int)
        columns.append(np.array(values, "<i8") if is_number else fixed_bytes([str(value) for value in values]))
    dtype = np.dtype([(field, column.dtype) for field, column in zip(fields, columns, strict=True)])
    table = np.empty(len(rows), dtype)
    for field, column in zip(fields, columns, strict=True):
        table[field] = column
    file[name] = table


def _write_statistics(file: h5py.File, statistics: Statistics, code_kind: str) -> None:
    group = file.create_group("stats")
    group["mean"], group["std"] = statistics.mean, statistics.std
    group["histogram"] = statistics.histogram
    group["histogram"].attrs["range"] = bin_edges(code_kind)
