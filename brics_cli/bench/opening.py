"""A process that opens the store it is given, for `bench.folder`: how long that takes, and how much memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from brics_cli.codes.reader import KeyCodeStore


def main() -> None:
    """Print the seconds, and the MiB that this process, or one that it started, had at most."""
    start = time.perf_counter()
    KeyCodeStore(sys.argv[1])
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # rusage's own figure begins with that of who started it
    own = int(status.partition("VmHWM:")[2].split()[0])
    print(
        json.dumps({"seconds": seconds, "mib": max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024})
    )
