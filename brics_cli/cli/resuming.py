"""What batch commands say when they are interrupted, and when some images failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from brics_cli.cli.output import Session
from brics_cli.errors import InterruptedRunError
from brics_cli.runtime.reporting import command_line


@contextmanager
def same_command_goes_on() -> Iterator[None]:
    """Add to an InterruptedRunError from the block that the same command, printed in full, goes on."""
    try:
        yield
    except InterruptedRunError as error:
        command = command_line("brics", *sys.argv[1:])
        raise InterruptedRunError(error.what, next=f"Go on with: {command}") from None


def warn_about_failures(session: Session, num_failed: int, *, of: int, listed_in: str) -> None:
    """The line that exit code 5 goes with."""
    session.reporter.warning(f"{num_failed:,} of {of:,} images failed, listed in {listed_in}")
