"""One writer at a time: a lock file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.errors import MachineError

if TYPE_CHECKING:
    from filelock import FileLock

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that has no locks: NFS without its lock daemon, some FUSE and cluster file systems."""


def locks_are_off() -> bool:
    """Whether the user has switched file locks off, by the variable that libhdf5 goes by."""
    return os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in {"FALSE", "0"}


@contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, and remove it after.

    Raises MachineError when another process holds it or no file can be made there (/proc), OSError when
    `path` cannot be written, or when its file system has no locks: HDF5_USE_FILE_LOCKING=FALSE does without them.
    """
    from filelock import FileLock, Timeout  # takes .05 s

    lock = FileLock(str(path))
    try:
        _acquire(lock, path, what=what)
        yield
    except KeyboardInterrupt:
        with suppress(Timeout, OSError):  # it may have come between the file and its lock
            lock.acquire(timeout=0)
        raise
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: filelock takes no lock on a file that is gone
            lock.release(force=True)


def _acquire(lock: FileLock, path: Path, *, what: str) -> None:
    from filelock import Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # filelock would wait for a place that cannot be written, and then call it held
    except FileNotFoundError:
        raise MachineError(
            f"{what} cannot be written: no file can be made there", next="Write somewhere else."
        ) from None
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MachineError(
            f"another brics process is writing {what}", next="Wait for it, or give another --out."
        ) from None
    except OSError as error:
        path.unlink(missing_ok=True)  # nobody can hold it
        has_none = error.errno in NO_LOCKS
        if has_none and locks_are_off():
            return
        raise OSError(errno.ENOLCK if has_none else error.errno, error.strerror, str(path)) from None
