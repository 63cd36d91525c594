"""Check every invariant of a store: structure, counts, order, hashes, statistics.

`main` prints what is broken as JSON: libhdf5 itself can crash or hang on a file that was tampered with, so
`verify_store_in_child` runs that with a time limit and survives it.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from brics_cli.codes.finishing import ROWS_AT_ONCE, place_of
from brics_cli.codes.format import (
    ABSENT,
    PART_COLUMNS,
    SEAL_ATTRIBUTE,
    SEALED_DATASETS,
    Array,
    RowHash,
    Statistics,
    names_sha256,
    seal,
    store_sha256,
)
from brics_cli.codes.parts import open_kept_part
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError, BricsError, MachineError
from brics_cli.isolation import child_command, child_environment
from brics_cli.runtime.executors import LocalExecutor
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.runtime.threads import free_cores
from brics_cli.workspace.hdf5 import MOST_AT_ONCE, TOO_SLOW, limit
from brics_cli.workspace.locks import locks_are_off
from brics_cli.workspace.naming import IDENTITY_NAME, PARTS_FOLDER, store_file, store_path

BLOCK_ROWS = 4096
WORTH_PROCESSES = 2**28
"""Bytes of parts from which on several processes check them: one starts in the time of as many."""
_COLUMNS = {"labels": "<i8", "shard_id": "<i8", "index_in_shard": "<i8", "keys": "|S", "meta": "|O"}


def verify_store(path: str | Path) -> list[str]:
    """The invariants of its format that the store at `path` breaks, one line each; empty when it is sound.

    Raises MachineError when it cannot be read now (locked, a failing mount): nothing is known of it then.
    """
    path = store_path(Path(path))
    return _verify_file(path) or (_verify_parts(path, SilentReporter()) if path.is_dir() else [])


def _verify_file(path: Path) -> list[str]:
    """What is broken in the one file of a store, or in the index of one that is a folder."""
    try:
        store = KeyCodeStore(path)
        with h5py.File(store_file(store.path), "r", locking=None if locks_are_off() else False) as file:
            broken = list(_broken_structure(store, file)) or list(_broken_tables(store))
            if not broken:
                broken = list(_broken_index(store, file) if store.is_folder else _broken_rows(store, file))
            return broken + list(_broken_header(store))
    except MachineError:
        raise
    except BricsError as error:
        return [error.what]
    except Exception as error:  # whatever a tampered file makes h5py or numpy raise is a broken invariant
        return [f"reading it fails: {type(error).__name__}: {error}"]


def _broken_structure(store: KeyCodeStore, file: h5py.File) -> Iterator[str]:
    is_whole = True
    for name in (*_COLUMNS, *SEALED_DATASETS):
        kind = _COLUMNS.get(name)
        if name not in file:
            is_whole = False
            yield f"dataset {name} is missing"
        elif kind and (file[name].shape != (len(store),) or not file[name].dtype.str.startswith(kind)):
            is_whole = False
            yield f"dataset {name} is {file[name].shape} {file[name].dtype}, not {len(store)} rows of {kind}"
    if "class_names" in file and file["class_names"].attrs.get("sha256") != names_sha256(file["class_names"][()]):
        is_whole = False
        yield "the names of classes are not those that were written (sha256)"
    if SEAL_ATTRIBUTE not in file.attrs:
        if store.artefact.details.get("sealed"):  # stores made before there were seals have none
            yield "the seal is missing"
    elif is_whole and file.attrs[SEAL_ATTRIBUTE] != seal(file):
        yield "the header, the tables or the statistics are not those that were written (seal)"


def _broken_tables(store: KeyCodeStore) -> Iterator[str]:
    names, failed = [shard["name"] for shard in store.shards], Counter(failure["shard"] for failure in store.failures)
    if len(set(names)) != len(names):
        yield "a shard appears twice in the shards table"
    if failed.keys() - set(names):
        yield "a failure names a shard that is not in the shards table"
    if store_sha256(shard["sha256"] for shard in store.shards) != store.sha256:
        yield "attribute sha256 is not that of the shards' row hashes"
    if store.shard_starts[-1] != len(store):
        yield f"the shards table counts other than {len(store):,} rows"
    for shard in store.shards:
        if shard["n_ok"] + shard["n_failed"] != shard["n_in"] or shard["n_failed"] != failed[shard["name"]]:
            yield f"shard {shard['name']}: {shard['n_ok']} encoded + {shard['n_failed']} failed of {shard['n_in']}"


def _broken_rows(store: KeyCodeStore, file: h5py.File) -> Iterator[str]:
    keys, labels, shard_ids, indices = (file[name][()] for name in ("keys", "labels", "shard_id", "index_in_shard"))
    metas = [text.decode() if isinstance(text, bytes) else str(text) for text in file["meta"][()]]
    statistics, header = Statistics.empty(store.code_shape[0]), store.header
    for number, (shard, start) in enumerate(zip(store.shards, store.shard_starts, strict=False)):
        where, rows = f"shard {shard['name']}", slice(start, start + shard["n_ok"])
        if not (shard_ids[rows] == number).all():
            yield f"{where}: its rows carry another shard_id"
        yield from _broken_order(where, shard, keys[rows], indices[rows])
        row_hash = RowHash()
        for first in range(start, rows.stop, BLOCK_ROWS):
            block = slice(first, min(first + BLOCK_ROWS, rows.stop))
            codes = store.raw(block)
            row_hash.add(codes, store.raw(block, flipped=True) if store.has_flipped else None)
            statistics.add(codes, header)
        if row_hash.hexdigest(keys[rows], labels[rows], indices[rows], metas[rows]) != shard["sha256"]:
            yield f"{where}: its rows are not those that were written (sha256)"
    yield from _broken_statistics(store, statistics)


def _broken_order(where: str, shard: Mapping[str, Any], keys: Array, in_shard: Array) -> Iterator[str]:
    if len(in_shard) and (in_shard[0] < 0 or in_shard[-1] >= shard["n_in"] or not (np.diff(in_shard) > 0).all()):
        yield f"{where}: index_in_shard does not rise"
    if len(np.unique(keys)) != shard["n_ok"]:
        yield f"{where}: a key appears twice"


def _broken_statistics(store: KeyCodeStore, statistics: Statistics) -> Iterator[str]:
    if not (
        np.allclose(statistics.mean, store.mean, atol=1e-5)
        and np.allclose(statistics.std, store.std, atol=1e-5)
        and np.array_equal(statistics.histogram, store.histogram)
    ):
        yield "stats are not those of the codes"


def _broken_header(store: KeyCodeStore) -> Iterator[str]:
    if store.header.identity() != store.identity:
        yield "attribute identity is not that of the other attributes"
    if store.artefact.details.get("sha256") != store.sha256:
        yield "the provenance names another sha256"
    if len(str(store.autoencoder.get("sha256", ""))) != 64 or "config" not in store.autoencoder:
        yield "attribute autoencoder lacks the sha256 or the config"


def _broken_index(store: KeyCodeStore, file: h5py.File) -> Iterator[str]:
    """What makes one array of the parts for h5py: does each virtual dataset have each part's rows at their place?"""
    starts, num_rows, places = store.shard_starts, [shard["n_ok"] for shard in store.shards], file["parts"][()]
    for first in range(0, len(store), ROWS_AT_ONCE):
        found = file["shard_id"][first : first + ROWS_AT_ONCE]
        rows = np.arange(first, first + len(found))
        if not np.array_equal(found, np.searchsorted(starts, rows, side="right") - 1):
            yield "shard_id is not that of the rows"
            break
    for name in [each for each in PART_COLUMNS if each in file]:
        expected = {
            (f"{PARTS_FOLDER}/{place['file'].decode()}", name, start, num)
            for place, start, num in zip(places, starts, num_rows, strict=False)
            if num and place[name] != ABSENT
        }
        if file[name].is_virtual != bool(expected):
            yield f"dataset {name} is not one of the parts"
            continue
        found = {
            (each.file_name.replace("%%", "%"), each.dset_name, *_rows_of(each.vspace))
            for each in (file[name].virtual_sources() if expected else ())
            if _rows_of(each.src_space)[0] == 0
        }
        if found != expected:
            yield f"dataset {name} is made of other rows than those of the parts"
    names = {path.name for path in store.part_paths} | {IDENTITY_NAME}
    if others := sorted({entry.name for entry in (store.path / PARTS_FOLDER).iterdir()} - names):
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        yield f"{store.path / PARTS_FOLDER / others[0]}{more}: not in the index, so that nothing reads it"


