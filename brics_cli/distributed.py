"""torch.distributed in the few calls we need. One process unless `torchrun` started several."""

from __future__ import annotations

import os

from brics_cli.errors import UsageError


def world_size() -> int:
    """How many processes `torchrun` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_many_processes() -> None:
    """Raise UsageError under `torchrun` with more than one process: training here is one process."""
    if world_size() > 1:
        raise UsageError(
            f"this command trains in one process, and WORLD_SIZE is {world_size()}", next="Start it without torchrun."
        )
