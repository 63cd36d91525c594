"""Files of pretrained weights: looked for, imported, downloaded; recognised by sha256 and never by name. No torch.

Weights are looked for in the root (`$BRICS_WEIGHTS`, else `$XDG_CACHE_HOME/brics/weights`, else
`~/.cache/brics/weights`), then read-only where the peers put theirs. A checksum is remembered with the file's size,
mtime and ctime, so that 350 MB are hashed once and not at every run. Nothing is downloaded unless `fetch` is called,
and nothing of unknown sha256 is loaded unless the caller allows it; what comes of it is then marked not comparable.

The download is our own: pooch checks and caches as well, but starts a broken download anew, and huggingface_hub's that
goes on is no public function.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.networks.registry import WEIGHTS, WeightsEntry, entry, recognise
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.runtime.reporting import Reporter, SilentReporter, Task
from brics_cli.workspace import atomic_path, hold_lock, sha256_of_file, write_json_atomically
from brics_cli.workspace.files import cache_home, fsync

CHECKED_FILE = "checked.json"
TIMEOUT_S = 30.0
CHUNK_BYTES = 1_000_000
NUM_RECONNECTIONS = 5
_BROKEN = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights to load. `verified` is False only when the caller allowed an unknown sha256."""

    id: str
    path: Path
    sha256: str
    verified: bool


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


def weights_root() -> Path:
    """Where brics keeps weights; not necessarily there yet."""
    if named := os.environ.get("BRICS_WEIGHTS"):
        return Path(named).expanduser()
    return cache_home() / "brics" / "weights"


def search_places() -> list[Path]:
    """The directories that are looked in, in order: the root, then the places of the peers.

    clean-fid uses the temporary directory, torchvision and lpips use torch's hub, OpenAI's clip its own cache.
    """
    torch_home = Path(os.environ.get("TORCH_HOME") or cache_home() / "torch").expanduser()
    places = (weights_root(), Path(tempfile.gettempdir()), torch_home / "hub/checkpoints", Path.home() / ".cache/clip")
    return list(dict.fromkeys(places))


def find(weights_id: str, *, allow_unverified: bool = False) -> FoundWeights | None:
    """The weights `weights_id` wherever they stand with the published sha256; None when they do not.

    With `allow_unverified` a file of the right name in the root is taken whatever its sha256, marked as such.
    Raises UsageError for an unknown id.
    """
    wanted = entry(weights_id)
    for place in [*search_places(), *_package_of(wanted)]:
        path = place / wanted.file
        with contextlib.suppress(OSError):  # somebody else's file, which cannot be read
            if wanted.sha256 is not None and path.is_file() and checked_sha256(path) == wanted.sha256:
                return FoundWeights(wanted.id, path, wanted.sha256, verified=True)
    unverified = weights_root() / wanted.file
    if allow_unverified and unverified.is_file():
        return FoundWeights(wanted.id, unverified, checked_sha256(unverified), verified=False)
    return None


def _package_of(wanted: WeightsEntry) -> list[Path]:
    """The folder of the installed package that carries the file, if there is one."""
    name, _, folder = wanted.package.partition("/")
    spec = importlib.util.find_spec(name) if name else None
    return [Path(place) / folder for place in (spec and spec.submodule_search_locations) or ()]


def require(
    weights_id: str, metric: str, *, allow_unverified: bool = False, instead: Sequence[str] = ()
) -> FoundWeights:
    """The weights `weights_id`, for `metric`, which is how the message names who needs them.

    `instead`: metrics that need no weights, offered as a way out. Raises ArtefactError when they are missing, saying
    what, how large, where it was looked for and how to get it.
    """
    found = find(weights_id, allow_unverified=allow_unverified)
    if found is not None:
        return found
    wanted, own = entry(weights_id), weights_root() / entry(weights_id).file
    places = ", ".join(str(place) for place in search_places())
    what = f"{metric} needs {wanted.file} ({wanted.size}), not found in {places}"
    get = wanted.how_to_get
    if wanted.sha256 is None and own.is_file():
        raise ArtefactError(
            f"{own} has no published sha256 to be checked by",
            next="Measure with --allow-unverified; the figures are then marked as not comparable.",
        )
    if wanted.sha256 is None:
        raise ArtefactError(
            what,
            next=f"No sha256 of it has been published: {get} --allow-unverified --as {wanted.id}; "
            "then brics eval --allow-unverified",
        )
    if own.is_file():
        what += f" ({own} is not the published file: `brics weights verify` says how it differs)"
    others = f" Or {' '.join(f'--metric {name}' for name in instead)}, which need none." if instead else ""
    raise ArtefactError(what, next=f"{'' if wanted.extra else 'On a connected machine: '}{get}.{others}")