def _rows_of(space: Any) -> tuple[int, int]:
    """The first row of a selection, and how many."""
    start, _, count, block = space.get_regular_hyperslab()
    return int(start[0]), int(count[0] * block[0])


class PartChecked(NamedTuple):
    """What is `broken` in a part, and the statistics of its rows. `num_tasks` is that of `runtime.executors.Event`."""

    broken: list[str]
    statistics: Statistics
    num_tasks: int = 0


def verify_part(store: KeyCodeStore, number: int) -> PartChecked:
    """Hold the part `number` of a store that is a folder against its index, its rows against their sha256."""
    shard, where = store.shards[number], str(store.part_paths[number])
    statistics, header = Statistics.empty(store.code_shape[0]), store.header
    broken: list[str] = []
    try:
        with open_kept_part(store, number) as part:
            if list(part.failures) != store.failures_by_shard.get(shard["name"], []):
                broken.append(f"{where}: its failures are not those of the index")
            if place_of(store.part_paths[number], part) != store.part_place(number):
                broken.append(f"{where}: its rows are elsewhere in it than the index says")
            broken += _broken_order(where, shard, part.keys, part.index_in_shard)
            row_hash = RowHash()
            for _, codes, flipped in part.blocks():
                row_hash.add(codes, flipped)
                statistics.add(codes, header)
            if row_hash.hexdigest(part.keys, part.labels, part.index_in_shard, part.metas()) != part.sha256:
                broken.append(f"{where}: its rows are not those that were written (sha256)")
    except MachineError:
        raise
    except BricsError as error:
        broken.append(error.what)
    except Exception as error:  # as of a file
        broken.append(f"reading {where} fails: {type(error).__name__}: {error}")
    return PartChecked(broken, statistics)


