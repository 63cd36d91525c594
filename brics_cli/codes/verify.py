"""Check every promise of a store: structure, counts, order, hashes, statistics.

`main` prints the broken ones as JSON: libhdf5 itself can crash or hang on a file that was tampered with, so
`verify_store_in_child` runs that with a time limit and survives it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brics_cli.codes.format import RowHash, Statistics, names_sha256, store_sha256
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.codes.sealing import SEAL_ATTRIBUTE, SEALED_DATASETS, seal
from brics_cli.errors import ArtefactError, BricsError, MachineError
from brics_cli.isolation import child_command, child_environment
from brics_cli.workspace.locks import locks_are_off

BLOCK_ROWS = 4096


def verify_store(path: str | Path) -> list[str]:
    """The promises of format 1 that the store at `path` breaks, one line each; empty when it is sound.

    Raises MachineError when it cannot be read now (locked, a failing mount): nothing is known of it then.
    """
    try:
        store = KeyCodeStore(path)
        with h5py.File(store.path, "r", locking=None if locks_are_off() else False) as file:
            broken = _structure(file, len(store), is_sealed=bool(store.artefact.details.get("sealed")))
            if broken:
                return broken
            columns = {name: file[name][()] for name in ("keys", "labels", "shard_id", "index_in_shard")}
            metas = [text.decode() if isinstance(text, bytes) else str(text) for text in file["meta"][()]]
            histogram = file["stats/histogram"][()]
        return [
            *_counts(store, columns),
            *_hashes_and_statistics(store, columns, metas, histogram),
            *_identity(store),
        ]
    except MachineError:
        raise
    except BricsError as error:
        return [error.what]
    except Exception as error:  # whatever a tampered file makes h5py or numpy raise is a broken promise
        return [f"reading it fails: {type(error).__name__}: {error}"]


def _structure(file: h5py.File, num_rows: int, *, is_sealed: bool) -> list[str]:
    broken = []
    for name, kind in (
        ("labels", "<i8"),
        ("shard_id", "<i8"),
        ("index_in_shard", "<i8"),
        ("keys", "|S"),
        ("meta", "|O"),
    ):
        if name not in file:
            broken.append(f"dataset {name} is missing")
        elif file[name].shape != (num_rows,) or not file[name].dtype.str.startswith(kind):
            broken.append(f"dataset {name} is {file[name].shape} {file[name].dtype}, not {num_rows} rows of {kind}")
    broken += [f"dataset {name} is missing" for name in SEALED_DATASETS if name not in file]
    if "class_names" in file and file["class_names"].attrs.get("sha256") != names_sha256(file["class_names"][()]):
        broken.append("the names of classes are not those that were written (sha256)")
    if not broken and SEAL_ATTRIBUTE in file.attrs and file.attrs[SEAL_ATTRIBUTE] != seal(file):
        broken.append("the header, the tables or the statistics are not those that were written (seal)")
    if SEAL_ATTRIBUTE not in file.attrs and is_sealed:  # stores made before there were seals have none
        broken.append("the seal is missing")
    return broken


def _counts(store: KeyCodeStore, columns: dict[str, Any]) -> list[str]:
    broken = []
    names = [shard["name"] for shard in store.shards]
    if len(set(names)) != len(names):
        broken.append("a shard stands twice in the shards table")
    if sum(shard["n_ok"] for shard in store.shards) != len(store):
        broken.append(f"the shards table counts other than {len(store):,} rows")
        return broken
    failed = [failure["shard"] for failure in store.failures]
    if set(failed) - set(names):
        broken.append("a failure names a shard that is not in the shards table")
    start = 0
    for number, shard in enumerate(store.shards):
        rows = slice(start, start + shard["n_ok"])
        start = rows.stop
        where = f"shard {shard['name']}"
        if shard["n_ok"] + shard["n_failed"] != shard["n_in"] or shard["n_failed"] != failed.count(shard["name"]):
            broken.append(f"{where}: {shard['n_ok']} encoded + {failed.count(shard['name'])} failed of {shard['n_in']}")
        if not (columns["shard_id"][rows] == number).all():
            broken.append(f"{where}: its rows carry another shard_id")
        indices = columns["index_in_shard"][rows]
        if len(indices) and (indices[0] < 0 or indices[-1] >= shard["n_in"] or not (np.diff(indices) > 0).all()):
            broken.append(f"{where}: index_in_shard does not rise")
        if len(np.unique(columns["keys"][rows])) != shard["n_ok"]:
            broken.append(f"{where}: a key stands twice")
    return broken


def _hashes_and_statistics(store: KeyCodeStore, columns: dict[str, Any], metas: list[str], histogram: Any) -> list[str]:
    broken = []
    if store_sha256(shard["sha256"] for shard in store.shards) != store.sha256:
        broken.append("attribute sha256 is not that of the shards' row hashes")
    statistics = Statistics.empty(store.code_shape[0])
    header = store.header
    start = 0
    for shard in store.shards:
        stop = start + shard["n_ok"]
        row_hash = RowHash()
        for block in range(start, stop, BLOCK_ROWS):
            rows = slice(block, min(block + BLOCK_ROWS, stop))
            codes = store.raw(rows)
            row_hash.add(codes, store.raw(rows, flipped=True) if store.has_flipped else None)
            statistics.add(codes, header)
        rows = slice(start, stop)
        found = row_hash.hexdigest(
            columns["keys"][rows], columns["labels"][rows], columns["index_in_shard"][rows], metas[rows]
        )
        if found != shard["sha256"]:
            broken.append(f"shard {shard['name']}: its rows are not those that were written (sha256)")
        start = stop
    same = (
        np.allclose(statistics.mean, store.mean, atol=1e-5)
        and np.allclose(statistics.std, store.std, atol=1e-5)
        and np.array_equal(statistics.histogram, histogram)
    )
    return broken if same else [*broken, "stats are not those of the codes"]


def _identity(store: KeyCodeStore) -> list[str]:
    broken = []
    if store.header.identity() != store.identity:
        broken.append("attribute identity is not that of the other attributes")
    if store.artefact.details.get("sha256") != store.sha256:
        broken.append("the provenance names another sha256")
    if len(str(store.autoencoder.get("sha256", ""))) != 64 or "config" not in store.autoencoder:
        broken.append("attribute autoencoder lacks the sha256 or the config")
    return broken


def verify_store_in_child(path: str | Path, *, timeout_s: float | None = None) -> list[str]:
    """`verify_store` in a process of its own. A crash, or more than `timeout_s` (default: 60 s and 20 s per GB of
    file), is a broken promise too. Raises ArtefactError when the file is missing, MachineError as `verify_store`."""
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"{path} is missing")
    limit_s = timeout_s if timeout_s is not None else 60 + 20 * path.stat().st_size / 1e9
    command = child_command("brics_cli.codes.verify", path)
    try:
        child = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"reading it did not end in {math.ceil(limit_s)} s"]
    try:
        found = json.loads(child.stdout)
        if isinstance(found, dict):
            raise MachineError(found["what"], next=found["next"])
        return [str(line) for line in found]
    except ValueError:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        return [f"reading it crashes libhdf5 ({how})"]


def main() -> None:
    """The life of the process; its argument: the store."""
    try:
        print(json.dumps(verify_store(sys.argv[1])))
    except MachineError as said:
        print(json.dumps({"what": said.what, "next": said.next}))
