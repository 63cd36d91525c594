"""Write a key-code store so that a `kill -9` at any moment loses at most one shard and repeats nothing.

One part per shard (`parts`), then a merge: everything is checked and copied to `codes.h5.tmp`, fsynced, renamed, and
the parts are removed. A run that finds parts goes on with the missing ones; parts of anything else are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

import brics_cli
from brics_cli.codes.format import (
    FAILURE_FIELDS,
    SEAL_ATTRIBUTE,
    SHARD_FIELDS,
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
from brics_cli.codes.parts import (
    PartWriter,
    RawRows,
    ShardRows,
    meta_bytes,
    open_part,
    part_mismatch,
    part_path,
    write_part,
)
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError, TooManyFailuresError, UsageError, WouldOverwriteError
from brics_cli.parsing import parse_json
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.workspace import Artefact, Kind, Parent, check_output, hold_lock, open_hdf5, write_json_atomically
from brics_cli.workspace.artefacts import STORE_ATTRIBUTE, differences, now
from brics_cli.workspace.files import fsync, read_json
from brics_cli.workspace.hdf5 import look_ahead, remember_own

TABLE_ROW_BYTES = 2048
"""Room for a row of the shards or the failures table."""


@dataclass
class StoreWriter:
    """Write the store `path` inside a `with` block, holding its lock.

    `complete` says that it is there already, made from the same inputs: nothing to do. Otherwise `pending` are the
    shards without a part; write each with `part(i)`, then call `merge`. `overwrite` replaces another store (at the
    merge: until then the old one stays) and throws away parts of another one.

    Raises on entry: WouldOverwriteError (`path` is no store), ArtefactError (a store or parts of other inputs, with
    what differs), MachineError (another process is writing it), UsageError (`path` is a folder).

    `kind` is that of the artefact: `store`, or `samples` for codes that were sampled and not encoded.
    """

    path: Path
    header: StoreHeader
    shards: Sequence[StoreShard]
    _: KW_ONLY
    overwrite: bool = False
    kind: Kind = "store"
    complete: bool = field(default=False, init=False)
    redone: list[str] = field(default_factory=list, init=False)
    """Parts that were damaged and will be written again, each with the reason."""
    _stack: ExitStack = field(default_factory=ExitStack, init=False)

    @property
    def parts_directory(self) -> Path:
        """Where parts are written, by other processes too while this one holds the lock."""
        return self.path.with_name(self.path.name + ".parts")

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"--out {self.path} is a folder", next="Give a file, e.g. codes.h5.")
        self.complete = self._is_complete()
        if self.complete and not self.parts_directory.exists():
            return self
        with ExitStack() as stack:
            stack.enter_context(hold_lock(self.parts_directory / ".lock", what=str(self.path)))
            # again, now that nobody else is writing: who held the lock until now may have finished the store
            self.complete = self._is_complete()
            if self.complete:  # killed between the last rename and the removal of the parts
                shutil.rmtree(self.parts_directory)
            else:
                self._claim_parts()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._remove_leftovers()
        self._stack.close()

    def _is_complete(self) -> bool:
        inputs = [self.header.source]
        return check_store_output(self.path, self.header, self.shards, overwrite=self.overwrite, inputs=inputs)

    def _remove_leftovers(self) -> None:
        """Remove the beginnings of parts whose writer was killed."""
        for leftover in self.parts_directory.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _claim_parts(self) -> None:
        """Make sure that the parts directory belongs to this store, and throw away parts that are damaged."""
        record = self.parts_directory / "identity.json"
        there = sorted(self.parts_directory.glob("*.h5"))
        theirs = sorted(path.name for path in self.parts_directory.iterdir() if not _is_of_parts(path))
        if theirs or (there and not record.exists()):
            raise WouldOverwriteError(
                f"{self.parts_directory} is where parts go, and holds files that brics did not put there"
                + (f" ({', '.join(theirs[:3])})" if theirs else ""),
                next="Move them away, or give another --out.",
            )
        if record.exists():
            differing = differences(read_json(record, what="unfinished store"), self.header.identity())
            if differing and not self.overwrite:
                was = {}
                for path in there:
                    with suppress(OSError, RuntimeError, KeyError), open_hdf5(path) as file:
                        was[str(file.attrs["shard"])] = int(file.attrs["n_in"]), str(file.attrs["fingerprint"])
                raise ArtefactError(
                    f"{self.parts_directory} holds the beginning of another store: "
                    + "; ".join([*differing, *moved_shards(was, self.shards)]),
                    next="Give another --out, or --overwrite to begin again.",
                )
            if differing:
                for old in there:
                    old.unlink()
        write_json_atomically(record, self.header.identity())
        self._remove_leftovers()
        for index, path in self._parts().items():
            reason = part_mismatch(self.parts_directory, self.header, self.shards[index])
            if reason is not None:
                self.redone.append(f"{path} ({reason})")
                path.unlink()

    def _parts(self) -> dict[int, Path]:
        """The parts that are there, by shard."""
        paths = {index: part_path(self.parts_directory, shard) for index, shard in enumerate(self.shards)}
        there = {index: path for index, path in paths.items() if path.exists()}
        look_ahead(list(there.values()))
        return there

    def _part_attributes(self) -> dict[int, dict[str, Any]]:
        found = {}
        for index, path in self._parts().items():
            with open_hdf5(path) as file:
                found[index] = file.attrs
        return found

    def digests(self) -> dict[int, str]:
        """The digests of the shards that are there, or have a part: of the content they were made from, by shard.

        Empty for a shard that was encoded when there were no digests.
        """
        if self.complete:
            return {index: row.get("digest", "") for index, row in enumerate(KeyCodeStore(self.path).shards)}
        return {index: str(attributes.get("digest", "")) for index, attributes in self._part_attributes().items()}

    def num_failed(self) -> int:
        """Images that failed in the parts written so far."""
        return sum(found["n_in"] - found.get("n_ok", 0) for found in self._part_attributes().values())

    def discard(self, shard_index: int) -> None:
        """Remove the part of a shard, which is then pending again."""
        part_path(self.parts_directory, self.shards[shard_index]).unlink()

    @property
    def pending(self) -> list[int]:
        """The shards that have no part yet, in order."""
        return [index for index, shard in enumerate(self.shards) if not part_path(self.parts_directory, shard).exists()]

    def part(self, shard_index: int) -> AbstractContextManager[PartWriter]:
        """A writer for the part of one shard. Other processes may make their own for `parts_directory`."""
        return write_part(self.parts_directory, self.header, self.shards[shard_index])

    def _open_part(self, shard_index: int) -> AbstractContextManager[ShardRows]:
        return open_part(self.parts_directory, self.header, self.shards[shard_index])

    def merge(
        self, *, parents: Sequence[Parent], details: Mapping[str, Any] | None = None, reporter: Reporter | None = None
    ) -> Artefact:
        """Join the parts into the store and remove them; returns its provenance (which is in it too).

        Checks that each shard's images are all there once, encoded or failed. Raises ArtefactError for a damaged
        part, TooManyFailuresError when not one image could be encoded.
        """
        if self.pending:
            raise AssertionError(f"{len(self.pending)} shards have no part yet")
        self._parts()  # takes the outlines of all of them at once
        artefact = write_merged(
            self.path, self.header, self.shards, self._open_part,
            kind=self.kind, parents=parents, details=details or {}, reporter=reporter or SilentReporter(),
        )  # fmt: skip
        shutil.rmtree(self.parts_directory)
        return artefact


def _is_of_parts(path: Path) -> bool:
    """Whether the writer, or one that was killed, put it into the folder of parts."""
    return path.suffix in {".h5", ".json"} or path.name == ".lock" or (path.name[:1] + path.suffix) == "..tmp"


def write_merged(
    path: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard],
    open_rows: Callable[[int], AbstractContextManager[ShardRows]],
    *,
    kind: Kind,
    parents: Sequence[Parent],
    details: Mapping[str, Any],
    reporter: Reporter,
) -> Artefact:
    """Write the store that `shards` add up to, whole or not at all; returns its provenance.

    The shards are the finished parts of an encoding, or those of whole stores that are joined: `open_rows(number)`
    opens the rows of one. Checks that each shard's images are all there once, encoded or failed, and that rows are
    those once hashed. Raises ArtefactError, or TooManyFailuresError for a store without rows.
    """
    table: list[tuple[Any, ...]] = []
    failures: list[tuple[str, str, str]] = []
    num_ok, key_width = 0, 1
    for number, shard in enumerate(shards):
        with open_rows(number) as part:
            if part.num_ok + len(part.failures) != shard.num_images or len(np.unique(part.keys)) != part.num_ok:
                raise part.damaged("its images are not all there exactly once")
            counts = (shard.num_images, part.num_ok, len(part.failures))
            table.append((shard.name, shard.size_bytes, shard.fingerprint, *counts, part.sha256, part.digest))
            failures.extend((shard.name, key, reason) for key, reason in part.failures)
            num_ok, key_width = num_ok + part.num_ok, max(key_width, part.keys.dtype.itemsize)
    if num_ok == 0:
        first = f"; the first, {failures[0][1]}: {failures[0][2]}" if failures else ""
        raise TooManyFailuresError(f"none of {header.num_images:,} images could be encoded{first}")

    sha256 = store_sha256(str(row[SHARD_FIELDS.index("sha256")]) for row in table)
    shape = "x".join(str(side) for side in header.code_shape)
    counted = {
        "sha256": sha256,
        "num_images": num_ok,
        "num_failed": len(failures),
        "summary": f"{num_ok:,} codes {shape} {header.quantisation}, {header.image_size} px",
        "sealed": True,
    }
    artefact = Artefact(kind, path, now(), True, tuple(parents), {**details, **counted})
    statistics = Statistics.empty(header.code_shape[0])
    columns: dict[str, Array] = {
        "keys": np.empty(num_ok, f"S{key_width}"),
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
            class_names = fixed_bytes(header.class_names)
            num_bytes = class_names.nbytes + TABLE_ROW_BYTES * (len(table) + len(failures)) + 16 * num_ok
            num_bytes += sum(column.nbytes for column in columns.values()) + sum(meta_bytes(of) for _, of in metas)
            with raw.small_datasets(num_bytes) as file:
                for name, column in columns.items():
                    file[name] = column
                written = file.create_dataset("meta", (num_ok,), h5py.string_dtype())
                for start, texts in metas:
                    written[start : start + len(texts)] = texts
                file["shards"] = _table(SHARD_FIELDS, table)
                file["failures"] = _table(FAILURE_FIELDS, failures)
                stats = file.create_group("stats")
                stats["mean"], stats["std"], stats["histogram"] = statistics.mean, statistics.std, statistics.histogram
                stats["histogram"].attrs["range"] = bin_edges(header.code_kind)
                if header.class_names:
                    file["class_names"] = class_names
                    file["class_names"].attrs["sha256"] = names_sha256(class_names)
                file.attrs.update(
                    header.attributes(), sha256=sha256, brics_version=brics_cli.__version__, created=artefact.created
                )
                file.attrs[STORE_ATTRIBUTE] = json.dumps(artefact.to_json())
                file.attrs[SEAL_ATTRIBUTE] = seal(file)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return artefact


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


def check_store_output(
    path: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard] = (),
    *,
    overwrite: bool,
    inputs: Sequence[str | Path] = (),
    remove: bool = True,
) -> bool:
    """Whether `path` is already the store that `header` describes, so that there is nothing to do.

    Raises ArtefactError for a store of other inputs, naming what differs, of its `shards` too; WouldOverwriteError for
    anything else that is there. With `overwrite`, a store of ours may be replaced that is not one of `inputs`.
    `remove` is that of `check_output`.
    """
    if overwrite or path.is_symlink() or not path.is_file():
        check_output(path, overwrite=overwrite, what="the store", inputs=inputs, remove=remove)
        return False
    try:
        with open_hdf5(path) as file:
            identity = parse_json(file.attrs["identity"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        identity = None
    if not isinstance(identity, dict):
        raise WouldOverwriteError(
            f"{path} is already there, and it is not a key-code store", next="Give another --out, or --overwrite."
        )
    differing = differences(identity, header.identity())
    if differing:
        with suppress(ArtefactError):
            was = {row["name"]: (row["n_in"], row["fingerprint"]) for row in KeyCodeStore(path).shards}
            differing += moved_shards(was, shards)
        raise ArtefactError(
            f"{path} is a store of other inputs: {'; '.join(differing)}",
            next="Give another --out, or --overwrite to replace it.",
        )
    return True


def moved_shards(was: Mapping[str, tuple[int, str]], shards: Sequence[StoreShard]) -> list[str]:
    """What of the shards that `was`, (number of images, fingerprint) by name, is another one now; one line at most."""
    now = {shard.name: (shard.num_images, shard.fingerprint) for shard in shards}
    moved = [name for name in was if was[name] != now.get(name)] if now else []
    if not moved:
        return []
    more = f" and {len(moved) - 1:,} more" if len(moved) > 1 else ""
    if moved[0] not in now:
        return [f"shard {moved[0]}{more}: not in the source any more"]
    (num_was, _), (num_now, _) = was[moved[0]], now[moved[0]]
    counts = f" ({num_was:,} images, now {num_now:,})" if num_was != num_now else ""
    return [f"shard {moved[0]}{more}: other images, or other names or sizes of them, than before{counts}"]
