"""torch.distributed in the few calls we need. One process unless `torchrun` started several."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's index, 0 when there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes `torchrun` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
