"""Who may write to an output of images: a new one, an interrupted one made from the same inputs, nobody else."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from brics_cli.errors import ArtefactError
from brics_cli.images.sinks.base import remove_leftovers
from brics_cli.images.sinks.pieces import discard_pieces, pieces_directory
from brics_cli.parsing import read_json_lines
from brics_cli.workspace import (
    Artefact,
    check_output,
    hold_lock,
    read_provenance,
    write_provenance,
    write_text_atomically,
)
from brics_cli.workspace.differences import differences
from brics_cli.workspace.files import PROVENANCE_FILE

Claim = Literal["new", "resume", "complete"]


def claim_output(artefact: Artefact, *, overwrite: bool, is_file: bool = False) -> Claim:
    """Claim `artefact.path` for `artefact` (incomplete): its directory is made and marked as ours, unfinished.

    `resume` when it holds an interrupted output of the same kind, parents and `details["settings"]`; `complete`
    when that one had finished. Raises ArtefactError when an interrupted output differs, saying in what;
    WouldOverwriteError when something else is there. `overwrite` makes all but an interrupted output of the same inputs
    `new`. To be called inside `output_lock`.
    Of an output that `is_file` the folder of its pieces is claimed: that is what is gone on with. The caller discards
    them once the file is on record.
    """
    if not is_file:
        return _claim(artefact, overwrite=overwrite, is_file=False)
    pieces = replace(artefact, path=pieces_directory(artefact.path))
    if artefact.path.exists() and not overwrite and pieces.path.exists() and read_provenance(artefact.path) is None:
        # killed between the file's last rename and its provenance: the pieces say whose it is
        return _claim(pieces, overwrite=False, is_file=False)
    claim = _claim(artefact, overwrite=overwrite, is_file=True)
    if claim == "complete":
        discard_pieces(artefact.path)  # killed while they were removed
        return claim
    return _claim(pieces, overwrite=overwrite, is_file=False)


def _claim(artefact: Artefact, *, overwrite: bool, is_file: bool) -> Claim:
    path = artefact.path
    if path.is_dir() and not (path / PROVENANCE_FILE).exists():
        remove_leftovers(path, PROVENANCE_FILE)  # of a claim that was killed
    existing = read_provenance(path) if path.exists() else None
    if existing is not None and existing.kind == artefact.kind:
        differing = differences(_identity(existing), _identity(artefact))
        if not differing and not existing.complete:
            if path.is_dir():
                remove_leftovers(path, "*")  # of whatever was being written when it was killed
            return "resume"
        if not differing and not overwrite:
            return "complete"
        if differing and not existing.complete and not overwrite:
            raise ArtefactError(
                f"{path} was begun with other inputs: {'; '.join(differing)}",
                next="Give another --out, or --overwrite to begin again.",
            )
    inputs = [parent.path for parent in artefact.parents]
    check_output(path, overwrite=overwrite, what="the output", kind=artefact.kind, inputs=inputs)
    if not is_file:
        path.mkdir(parents=True, exist_ok=True)
        write_provenance(artefact)
    return "new"


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Let one process write to `path` while the block runs. Raises MachineError when another one does."""
    resolved = path.resolve()  # `--out .` has no name
    with hold_lock(resolved.with_name(f".{resolved.name}.lock"), what=str(path)):
        remove_leftovers(resolved.parent, glob.escape(resolved.name))  # beside it: of a sheet, of its provenance
        yield


@contextmanager
def absent_unless_done(paths: Sequence[Path]) -> Iterator[None]:
    """Remove those files that were not there before, should the block fail: the same command can then be run again."""
    new = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _identity(artefact: Artefact) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(artefact.details.get("settings", {})))
    return {**settings, **{parent.kind: parent.sha256 for parent in artefact.parents}}


class FailureLog:
    """`failures.jsonl` in an output folder: one line per image that failed, written the moment it does.

    `keep` is how many leading places of the output are safe; lines of later places are of work that is done again.
    """

    NAME = "failures.jsonl"

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.path = folder / self.NAME
        self.failures: list[tuple[int, str, str]] = []
        """(place, key, reason)."""
        self.was_lost = not self.path.exists()
        if not self.was_lost:
            for row in read_json_lines(self.path):
                with suppress(ValueError, KeyError, TypeError):
                    if int(row["place"]) < keep:
                        self.failures.append((int(row["place"]), str(row["key"]), str(row["reason"])))
        self.replace(self.failures)

    def add(self, place: int, key: str, reason: str) -> None:
        """Record one failure."""
        self.failures.append((place, key, reason))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(place, key, reason))

    def replace(self, failures: list[tuple[int, str, str]]) -> None:
        """Take these instead, in the file too."""
        self.failures = failures
        write_text_atomically(self.path, "".join(_line(*failure) for failure in failures))

    def close(self) -> None:
        """Remove the file when nothing failed."""
        if not self.failures:
            self.path.unlink(missing_ok=True)


def _line(place: int, key: str, reason: str) -> str:
    return json.dumps({"place": place, "key": key, "reason": reason}, ensure_ascii=False) + "\n"
