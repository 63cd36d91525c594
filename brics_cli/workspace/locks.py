"""One writer at a time: a lock file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from brics_cli.errors import MachineError


@contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises MachineError when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MachineError(
            f"another brics process is writing {what}", next="Wait for it, or give another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()
