"""Where brics keeps what it can make again: `$BRICS_CACHE`, else `$XDG_CACHE_HOME/brics`, else `~/.cache/brics`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things; not necessarily there yet.

    `$BRICS_CACHE` is itself the folder of `features`, as it was when there was nothing else.
    """
    if named := os.environ.get("BRICS_CACHE"):
        root = Path(named).expanduser()
        return root if kind == "features" else root / kind
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "brics" / kind


def forget(kind: str) -> None:
    """Remove all cached things of a kind, as far as they are ours."""
    shutil.rmtree(cache_folder(kind), ignore_errors=True)
