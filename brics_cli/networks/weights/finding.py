"""Looking for weights: in the root, then read-only where the peers put theirs; checked by sha256 before use.

The root is `$BRICS_WEIGHTS`, else `$XDG_CACHE_HOME/brics/weights`, else `~/.cache/brics/weights`. A checksum is
remembered with the file's size, mtime and ctime, so that 350 MB are hashed once and not at every run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError
from brics_cli.networks.weights.registry import WeightsEntry, entry
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.workspace import sha256_of_file, write_json_atomically

CHECKED_FILE = "checked.json"


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights to load. `verified` is False only when the caller allowed an unknown sha256."""

    id: str
    path: Path
    sha256: str
    verified: bool


def weights_root() -> Path:
    """Where brics keeps weights; not necessarily there yet."""
    if named := os.environ.get("BRICS_WEIGHTS"):
        return Path(named).expanduser()
    return _cache_home() / "brics" / "weights"


def search_places() -> list[Path]:
    """The directories that are looked in, in order: the root, then the places of the peers.

    clean-fid uses the temporary directory, torchvision and lpips use torch's hub, OpenAI's clip its own cache.
    """
    torch_home = Path(os.environ.get("TORCH_HOME") or _cache_home() / "torch").expanduser()
    places = [
        weights_root(),
        Path(tempfile.gettempdir()),
        torch_home / "hub" / "checkpoints",
        Path.home() / ".cache" / "clip",
    ]
    return list(dict.fromkeys(places))


def find(weights_id: str, *, allow_unverified: bool = False) -> FoundWeights | None:
    """The weights `weights_id` wherever they stand with the published sha256; None when they do not.

    With `allow_unverified` a file of the right name in the root is taken whatever its sha256, marked as such.
    Raises UsageError for an unknown id.
    """
    wanted = entry(weights_id)
    for place in search_places():
        path = place / wanted.file
        if wanted.sha256 is not None and path.is_file() and _readable_sha256(path) == wanted.sha256:
            return FoundWeights(wanted.id, path, wanted.sha256, verified=True)
    unverified = weights_root() / wanted.file
    if allow_unverified and unverified.is_file():
        return FoundWeights(wanted.id, unverified, checked_sha256(unverified), verified=False)
    return None


def require(
    weights_ids: Sequence[str], metric: str, *, allow_unverified: bool = False, instead: Sequence[str] = ()
) -> list[FoundWeights]:
    """All of `weights_ids`, for `metric`, which is how the message names who needs them.

    `instead`: metrics that need no weights, offered as a way out. Raises ArtefactError for the first that is
    missing, saying what, how large, where it was looked for and how to get it.
    """
    found = []
    for weights_id in weights_ids:
        weights = find(weights_id, allow_unverified=allow_unverified)
        if weights is None:
            raise ArtefactError(_missing(entry(weights_id), metric, instead))
        found.append(weights)
    return found


def missing_line(weights_id: str) -> str:
    """What a list of left-out metrics says: `needs ViT-B-32.pt (354.0 MB), which is not there`."""
    wanted = entry(weights_id)
    if wanted.sha256 is None and (weights_root() / wanted.file).is_file():
        return f"needs {wanted.file}, which has no published sha256: --allow-unverified takes it"
    return f"needs {wanted.file} ({wanted.size}), which is not there"


def checked_sha256(path: Path) -> str:
    """The sha256 of `path`, remembered while its size, mtime and ctime stay the same."""
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory = weights_root() / CHECKED_FILE
    checked = _read_checked(memory)
    key = str(path.resolve())
    known = checked.get(key)
    if isinstance(known, dict) and known.get("state") == state:
        return str(known["sha256"])
    sha256 = sha256_of_file(path)
    checked[key] = {"state": state, "sha256": sha256}
    # A root that cannot be written (a shared, read-only one) only costs the hashing again.
    with contextlib.suppress(OSError):
        write_json_atomically(memory, checked)
    return sha256


def forget_checked() -> None:
    """Forget which checksums were seen, so that the next look hashes every file again."""
    with contextlib.suppress(OSError):
        (weights_root() / CHECKED_FILE).unlink(missing_ok=True)


def _readable_sha256(path: Path) -> str | None:
    """The checksum of a candidate; None when somebody else's file cannot be read."""
    try:
        return checked_sha256(path)
    except OSError:
        return None


def _missing(wanted: WeightsEntry, metric: str, instead: Sequence[str]) -> str:
    places = ", ".join(str(place) for place in search_places())
    what = f"{metric} needs {wanted.file} ({wanted.size}), not found in {places}"
    own = weights_root() / wanted.file
    if wanted.sha256 is None:
        return _missing_unpublished(wanted, what, own)
    if own.is_file():
        what += f" ({own} is not the published file: `brics weights verify` says how it differs)"
    text = f"{what}. On a connected machine: curl -LO {wanted.url}; then brics weights import {wanted.file}."
    if instead:
        text += f" Or {' '.join(f'--metric {name}' for name in instead)}, which need none."
    return text


def _missing_unpublished(wanted: WeightsEntry, what: str, own: Path) -> str:
    """Weights without a published checksum are there or not, but never verified."""
    if own.is_file():
        what = f"{own} has no published sha256 to be checked by"
        return f"{what}. Measure with --allow-unverified; the figures are then marked as not comparable."
    return (
        f"{what}. Nobody has published its sha256: curl -LO {wanted.url}; then brics weights import {wanted.file} "
        f"--allow-unverified --as {wanted.id}; then brics eval --allow-unverified"
    )


def _read_checked(memory: Path) -> dict[str, Any]:
    try:
        checked = parse_json(read_bytes(memory))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