@dataclass(frozen=True)
class PartsCheck:
    """`verify_part` as the work of a process (`runtime.executors.Work`), a few parts to a task."""

    path: Path

    def __call__(self, device: str) -> Callable[[Iterator[range]], Iterator[PartChecked]]:
        store = KeyCodeStore(self.path)

        def check(tasks: Iterator[range]) -> Iterator[PartChecked]:
            for numbers in tasks:
                for number in numbers:
                    yield verify_part(store, number)._replace(num_tasks=int(number == numbers[-1]))

        return check


def _verify_parts(path: Path, reporter: Reporter) -> list[str]:
    """What is broken in the parts of a store whose index is sound: many are checked by as many processes as cores."""
    store = KeyCodeStore(path)
    num, work = len(store.shards), PartsCheck(store.path)
    tasks = [range(start, min(start + MOST_AT_ONCE, num)) for start in range(0, num, MOST_AT_ONCE)]
    is_large = store.num_bytes > WORTH_PROCESSES and len(tasks) > 1
    checked = LocalExecutor(["cpu"] * free_cores()).run(work, tasks) if is_large else work("cpu")(iter(tasks))
    broken, statistics = [], Statistics.empty(store.code_shape[0])
    with reporter.task("verify", total=num, unit="part") as task:
        for part in checked:
            broken += part.broken
            statistics.merge(part.statistics)
            task.advance(1)
    return broken or list(_broken_statistics(store, statistics))


def verify_store_in_child(
    path: str | Path, *, limit_s: float | None = None, reporter: Reporter | None = None
) -> list[str]:
    """`verify_store` in a process of its own. A crash, or more than `limit_s` of computing (default: 60 s and 20 s per
    GB of file), is a broken invariant too.

    Of a store that is a folder the index is checked so, then its parts, of which `reporter` hears: what reads them is
    not libhdf5. Raises ArtefactError when the file is missing, MachineError as `verify_store`, and when ten times as
    long is not enough for a process that hardly computes: then the machine or its disk is too busy, and nothing is
    known.
    """
    path = store_path(Path(path))
    file = store_file(path) if path.is_dir() else path
    if not file.is_file():
        raise ArtefactError(f"{file} is missing")
    limit_s = math.ceil(limit_s if limit_s is not None else 60 + 20 * file.stat().st_size / 1e9)
    command = child_command("brics_cli.codes.verify", path, limit_s)
    try:
        child = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=10 * limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"checking {path} did not end in {10 * limit_s:,} s", next=TOO_SLOW) from None
    if child.returncode == -signal.SIGXCPU:
        return [f"reading it did not end in {limit_s:,} s"]
    try:
        found = json.loads(child.stdout)
    except ValueError:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        return [f"reading it crashes libhdf5 ({how})"]
    if isinstance(found, dict):
        raise MachineError(**found)
    broken = [str(line) for line in found]
    return broken or (_verify_parts(path, reporter or SilentReporter()) if path.is_dir() else [])


def main() -> None:
    """The life of the process; its arguments: the store, and for how many seconds it may compute."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, int(sys.argv[2]))
    try:
        print(json.dumps(_verify_file(Path(sys.argv[1]))))
    except MachineError as said:
        print(json.dumps({"what": said.what, "next": said.next}))