def missing_line(weights_id: str) -> str:
    """What a list of left-out metrics says: `needs ViT-B-32.pt (354.0 MB), which is not there`."""
    wanted = entry(weights_id)
    if wanted.sha256 is None and (weights_root() / wanted.file).is_file():
        return f"needs {wanted.file}, which has no published sha256: --allow-unverified takes it"
    return f"needs {wanted.file} ({wanted.size}), which is not there"


def survey(*, forget: bool = False) -> list[WeightsState]:
    """The state of every entry of the registry; with `forget` every file is hashed again."""
    if forget:
        with contextlib.suppress(OSError):
            (weights_root() / CHECKED_FILE).unlink(missing_ok=True)
    states = []
    for known in WEIGHTS.values():
        found = find(known.id, allow_unverified=True)
        if found is None:
            states.append(WeightsState(known, "missing", None, None))
        else:
            states.append(WeightsState(known, "verified" if found.verified else "unverified", found.path, found.sha256))
    return states


def import_weights(source: Path, *, allow_unverified: bool = False, as_id: str | None = None) -> list[FoundWeights]:
    """Copy `source`, or every file below it that is recognised, into the root under its published name.

    Raises UsageError for a path that is not there or a wrong `as_id`, ArtefactError when nothing is recognised. With
    `allow_unverified` and `as_id` one file of unknown sha256 is taken for those weights.
    """
    if (as_id is None) == allow_unverified:
        raise UsageError("--allow-unverified and --as go together", next="Say which weights it is: --as ID")
    if not source.exists():
        raise UsageError(f"{source} is not there")
    if as_id is not None:
        if not source.is_file():
            raise UsageError(f"--as takes one file, {source} is a directory")
        wanted, sha256 = entry(as_id), checked_sha256(source)
        if sha256 != wanted.sha256 and find(wanted.id) is not None:
            raise UsageError(f"the published {wanted.file} is already there; {source} would take its place unverified")
        return [_place(source, wanted, sha256)]
    # The size tells which files of a directory are worth hashing.
    sizes = {known.num_bytes for known in WEIGHTS.values() if known.sha256 is not None}
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    imported = []
    for path in files:
        if path == source or (path.is_file() and path.stat().st_size in sizes):
            sha256 = checked_sha256(path)
            if (known := recognise(sha256)) is not None:
                imported.append(_place(path, known, sha256))
    if imported:
        return imported
    if source.is_dir():
        names = ", ".join(known.file for known in WEIGHTS.values())
        raise ArtefactError(f"no file in {source} has the sha256 of one that brics knows ({names})")
    raise ArtefactError(
        f"{source} has a sha256 that brics does not know ({checked_sha256(source)[:12]}…)",
        next="If you trust it: --allow-unverified --as ID; its results are then marked as not comparable",
    )


def _place(path: Path, known: WeightsEntry, sha256: str) -> FoundWeights:
    final = weights_root() / known.file
    if not (final.exists() and final.samefile(path)):
        with atomic_path(final) as temporary:  # a half-copied file is never found
            shutil.copy2(path, temporary)
    return FoundWeights(known.id, final, sha256, verified=sha256 == known.sha256)


def fetch(
    weights_ids: Iterable[str],
    *,
    allow_unverified: bool = False,
    reporter: Reporter | None = None,
) -> list[FoundWeights]:
    """Download weights into the root, each checked before it gets its name; those already there are left alone.

    A download that broke off goes on where it ended. Raises MachineError when the network is not there or
    `$BRICS_OFFLINE` is set, ArtefactError when what arrives does not have the published sha256, UsageError for
    weights without a published sha256 unless `allow_unverified`.
    """
    reporter = reporter or SilentReporter()
    entries = [entry(weights_id) for weights_id in dict.fromkeys(weights_ids)]
    for wanted in entries:
        if wanted.sha256 is None and not allow_unverified:
            raise UsageError(
                f"no sha256 of {wanted.file} has been published, so it cannot be checked",
                next="If you trust its server: --allow-unverified; its results are then marked as not comparable.",
            )
    fetched = []
    for wanted in entries:
        found = find(wanted.id, allow_unverified=wanted.sha256 is None)
        if found is None and wanted.extra:
            raise UsageError(f"{wanted.file} comes with a package", next=f"{wanted.how_to_get}.")
        if found is None:
            found = _download(wanted, reporter)
        else:
            reporter.message(f"{wanted.id}: already at {found.path}")
        fetched.append(found)
    return fetched


