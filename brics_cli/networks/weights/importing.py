"""Bringing weights into the root: from a file or directory that is there, or from where they are published.

Every file is recognised by its sha256, never by its name, and lands by rename: a half-copied file is never found.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.networks.weights.downloading import CHUNK_BYTES, download
from brics_cli.networks.weights.finding import FoundWeights, checked_sha256, find, forget_checked, weights_root
from brics_cli.networks.weights.registry import REGISTRY, WeightsEntry, entry, recognise
from brics_cli.runtime.reporting import Reporter, SilentReporter, Task
from brics_cli.workspace import atomic_path

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class WeightsState:
    """What `brics weights list` and `verify` say of one entry.

    `state`: `verified`, `missing`, or `unverified`, a file of the right name whose sha256 is not the published one,
    or which has none.
    """

    entry: WeightsEntry
    state: str
    path: Path | None
    sha256: str | None


def survey(*, forget: bool = False) -> list[WeightsState]:
    """The state of every entry of the registry; with `forget` every file is hashed again."""
    if forget:
        forget_checked()
    states = []
    for known in REGISTRY.values():
        found = find(known.id, allow_unverified=True)
        if found is None:
            states.append(WeightsState(known, "missing", None, None))
        else:
            state = "verified" if found.verified else "unverified"
            states.append(WeightsState(known, state, found.path, found.sha256))
    return states


def import_weights(
    source: Path, *, allow_unverified: bool = False, as_id: str | None = None, reporter: Reporter | None = None
) -> list[FoundWeights]:
    """Copy `source`, or every file below it that is recognised, into the root under its published name.

    Raises UsageError for a path that is not there or an `as_id` that cannot be meant, ArtefactError when nothing
    is recognised. With `allow_unverified` and `as_id` one file of unknown sha256 is taken for those weights.
    """
    reporter = reporter or SilentReporter()
    if (as_id is None) == allow_unverified:
        raise UsageError("--allow-unverified and --as go together", next="Say which weights it is: --as ID")
    if not source.exists():
        raise UsageError(f"{source} is not there")
    if as_id is not None:
        if not source.is_file():
            raise UsageError(f"--as takes one file, {source} is a directory")
        return [_import_as(source, entry(as_id), reporter)]
    imported = [found for path in _files(source) if (found := _import_recognised(path, reporter)) is not None]
    if not imported:
        raise ArtefactError(_not_recognised(source))
    return imported


def fetch(
    weights_ids: Iterable[str],
    *,
    allow_unverified: bool = False,
    reporter: Reporter | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[FoundWeights]:
    """Download weights into the root, each checked before it gets its name; those already there are left alone.

    A download that broke off goes on where it ended. Raises MachineError when the network is not there or
    `$BRICS_OFFLINE` is set, ArtefactError when what arrives does not have the published sha256, UsageError for
    weights without a published sha256 unless `allow_unverified`.
    """
    reporter = reporter or SilentReporter()
    fetched = []
    entries = [entry(weights_id) for weights_id in dict.fromkeys(weights_ids)]
    for wanted in entries:
        if wanted.sha256 is None and not allow_unverified:
            raise UsageError(
                f"nobody has published the sha256 of {wanted.file}, so it cannot be checked",
                next="If you trust its server: --allow-unverified; its results are then marked as not comparable.",
            )
    for wanted in entries:
        found = find(wanted.id, allow_unverified=wanted.sha256 is None)
        if found is None:
            found = _download(wanted, reporter, timeout_s)
        else:
            reporter.message(f"{wanted.id}: already at {found.path}")
        fetched.append(found)
    return fetched


def _download(wanted: WeightsEntry, reporter: Reporter, timeout_s: float) -> FoundWeights:
    by_hand = f"On a connected machine: curl -LO {wanted.url}; then brics weights import {wanted.file}"
    if wanted.sha256 is None:
        by_hand += f" --allow-unverified --as {wanted.id}"
    if os.environ.get("BRICS_OFFLINE", "") not in {"", "0"}:
        raise MachineError(f"{wanted.file} is not here and BRICS_OFFLINE is set", next=by_hand)
    final = weights_root() / wanted.file
    sha256 = download(wanted, final, by_hand=by_hand, reporter=reporter, timeout_s=timeout_s)
    return FoundWeights(wanted.id, final, sha256, verified=wanted.sha256 is not None)


def _import_recognised(path: Path, reporter: Reporter) -> FoundWeights | None:
    known = recognise(checked_sha256(path))
    return None if known is None else _place(path, known, reporter, verified=True)


def _import_as(path: Path, wanted: WeightsEntry, reporter: Reporter) -> FoundWeights:
    verified = checked_sha256(path) == wanted.sha256
    if not verified and find(wanted.id) is not None:
        raise UsageError(f"the published {wanted.file} is already there; {path} would take its place unverified")
    return _place(path, wanted, reporter, verified=verified)


def _place(path: Path, known: WeightsEntry, reporter: Reporter, *, verified: bool) -> FoundWeights:
    final = weights_root() / known.file
    if final.exists() and final.samefile(path):
        return FoundWeights(known.id, final, checked_sha256(final), verified)
    with (
        atomic_path(final) as temporary,
        reporter.task(known.file, total=-(-path.stat().st_size // CHUNK_BYTES), unit="MB") as task,
    ):
        with path.open("rb") as source, temporary.open("wb") as target:
            sha256 = _copy(source, target, task)
        shutil.copystat(path, temporary)
    return FoundWeights(known.id, final, sha256, verified)


def _copy(source: BinaryIO, target: BinaryIO, task: Task) -> str:
    """Copy all of `source`; returns the sha256 of what was copied."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        task.advance()
    return digest.hexdigest()


def _files(source: Path) -> Iterator[Path]:
    """`source` itself, or the files below it whose size one of the entries has: the others are not worth hashing."""
    if source.is_file():
        yield source
        return
    sizes = {known.num_bytes for known in REGISTRY.values() if known.sha256 is not None}
    yield from sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size in sizes)


def _not_recognised(source: Path) -> str:
    if source.is_dir():
        names = ", ".join(known.file for known in REGISTRY.values())
        return f"no file in {source} has the sha256 of one that brics knows ({names})"
    return (
        f"{source} has a sha256 that brics does not know ({checked_sha256(source)[:12]}…). "
        "If you trust it: --allow-unverified --as ID; its results are then marked as not comparable"
    )
