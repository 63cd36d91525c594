"""Write a key-code store so that a `kill -9` at any moment loses at most one shard and repeats nothing.

One part per shard (`parts`), then a merge: everything is checked and copied to `codes.h5.tmp`, fsynced, renamed, and
the parts are removed. A run that finds parts goes on with the missing ones; parts of anything else are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

import brics_cli
from brics_cli.errors import ArtefactError, TooManyFailuresError, UsageError, WouldOverwriteError
from brics_cli.reporting import Reporter, SilentReporter, Task
from brics_cli.store.format import (
    FAILURE_FIELDS,
    SHARD_FIELDS,
    Array,
    RowHash,
    Statistics,
    StoreHeader,
    StoreShard,
    bin_edges,
    fixed_bytes,
    store_sha256,
)
from brics_cli.store.parts import Part, PartWriter, part_mismatch, part_path
from brics_cli.workspace import Artefact, Kind, Parent, hold_lock, write_json_atomically
from brics_cli.workspace.artefacts import STORE_ATTRIBUTE, now
from brics_cli.workspace.differences import differences
from brics_cli.workspace.files import fsync, read_json

COPY_BYTES = 16 * 2**20


class StoreWriter:
    """Write the store `path` inside a `with` block, holding its lock.

    `complete` says that it is there already, made from the same inputs: nothing to do. Otherwise `pending` are the
    shards without a part; write each with `part(i)`, then call `merge`. `overwrite` replaces another store (at the
    merge: until then the old one stays) and throws away parts of another one.

    Raises on entry: WouldOverwriteError (`path` is no store), ArtefactError (a store or parts of other inputs, with
    what differs), MachineError (another process is writing it), UsageError (`path` is a folder).

    `kind` is that of the artefact: `store`, or `samples` for codes that were sampled and not encoded.
    """

    def __init__(
        self,
        path: Path | str,
        header: StoreHeader,
        shards: Sequence[StoreShard],
        *,
        overwrite: bool = False,
        kind: Kind = "store",
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.header = header
        self.shards = list(shards)
        self.overwrite = overwrite
        self.complete = False
        self.redone: list[str] = []
        """Parts that were damaged and will be written again, each with the reason."""
        self._parts = self.path.with_name(self.path.name + ".parts")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"--out {self.path} is a folder", next="Give a file, e.g. codes.h5.")
        self.complete = check_store_output(self.path, self.header, overwrite=self.overwrite)
        if self.complete and not self._parts.exists():
            return self
        self._parts.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(hold_lock(self._parts / ".lock", what=str(self.path)))
        if self.complete:  # killed between the last rename and the removal of the parts
            shutil.rmtree(self._parts)
        else:
            try:
                self._claim_parts()
            except BaseException:
                self._stack.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _claim_parts(self) -> None:
        """Make sure that the parts directory belongs to this store, and throw away parts that are damaged."""
        record = self._parts / "identity.json"
        if record.exists():
            differing = differences(read_json(record, what="unfinished store"), self.header.identity())
            if differing and not self.overwrite:
                raise ArtefactError(
                    f"{self._parts} holds the beginning of another store: {'; '.join(differing)}",
                    next="Give another --out, or --overwrite to begin again.",
                )
            if differing:
                for old in self._parts.glob("*.h5"):
                    old.unlink()
        write_json_atomically(record, self.header.identity())
        for leftover in self._parts.glob(".*.tmp"):
            leftover.unlink()
        for shard in self.shards:
            path = part_path(self._parts, shard)
            if path.exists() and (reason := part_mismatch(self._parts, self.header, shard)) is not None:
                self.redone.append(f"{path} ({reason})")
                path.unlink()

    @property
    def pending(self) -> list[int]:
        """The shards that have no part yet, in order."""
        return [index for index, shard in enumerate(self.shards) if not part_path(self._parts, shard).exists()]

    def num_failed(self) -> int:
        """Images that failed in the parts written so far."""
        total = 0
        for shard in self.shards:
            if part_path(self._parts, shard).exists():
                with Part(self._parts, self.header, shard) as part:
                    total += len(part.failures)
        return total

    def part(self, shard_index: int) -> PartWriter:
        """A writer for the part of one shard."""
        return PartWriter(self._parts, self.header, self.shards[shard_index])

    def merge(
        self, *, parents: Sequence[Parent], details: Mapping[str, Any] | None = None, reporter: Reporter | None = None
    ) -> Artefact:
        """Join the parts into the store and remove them; returns its provenance (which stands in it too).

        Checks that each shard's images are all there once, encoded or failed. Raises ArtefactError for a damaged
        part, TooManyFailuresError when not one image could be encoded.
        """
        if self.pending:
            raise AssertionError(f"{len(self.pending)} shards have no part yet")
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with (reporter or SilentReporter()).task("merge", total=self.header.num_images, unit="img") as task:
                artefact = self._write_merged(temporary, parents, dict(details or {}), task)
            fsync(temporary)
            temporary.replace(self.path)
            fsync(self.path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self._parts)
        return artefact

    def _write_merged(
        self, temporary: Path, parents: Sequence[Parent], details: dict[str, Any], task: Task
    ) -> Artefact:
        table, failures, key_width, num_ok = self._survey()
        if num_ok == 0:
            first = f"; the first, {failures[0][1]}: {failures[0][2]}" if failures else ""
            raise TooManyFailuresError(f"none of {self.header.num_images:,} images could be encoded{first}")
        with h5py.File(temporary, "w") as file:
            shape = (num_ok, *self.header.code_shape)
            codes = file.create_dataset("codes", shape, self.header.dtype)
            flipped = file.create_dataset("codes_flipped", shape, self.header.dtype) if self.header.flipped else None
            file.create_dataset("keys", (num_ok,), f"S{key_width}")
            for name in ("labels", "shard_id", "index_in_shard"):
                file.create_dataset(name, (num_ok,), "<i8")
            file.create_dataset("meta", (num_ok,), h5py.string_dtype())
            statistics = Statistics.empty(self.header.code_shape[0])
            start = 0
            for number, shard in enumerate(self.shards):
                with Part(self._parts, self.header, shard) as part:
                    rows = slice(start, start + part.num_ok)
                    row_hash = RowHash()
                    for block, block_flipped, position in _blocks(part):
                        row_hash.add(block, block_flipped)
                        codes[start + position : start + position + len(block)] = block
                        if flipped is not None:
                            flipped[start + position : start + position + len(block)] = block_flipped
                        task.advance(len(block))
                    metas = part.metas
                    if row_hash.hexdigest(part.keys, part.labels, part.index_in_shard, metas) != part.sha256:
                        raise part.damaged("its rows do not have the sha256 they were written with")
                    file["keys"][rows] = part.keys
                    file["labels"][rows] = part.labels
                    file["shard_id"][rows] = number
                    file["index_in_shard"][rows] = part.index_in_shard
                    if metas is not None:
                        file["meta"][rows] = metas
                    statistics.merge(part.statistics)
                    start = rows.stop
            _write_table(file, "shards", SHARD_FIELDS, table)
            _write_table(file, "failures", FAILURE_FIELDS, failures)
            _write_statistics(file, statistics, self.header.code_kind)
            sha256 = store_sha256(str(row[-1]) for row in table)
            artefact = self._artefact(sha256, num_ok, len(failures), parents, details)
            file.attrs.update(
                self.header.attributes(), sha256=sha256, brics_version=brics_cli.__version__, created=artefact.created
            )
            file.attrs[STORE_ATTRIBUTE] = json.dumps(artefact.to_json(), ensure_ascii=False)
        return artefact

    def _survey(self) -> tuple[list[tuple[Any, ...]], list[tuple[str, str, str]], int, int]:
        """The shards table, the failures, the width of the keys and N, from all parts."""
        table: list[tuple[Any, ...]] = []
        failures: list[tuple[str, str, str]] = []
        key_width, num_ok = 1, 0
        for shard in self.shards:
            with Part(self._parts, self.header, shard) as part:
                num_failed = len(part.failures)
                if part.num_ok + num_failed != shard.num_images or len(np.unique(part.keys)) != part.num_ok:
                    raise part.damaged("its images are not all there exactly once")
                table.append(
                    (
                        shard.name, shard.size_bytes, shard.fingerprint, shard.num_images,
                        part.num_ok, num_failed, part.sha256,
                    )
                )  # fmt: skip
                failures.extend((shard.name, key.decode(), reason.decode()) for key, reason in part.failures)
                key_width = max(key_width, part.keys.dtype.itemsize)
                num_ok += part.num_ok
        return table, failures, key_width, num_ok

    def _artefact(
        self, sha256: str, num_ok: int, num_failed: int, parents: Sequence[Parent], details: dict[str, Any]
    ) -> Artefact:
        shape = "x".join(str(side) for side in self.header.code_shape)
        summary = f"{num_ok:,} codes {shape} {self.header.quantisation}, {self.header.image_size} px"
        counts = {"sha256": sha256, "num_images": num_ok, "num_failed": num_failed, "summary": summary}
        return Artefact(self.kind, self.path, now(), True, tuple(parents), {**details, **counts})


def check_store_output(path: Path, header: StoreHeader, *, overwrite: bool) -> bool:
    """Whether `path` is already the store that `header` describes, so that there is nothing to do.

    Raises ArtefactError for a store of other inputs, WouldOverwriteError for anything else that is there.
    """
    if not path.exists() or overwrite:
        return False
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("identity")
    except (OSError, RuntimeError):
        text = None
    if not isinstance(text, str):
        raise WouldOverwriteError(
            f"{path} is already there, and it is not a key-code store", next="Give another --out, or --overwrite."
        )
    differing = differences(json.loads(text), header.identity())
    if differing:
        raise ArtefactError(
            f"{path} is a store of other inputs: {'; '.join(differing)}",
            next="Give another --out, or --overwrite to replace it.",
        )
    return True


def _blocks(part: Part) -> Any:
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