def _download(wanted: WeightsEntry, reporter: Reporter) -> FoundWeights:
    """What has arrived waits beside the final place as `<file>.part`; a connection that breaks after having brought
    something is taken up again a few times, and the next call goes on where this one ends."""
    by_hand = f"On a connected machine: {wanted.how_to_get}"
    if wanted.sha256 is None:
        by_hand += f" --allow-unverified --as {wanted.id}"
    if os.environ.get("BRICS_OFFLINE", "") not in {"", "0"}:
        raise MachineError(f"{wanted.file} is not here and BRICS_OFFLINE is set", next=by_hand)
    final = weights_root() / wanted.file
    part = final.with_name(final.name + ".part")
    final.parent.mkdir(parents=True, exist_ok=True)
    total = None if wanted.num_bytes is None else -(-wanted.num_bytes // CHUNK_BYTES)
    with hold_lock(final.with_name(f".{final.name}.lock"), what=str(final)):
        arrived = _size(part)
        if arrived:
            reporter.message(f"going on with {part}: {arrived / 1e6:.1f} MB are there")
        with reporter.task(wanted.file, total=total, unit="MB", initial=arrived // CHUNK_BYTES) as task:
            for attempt in range(NUM_RECONNECTIONS + 1):
                before, reason = _size(part), "the connection ended early"
                try:
                    if _receive(wanted, part, task):
                        break
                except urllib.error.HTTPError as error:
                    raise MachineError(
                        f"cannot fetch {wanted.url} ({error.code} {error.reason})", next=by_hand
                    ) from None
                except _BROKEN as error:
                    reason = str(getattr(error, "reason", None) or error)
                arrived = _size(part)
                if not arrived:
                    raise MachineError(f"cannot fetch {wanted.url} ({reason})", next=by_hand)
                if arrived <= before or attempt == NUM_RECONNECTIONS:
                    raise MachineError(
                        f"the download of {wanted.url} broke off after {arrived / 1e6:.1f} MB ({reason})",
                        next="The same command goes on from there.",
                    )
        sha256 = sha256_of_file(part)
        if wanted.sha256 not in (None, sha256):
            part.unlink()
            raise ArtefactError(
                f"what {wanted.url} sent is not {wanted.file}: sha256 {sha256[:12]}… instead of {wanted.sha256[:12]}…",
                next="Nothing was kept. Try again, or get the file elsewhere: brics weights import FILE",
            )
        fsync(part)
        part.replace(final)
        fsync(final.parent)
    return FoundWeights(wanted.id, final, sha256, verified=wanted.sha256 is not None)


def _receive(wanted: WeightsEntry, part: Path, task: Task) -> bool:
    """Append what is missing of `part`, or write it anew if the server knows no ranges; whether all of it came."""
    have = _size(part)
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: Any = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if have == wanted.num_bytes:  # nothing beyond what is there, which is all of it
            return True
        part.unlink()  # of another file
        return _receive(wanted, part, task)
    with contextlib.closing(response):
        resumed = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as target:
            while chunk := response.read(CHUNK_BYTES):
                target.write(chunk)
                task.advance()
    return length is None or _size(part) >= int(length) + (have if resumed else 0)


def checked_sha256(path: Path) -> str:
    """The sha256 of `path`, remembered while its size, mtime and ctime stay the same."""
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory, key = weights_root() / CHECKED_FILE, str(path.resolve())
    try:
        checked = parse_json(read_bytes(memory))
    except (OSError, ValueError):
        checked = {}
    checked = checked if isinstance(checked, dict) else {}
    known = checked.get(key)
    if isinstance(known, dict) and known.get("state") == state:
        return str(known["sha256"])
    sha256 = sha256_of_file(path)
    # A root that cannot be written (a shared, read-only one) only costs the hashing again.
    with contextlib.suppress(OSError):
        write_json_atomically(memory, {**checked, key: {"state": state, "sha256": sha256}})
    return sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
