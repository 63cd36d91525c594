"""Opening an HDF5 file to read. No lock is taken, so a read-only or NFS mount will do; one that is held is respected.

What the machine said (a lock, EIO, too many open files) is told from a file that is damaged: `errors.machine_error`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.errors import machine_error
from brics_cli.workspace.locks import locks_are_off

if TYPE_CHECKING:
    import h5py


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading while the block runs.

    Raises MachineError when the machine is why it cannot be read, then or within the block; what h5py raises (OSError,
    RuntimeError) when the file is.
    """
    import h5py

    try:
        _check_not_locked(path)
        with h5py.File(path, "r", locking=None if locks_are_off() else False) as file:
            yield file
    except (OSError, RuntimeError) as error:
        said = machine_error(error, where=path)
        if said is None:
            raise
        raise said from None


def _check_not_locked(path: Path) -> None:
    """Raise OSError (EAGAIN) while another process has `path` open for writing. Without locks there is nobody to see.

    brics writes under another name and renames: only other programs change a store in place.
    """
    if locks_are_off():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back by close
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise OSError(error.errno, "locked by another process", str(path)) from None
    finally:
        os.close(descriptor)
