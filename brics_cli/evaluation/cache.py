"""Reference features on disk, found again by content: the same images through the same network are computed once.

An entry is a directory named by the sha256 of what went in (`identity`: the fingerprint of the images taken, transform,
size, network, resize, sha256 of the weights). It holds `moments.npz`, where a metric needed them `rows.npy`, and
`entry.json`, written last. Each is put in place by rename, and whoever writes an entry writes the same: writers do not
wait for each other, and none takes away what another has added. A cache that cannot be written is only read. The root
is `$BRICS_CACHE`, else `$XDG_CACHE_HOME/brics/features`, else `~/.cache/brics/features`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.rows import ArrayRows, RowSource, in_blocks
from brics_cli.parsing import as_json, parse_json, read_bytes
from brics_cli.workspace import atomic_path, write_text_atomically
from brics_cli.workspace.files import cache_folder

FORMAT = 3
"""Raised whenever what an entry holds is computed in another way."""

LEFT_BEHIND_S = 86_400.0


@dataclass(frozen=True)
class CachedFeatures:
    """`moments`, `rows` (None: not kept), and the (key, reason) of every image that could not be read."""

    moments: FeatureMoments
    rows: RowSource | None
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class CacheEntry:
    """One entry as `brics cache list` shows it. `used` is the time (s since 1970) it was last read or written."""

    name: str
    path: Path
    description: str
    network: str
    num_images: int
    num_bytes: int
    has_rows: bool
    used: float


def cache_root() -> Path:
    """Where entries stand; not necessarily there yet."""
    return cache_folder("features")


def entry_name(identity: dict[str, Any]) -> str:
    """The name of the entry of `identity`: 32 hexadecimal digits."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(identity: dict[str, Any], *, need_rows: bool) -> CachedFeatures | None:
    """The features of `identity`; None when they are not there, lack the rows that are needed, or are damaged."""
    path = cache_root() / entry_name(identity)
    try:
        record = parse_json(read_bytes(path / "entry.json"))
        if record["identity"] != as_json(identity):
            return None
        with np.load(path / "moments.npz", allow_pickle=False) as file:
            moments = FeatureMoments.from_state({name: file[name] for name in file.files})
        rows = None
        if (path / "rows.npy").exists():
            rows = ArrayRows(np.load(path / "rows.npy", mmap_mode="r", allow_pickle=False))
        failures = [(str(key), str(reason)) for key, reason in record["failures"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if need_rows and (rows is None or len(rows) != moments.num):
        return None
    with suppress(OSError):  # another user's, or read-only: it is not ours to say when it was used
        os.utime(path / "entry.json")
    return CachedFeatures(moments, rows, failures)


def save(
    identity: dict[str, Any],
    *,
    layout: str,
    description: str,
    moments: FeatureMoments,
    rows: RowSource | None,
    failures: list[tuple[str, str]],
) -> Path:
    """Write an entry, `layout` being that of its images; returns its directory.

    Raises OSError when the cache cannot be written.
    """
    _sweep()
    final = cache_root() / entry_name(identity)
    record = {
        "identity": identity,
        "layout": layout,
        "description": description,
        "network": identity.get("network", ""),
        "num_images": moments.num,
        "failures": failures,
    }
    with atomic_path(final / "moments.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **moments.state())  # type: ignore[arg-type]
    if rows is not None:
        with atomic_path(final / "rows.npy") as temporary:
            shape = (len(rows), rows.num_features)
            kept = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
            for block in in_blocks(rows):
                kept[block[0] : block[-1] + 1] = rows.take(block)
            kept.flush()
            del kept
    write_text_atomically(final / "entry.json", json.dumps(record, indent=2))
    return final


def holds_layout(layout: str) -> bool:
    """Whether there may be features of images of this layout: their fingerprint is worth knowing."""
    return any(record.get("layout") == layout for _, record in _records())


def _records() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every entry's directory and what its `entry.json` says; what is not an entry of ours is passed over."""
    try:
        paths = sorted(cache_root().iterdir())
    except OSError:
        return
    for path in paths:
        with suppress(OSError, ValueError):
            record = parse_json(read_bytes(path / "entry.json"))
            if isinstance(record, dict):
                yield path, record


def _sweep() -> None:
    """Remove what a killed process left half-written: entries are written in minutes, this is older than a day."""
    root = cache_root()
    begun = (path for path in root.glob("[0-9a-f]" * 32) if not (path / "entry.json").exists())
    for path in chain(root.glob(".*.tmp"), root.glob(".*.old"), root.glob("*/.*.tmp"), begun):
        with suppress(OSError):  # gone already, or not ours
            if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def entries() -> list[CacheEntry]:
    """What is in the cache, the longest unused last."""
    found = []
    for path, record in _records():
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append(
                CacheEntry(
                    name=path.name,
                    path=path,
                    description=str(record["description"]),
                    network=str(record["network"]),
                    num_images=int(record["num_images"]),
                    num_bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
                    has_rows=(path / "rows.npy").exists(),
                    used=(path / "entry.json").stat().st_mtime,
                )
            )
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def prune(*, unused_s: float | None = None, max_bytes: int | None = None) -> list[CacheEntry]:
    """Remove entries unused for `unused_s` seconds, then the longest unused until `max_bytes` are left.

    With neither, every entry. Returns what was removed: entries of another user's stay. Nothing that is not an entry
    is touched.
    """
    _sweep()
    kept, now = entries(), time.time()
    if unused_s is None and max_bytes is None:
        max_bytes = -1
    doomed = [entry for entry in kept if unused_s is not None and now - entry.used > unused_s]
    kept = [entry for entry in kept if entry not in doomed]
    while kept and max_bytes is not None and sum(entry.num_bytes for entry in kept) > max_bytes:
        doomed.append(kept.pop())
    for entry in doomed:
        shutil.rmtree(entry.path, ignore_errors=True)
    return [entry for entry in doomed if not entry.path.exists()]
