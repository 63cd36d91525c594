"""Room on the disk before bytes are written: libhdf5 crashes the process when a disk fills under it.

So datasets of codes are laid out and their bytes reserved first, where a full disk is an ordinary OSError; rows are
then written by `pwrite` at the dataset's offset; and room for the small datasets is reserved before HDF5 writes them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from brics_cli.codes.format import Array
from brics_cli.errors import machine_error

HEADER_BYTES = 64 * 1024
"""Room for HDF5's own structures."""
NO_LOCK = False
"""A file being written stands under a name of its own, and `hold_lock` keeps other writers away."""
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class RawRows:
    """A new HDF5 file `path` with datasets `shapes` of type `dtype`, contiguous, whose rows are written directly.

    Raises OSError (ENOSPC) when there is no room for them.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self.path = path
        num_bytes = sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize
        _check_free(path.parent, num_bytes + HEADER_BYTES)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with h5py.File(path, "w", locking=NO_LOCK) as file:
            for name, shape in shapes.items():
                file.create_dataset(name, shape, dtype, dcpl=layout.copy())
            self._offsets: dict[str, int | None] = {name: file[name].id.get_offset() for name in shapes}
        self._descriptor = os.open(path, os.O_RDWR)
        try:
            _reserve(self._descriptor, os.fstat(self._descriptor).st_size, path)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, start: int, rows: Array) -> None:
        """Write `rows` from row `start` of dataset `name` on."""
        offset = self._offsets[name]
        if len(rows) == 0 or offset is None:  # a dataset of no rows has no place in the file
            return
        data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
        position = offset + start * (len(data) // len(rows))
        while data:
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written

    @contextmanager
    def small_datasets(self, num_bytes: int) -> Iterator[h5py.File]:
        """The file, open in h5py, for datasets of about `num_bytes` in all, for which room is reserved."""
        size_bytes = os.fstat(self._descriptor).st_size
        _reserve(self._descriptor, size_bytes + num_bytes + HEADER_BYTES, self.path)
        self.close()
        try:
            with h5py.File(self.path, "r+", locking=NO_LOCK) as file:
                yield file
        except RuntimeError as error:
            said = machine_error(error, where=self.path)
            if said is None:
                raise
            raise said from None

    def close(self) -> None:
        """Close the file for `write`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _reserve(descriptor: int, num_bytes: int, path: Path) -> None:
    if hasattr(os, "posix_fallocate"):  # macOS has not; there the check of the free space must do
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                error.filename = str(path)
                raise


def _check_free(folder: Path, num_bytes: int) -> None:
    if shutil.disk_usage(folder).free < num_bytes:
        raise _no_space(folder)


def _no_space(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
