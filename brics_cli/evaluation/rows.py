"""Feature rows that wait on disk: appended batch by batch, read back as a memory map, never all in memory.

N images, D features, float32.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class RowSource(Protocol):
    """A set of feature rows (N, D) that parts can be taken of."""

    def __len__(self) -> int: ...

    @property
    def num_features(self) -> int: ...

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """The rows `indices`, (len(indices), D)."""


class ArrayRows:
    """Rows of an array (N, D), in memory or mapped."""

    def __init__(self, array: Rows) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @property
    def num_features(self) -> int:
        return int(self.array.shape[1])

    def take(self, indices: NDArray[np.integer]) -> Rows:
        return np.asarray(self.array[indices])


class SpooledRows:
    """Rows that are appended with the position of their image, and read back in the order of the positions.

    So what is computed from them does not depend on the order in which the images happened to be read. The file has
    no name (it stands in `$TMPDIR`'s file system, or `/tmp`'s), so nothing is left behind however the process ends.
    """

    def __init__(self, num_features: int) -> None:
        self._num_features = num_features
        self._file = tempfile.TemporaryFile(prefix="brics-features-")  # noqa: SIM115 - `close` closes it
        self._positions: list[int] = []
        self._map: Rows | None = None
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def num_features(self) -> int:
        return self._num_features

    def append(self, rows: Rows, positions: list[int]) -> None:
        """Add rows (B, D) of the images at `positions`."""
        if rows.shape != (len(positions), self._num_features):
            raise ValueError(f"rows of shape {rows.shape}, expected ({len(positions)}, {self._num_features})")
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:  # a file without a name: say where it stands
            error.filename = tempfile.gettempdir()
            raise
        self._positions += positions

    def take(self, indices: NDArray[np.integer]) -> Rows:
        if not len(self):
            return np.empty((0, self._num_features), np.float32)
        if self._map is None or len(self._map) != len(self):
            shape = (len(self), self._num_features)
            self._map = np.memmap(self._file, np.float32, "r", shape=shape)
            self._order = np.argsort(np.asarray(self._positions), kind="stable")
        return np.asarray(self._map[self._order[indices]])

    def close(self) -> None:
        """Let go of the file."""
        self._map = None
        with contextlib.suppress(OSError):  # what a full disk did not take is wanted no more
            self._file.close()


def in_blocks(rows: RowSource, *, num_rows: int = 4096) -> list[NDArray[np.int64]]:
    """The indices of all rows, `num_rows` at a time."""
    return [np.arange(start, min(start + num_rows, len(rows))) for start in range(0, len(rows), num_rows)]


class SubsetRows:
    """The rows `indices` of another source."""

    def __init__(self, rows: RowSource, indices: NDArray[np.int64]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_features(self) -> int:
        return self._rows.num_features

    def take(self, indices: NDArray[np.integer]) -> Rows:
        return self._rows.take(self._indices[indices])
