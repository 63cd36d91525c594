"""Who may write to an output of images: a new one, an interrupted one made from the same inputs, nobody else."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from brics_cli.images.sinks.pieces import discard_pieces, pieces_directory
from brics_cli.parsing import read_json_lines
from brics_cli.workspace import Artefact, read_provenance, write_text_atomically
from brics_cli.workspace.outputs import Claim, claim


def claim_output(artefact: Artefact, *, overwrite: bool, is_file: bool = False) -> Claim:
    """Claim `artefact.path` for `artefact` (incomplete) as `workspace.outputs.claim` does.

    Of an output that `is_file` the folder of its pieces is claimed: that is what is gone on with. The caller discards
    them once the file is on record.
    """
    if not is_file:
        return claim(artefact, overwrite=overwrite)
    pieces = replace(artefact, path=pieces_directory(artefact.path))
    if artefact.path.exists() and not overwrite and pieces.path.exists() and read_provenance(artefact.path) is None:
        # killed between the file's last rename and its provenance: the pieces say whose it is
        return claim(pieces, overwrite=False)
    if claim(artefact, overwrite=overwrite, is_file=True) == "complete":
        discard_pieces(artefact.path)  # killed while they were removed
        return "complete"
    return claim(pieces, overwrite=overwrite)


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
