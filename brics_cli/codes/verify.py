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
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from brics_cli.codes.format import (
    SEAL_ATTRIBUTE,
    SEALED_DATASETS,
    RowHash,
    Statistics,
    names_sha256,
    seal,
    store_sha256,
)
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError, BricsError, MachineError
from brics_cli.isolation import child_command, child_environment
from brics_cli.workspace.hdf5 import TOO_SLOW, limit
from brics_cli.workspace.locks import locks_are_off

BLOCK_ROWS = 4096
_COLUMNS = {"labels": "<i8", "shard_id": "<i8", "index_in_shard": "<i8", "keys": "|S", "meta": "|O"}


def verify_store(path: str | Path) -> list[str]:
    """The invariants of format 1 that the store at `path` breaks, one line each; empty when it is sound.

    Raises MachineError when it cannot be read now (locked, a failing mount): nothing is known of it then.
    """
    try:
        store = KeyCodeStore(path)
        with h5py.File(store.path, "r", locking=None if locks_are_off() else False) as file:
            return list(_broken_structure(store, file)) or list(_broken_contents(store, file))
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


def _broken_contents(store: KeyCodeStore, file: h5py.File) -> Iterator[str]:
    names, failed = [shard["name"] for shard in store.shards], [failure["shard"] for failure in store.failures]
    if len(set(names)) != len(names):
        yield "a shard appears twice in the shards table"
    if set(failed) - set(names):
        yield "a failure names a shard that is not in the shards table"
    if store_sha256(shard["sha256"] for shard in store.shards) != store.sha256:
        yield "attribute sha256 is not that of the shards' row hashes"
    if store.shard_starts[-1] != len(store):
        yield f"the shards table counts other than {len(store):,} rows"
        return

    keys, labels, shard_ids, indices = (file[name][()] for name in ("keys", "labels", "shard_id", "index_in_shard"))
    metas = [text.decode() if isinstance(text, bytes) else str(text) for text in file["meta"][()]]
    statistics, header = Statistics.empty(store.code_shape[0]), store.header
    for number, (shard, start) in enumerate(zip(store.shards, store.shard_starts, strict=False)):
        where, rows = f"shard {shard['name']}", slice(start, start + shard["n_ok"])
        num_failed, in_shard = failed.count(shard["name"]), indices[rows]
        if shard["n_ok"] + shard["n_failed"] != shard["n_in"] or shard["n_failed"] != num_failed:
            yield f"{where}: {shard['n_ok']} encoded + {num_failed} failed of {shard['n_in']}"
        if not (shard_ids[rows] == number).all():
            yield f"{where}: its rows carry another shard_id"
        if len(in_shard) and (in_shard[0] < 0 or in_shard[-1] >= shard["n_in"] or not (np.diff(in_shard) > 0).all()):
            yield f"{where}: index_in_shard does not rise"
        if len(np.unique(keys[rows])) != shard["n_ok"]:
            yield f"{where}: a key appears twice"
        row_hash = RowHash()
        for first in range(start, rows.stop, BLOCK_ROWS):
            block = slice(first, min(first + BLOCK_ROWS, rows.stop))
            codes = store.raw(block)
            row_hash.add(codes, store.raw(block, flipped=True) if store.has_flipped else None)
            statistics.add(codes, header)
        if row_hash.hexdigest(keys[rows], labels[rows], in_shard, metas[rows]) != shard["sha256"]:
            yield f"{where}: its rows are not those that were written (sha256)"
    if not (
        np.allclose(statistics.mean, store.mean, atol=1e-5)
        and np.allclose(statistics.std, store.std, atol=1e-5)
        and np.array_equal(statistics.histogram, file["stats/histogram"][()])
    ):
        yield "stats are not those of the codes"
    if header.identity() != store.identity:
        yield "attribute identity is not that of the other attributes"
    if store.artefact.details.get("sha256") != store.sha256:
        yield "the provenance names another sha256"
    if len(str(store.autoencoder.get("sha256", ""))) != 64 or "config" not in store.autoencoder:
        yield "attribute autoencoder lacks the sha256 or the config"


def verify_store_in_child(path: str | Path, *, limit_s: float | None = None) -> list[str]:
    """`verify_store` in a process of its own. A crash, or more than `limit_s` of computing (default: 60 s and 20 s per
    GB of file), is a broken invariant too.

    Raises ArtefactError when the file is missing, MachineError as `verify_store`, and when ten times as long is not
    enough for a process that hardly computes: then the machine or its disk is too busy, and nothing is known.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"{path} is missing")
    limit_s = math.ceil(limit_s if limit_s is not None else 60 + 20 * path.stat().st_size / 1e9)
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
    return [str(line) for line in found]


def main() -> None:
    """The life of the process; its arguments: the store, and for how many seconds it may compute."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, int(sys.argv[2]))
    try:
        print(json.dumps(verify_store(sys.argv[1])))
    except MachineError as said:
        print(json.dumps({"what": said.what, "next": said.next}))
