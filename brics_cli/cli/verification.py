"""What commands that make a store say after `--verify`."""

from __future__ import annotations

from pathlib import Path

from brics_cli.cli.output import Session
from brics_cli.errors import ArtefactError


def report_verification(session: Session, path: Path, broken: list[str] | None) -> None:
    """Say that `path` was verified. Raises ArtefactError when promises are broken; None is silent: not verified."""
    if broken:
        raise ArtefactError(
            f"{path} breaks {len(broken)} promises of its format, first: {broken[0]}",
            next="Is the disk sound? Make it again with --overwrite.",
        )
    if broken is not None:
        session.reporter.message("verified: every promise of the format holds")
