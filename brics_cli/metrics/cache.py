"""Reference features on disk, found again by content: the same images through the same network are computed once.

An entry is a directory named by the sha256 of what went in (`identity`: the collection's fingerprint, transform, size,
images taken, network, resize, sha256 of the weights). It holds `entry.json`, `moments.npz` and, where a metric needed
them, `rows.npy`. The root is `$BRICS_CACHE`, else `$XDG_CACHE_HOME/brics/features`, else `~/.cache/brics/features`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.metrics.moments import FeatureMoments
from brics_cli.metrics.rows import ArrayRows, RowSource, in_blocks
from brics_cli.workspace import atomic_path

FORMAT = 2
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
    if named := os.environ.get("BRICS_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "brics" / "features"


def entry_name(identity: dict[str, Any]) -> str:
    """The name of the entry of `identity`: 32 hexadecimal digits."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(identity: dict[str, Any], *, need_rows: bool) -> CachedFeatures | None:
    """The features of `identity`; None when they are not there, lack the rows that are needed, or are damaged."""
    path = cache_root() / entry_name(identity)
    try:
        record = json.loads((path / "entry.json").read_text(encoding="utf-8"))
        if record["identity"] != json.loads(json.dumps(identity, default=str)):
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
    os.utime(path / "entry.json")
    return CachedFeatures(moments, rows, failures)


def save(
    identity: dict[str, Any],
    *,
    description: str,
    moments: FeatureMoments,
    rows: RowSource | None,
    failures: list[tuple[str, str]],
) -> Path:
    """Write an entry, by rename; returns its directory. Raises OSError when the cache cannot be written."""
    _sweep()
    final = cache_root() / entry_name(identity)
    record = {
        "identity": identity,
        "description": description,
        "network": identity.get("network", ""),
        "num_images": moments.num,
        "failures": failures,
    }
    with atomic_path(final) as temporary:
        temporary.mkdir()
        with (temporary / "moments.npz").open("wb") as file:
            np.savez(file, **moments.state())  # type: ignore[arg-type]
        if rows is not None:
            shape = (len(rows), rows.num_features)
            kept = np.lib.format.open_memmap(temporary / "rows.npy", "w+", dtype=np.float32, shape=shape)
            for block in in_blocks(rows):
                kept[block[0] : block[-1] + 1] = rows.take(block)
            kept.flush()
            del kept
        (temporary / "entry.json").write_text(json.dumps(record, indent=2, default=str), encoding="utf-8")
    return final


def _sweep() -> None:
    """Remove what a killed process left half-written: entries are written in minutes, this is older than a day."""
    root = cache_root()
    for pattern in (".*.tmp", ".*.old"):
        for path in root.glob(pattern) if root.is_dir() else []:
            if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(path, ignore_errors=True)


def entries() -> list[CacheEntry]:
    """What is in the cache, the longest unused last. What is not an entry of ours is passed over."""
    root = cache_root()
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            record = json.loads((path / "entry.json").read_text(encoding="utf-8"))
            files = [file for file in path.iterdir() if file.is_file()]
            found.append(
                CacheEntry(
                    name=path.name,
                    path=path,
                    description=str(record["description"]),
                    network=str(record["network"]),
                    num_images=int(record["num_images"]),
                    num_bytes=sum(file.stat().st_size for file in files),
                    has_rows=(path / "rows.npy").exists(),
                    used=(path / "entry.json").stat().st_mtime,
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def prune(*, unused_s: float | None = None, max_bytes: int | None = None) -> list[CacheEntry]:
    """Remove entries unused for `unused_s` seconds, then the longest unused until `max_bytes` are left.

    With neither, every entry. Returns what was removed. Nothing that is not an entry is touched.
    """
    _sweep()
    kept, now = entries(), time.time()
    doomed: list[CacheEntry] = []
    if unused_s is None and max_bytes is None:
        doomed, kept = kept, []
    if unused_s is not None:
        doomed += [entry for entry in kept if now - entry.used > unused_s]
        kept = [entry for entry in kept if entry not in doomed]
    if max_bytes is not None:
        while kept and sum(entry.num_bytes for entry in kept) > max_bytes:
            doomed.append(kept.pop())
    for entry in doomed:
        shutil.rmtree(entry.path)
    return doomed
