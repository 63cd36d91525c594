"""Downloading one file so that a broken connection costs nothing: HTTP Range, sha256, rename.

What has arrived waits beside the final place as `<file>.part`; the next call goes on where it ends. Nothing gets its
final name before its checksum is known.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError, MachineError
from brics_cli.networks.weights.registry import WeightsEntry
from brics_cli.runtime.reporting import Reporter, Task
from brics_cli.workspace import hold_lock
from brics_cli.workspace.files import fsync

CHUNK_BYTES = 1_000_000
NUM_RECONNECTIONS = 5
_BROKEN = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


def download(wanted: WeightsEntry, final: Path, *, by_hand: str, reporter: Reporter, timeout_s: float) -> str:
    """Download `wanted` to `final`, going on with what an earlier call left; returns the sha256 of the file.

    `by_hand` is what to do instead. Raises MachineError when the connection fails (what has arrived is kept),
    ArtefactError when the file does not have the published sha256 (nothing is kept).
    """
    part = final.with_name(final.name + ".part")
    final.parent.mkdir(parents=True, exist_ok=True)
    total = None if wanted.num_bytes is None else -(-wanted.num_bytes // CHUNK_BYTES)
    with hold_lock(final.with_name(f".{final.name}.lock"), what=str(final)):
        at_start = _size(part)
        with reporter.task(wanted.file, total=total, unit="MB", initial=at_start // CHUNK_BYTES) as task:
            if at_start:
                reporter.message(f"going on with {part}: {at_start / 1e6:.1f} MB are there")
            _fetch_all(wanted, part, task, by_hand=by_hand, timeout_s=timeout_s)
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if wanted.sha256 is not None and sha256 != wanted.sha256:
            part.unlink()
            raise ArtefactError(
                f"what {wanted.url} sent is not {wanted.file}: sha256 {sha256[:12]}… instead of {wanted.sha256[:12]}…",
                next="Nothing was kept. Try again, or get the file elsewhere: brics weights import FILE",
            )
        fsync(part)
        part.replace(final)
        fsync(final.parent)
    return sha256


def _fetch_all(wanted: WeightsEntry, part: Path, task: Task, *, by_hand: str, timeout_s: float) -> None:
    """Fill `part`; a connection that breaks after having brought something is taken up again a few times."""
    for attempt in range(NUM_RECONNECTIONS + 1):
        before = _size(part)
        try:
            if _fetch_rest(wanted, part, task, timeout_s=timeout_s):
                return
            reason: object = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise MachineError(f"cannot fetch {wanted.url} ({error.code} {error.reason})", next=by_hand) from None
        except _BROKEN as error:
            reason = getattr(error, "reason", None) or error
        arrived = _size(part)
        if arrived <= before or attempt == NUM_RECONNECTIONS:
            if not arrived:
                raise MachineError(f"cannot fetch {wanted.url} ({reason})", next=by_hand) from None
            raise MachineError(
                f"the download of {wanted.url} broke off after {arrived / 1e6:.1f} MB ({reason})",
                next="The same command goes on from there.",
            ) from None


def _fetch_rest(wanted: WeightsEntry, part: Path, task: Task, *, timeout_s: float) -> bool:
    """Append what is missing of `part`, or write it anew if the server knows no ranges; whether all of it came."""
    have = _size(part)
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: Any = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what is there: complete, or of another file
            if have != wanted.num_bytes:
                part.unlink()
                return _fetch_rest(wanted, part, task, timeout_s=timeout_s)
            return True
        raise
    with closing(response):
        resumed = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length) + (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as target:
            while chunk := response.read(CHUNK_BYTES):
                target.write(chunk)
                task.advance()
    return expected is None or _size(part) >= expected


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
