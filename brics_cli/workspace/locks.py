"""One writer at a time: a lock file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from brics_cli.errors import MachineError


@contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, and remove it after.

    Raises MachineError when another process holds it or no file can be made there (/proc), OSError when
    `path` cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # filelock would wait for a place that cannot be written, and then call it held
    except FileNotFoundError:
        raise MachineError(
            f"{what} cannot be written: no file can be made there", next="Write somewhere else."
        ) from None
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
        path.unlink(missing_ok=True)  # while it is held: filelock takes no lock on a file that is gone
        lock.release()
