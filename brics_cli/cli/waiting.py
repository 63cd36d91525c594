"""How torch's threads wait: to be settled before torch is imported, since OpenMP asks once, when it is loaded."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they have nothing to compute.

    By default they spin for milliseconds after each piece of work, on the very cores that decode the next images.
    What the user has set (OMP_WAIT_POLICY) stands; processes started from here inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
