"""What batch commands share: where they run, and what is said at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session
from brics_cli.config.names import ExecutorName
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.runtime.reporting import command_line

if TYPE_CHECKING:
    from brics_cli.runtime.on_ray import RayExecutor


def executor_of(
    executor: ExecutorName, *, ray_address: str | None, cpus_per_worker: int | None, max_retries: int | None
) -> RayExecutor | None:
    """What --executor and the options beside it ask for; None: this machine. Raises UsageError."""
    if executor == "local":
        given = {"--ray-address": ray_address, "--cpus-per-worker": cpus_per_worker, "--max-retries": max_retries}
        if alone := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{alone[0]} goes with --executor ray", next="Add it, or leave the other out.")
        return None
    from brics_cli.runtime.on_ray import RayExecutor

    return RayExecutor(ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries)


@contextmanager
def same_command_goes_on() -> Iterator[None]:
    """Add to an InterruptedRunError from the block that the same command, printed in full, goes on."""
    try:
        yield
    except InterruptedRunError as error:
        command = command_line("brics", *sys.argv[1:])
        raise InterruptedRunError(error.what, next=f"Go on with: {command}") from None


def say_if_complete(session: Session, path: Path, already_complete: bool) -> None:
    """Say where an output was finished by an earlier run."""
    if already_complete:
        session.reporter.message(f"{path} is complete already, made from the same inputs: nothing to do")


def warn_about_failures(session: Session, num_failed: int, *, of: int, listed_in: str) -> None:
    """The line that exit code 5 goes with."""
    session.reporter.warning(f"{num_failed:,} of {of:,} images failed, listed in {listed_in}")


def report_verification(session: Session, path: Path, broken: list[str] | None) -> None:
    """Say that `path` was verified. Raises ArtefactError when invariants are broken; None is silent: not verified."""
    if broken:
        raise ArtefactError(
            f"{path} breaks {len(broken)} invariants of its format, first: {broken[0]}",
            next="Is the disk sound? Make it again with --overwrite.",
        )
    if broken is not None:
        session.reporter.message("verified: every invariant of the format holds")
