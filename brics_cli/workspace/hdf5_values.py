"""The values of an HDF5 file, read by its outline (`hdf5_outline`) without libhdf5.

The part of h5py's interface that readers need. Every read is checked against the length of the file first.
"""

from __future__ import annotations

import base64
import math
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_TEXT = struct.Struct("<IQI")
"""An element of variable length: its length, the address of a heap, and its number there."""
_HEAP_HEADER, _HEAP_OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HH4xQ")


class Hdf5File:
    """`file.attrs[name]`, `file[path][rows]`, `path in file`, as in h5py.

    What does not fit the file raises ValueError, and what is not there KeyError.
    """

    def __init__(self, file: BinaryIO, outline: dict[str, Any]) -> None:
        self._file = file
        self.attrs: dict[str, Any] = outline["attributes"]
        self._datasets: dict[str, Any] = outline["datasets"]

    def __contains__(self, path: str) -> bool:
        return path in self._datasets

    def __getitem__(self, path: str) -> Hdf5Dataset:
        if path not in self._datasets:
            raise KeyError(f"no dataset {path!r}")
        return Hdf5Dataset(self._file, path, self._datasets[path])


class Hdf5Dataset:
    """`dataset[()]`, `dataset[i]`, `dataset[i:j]`. `offset` is where its values begin, None when not in one piece."""

    def __init__(self, file: BinaryIO, path: str, outline: dict[str, Any]) -> None:
        import numpy as np

        self._file, self._path, self._data = file, path, outline["data"]
        self._is_text: bool = outline["is_text"]
        self.dtype: np.dtype[Any] = np.dtype("O") if self._is_text else _dtype(outline["dtype"])
        if self.dtype.hasobject != self._is_text:
            raise ValueError(f"{path} holds neither numbers nor text")
        self.shape = tuple(int(side) for side in outline["shape"])
        self.offset: int | None = outline["offset"]
        self._row_bytes = math.prod(self.shape[1:]) * (_TEXT.size if self._is_text else self.dtype.itemsize)
        num_bytes = math.prod(self.shape[:1]) * self._row_bytes
        size = os.fstat(file.fileno()).st_size
        if min(self.shape, default=0) < 0 or (self.offset is not None and not 0 <= self.offset <= size - num_bytes):
            raise ValueError(f"{path} reaches beyond the end of the file")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, tuple):
            return self._read(0, self.shape[0] if self.shape else 1).reshape(self.shape)
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._read(start, max(start, stop)).reshape(-1, *self.shape[1:])
        row = range(self.shape[0])[rows]
        return self._read(row, row + 1).reshape(self.shape[1:])[()]

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        import numpy as np

        if self.offset is None:
            return self._inline(start, stop)
        data = np.empty((stop - start) * self._row_bytes, np.uint8)
        self._file.seek(self.offset + start * self._row_bytes)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError(f"{self._path} reaches beyond the end of the file")
        if not self._is_text:
            return data.view(self.dtype)
        heaps = _Heaps(self._file)
        return np.array([heaps.text(*element) for element in _TEXT.iter_unpack(data.data)], object)

    def _inline(self, start: int, stop: int) -> npt.NDArray[Any]:
        import numpy as np

        if start == stop or 0 in self.shape:
            return np.empty(0, self.dtype)
        if self._data is None:
            raise ValueError(f"{self._path} is not stored in one piece")
        if self._is_text:
            values = np.array([text.encode() for text in self._data], object)
        else:
            values = np.frombuffer(bytearray(base64.b64decode(self._data)), self.dtype)
        per_row = math.prod(self.shape[1:])
        if len(values) != math.prod(self.shape):
            raise ValueError(f"{self._path} has {len(values)} values for a shape of {self.shape}")
        return values[start * per_row : stop * per_row]


class _Heaps:
    """The global heaps that texts of variable length stand in, each read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._texts: dict[int, dict[int, bytes]] = {}

    def text(self, length: int, address: int, number: int) -> bytes:
        if address == 0 or length == 0:
            return b""
        if address not in self._texts:
            self._texts[address] = dict(self._objects(address))
        return self._texts[address][number][:length]

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        size = os.fstat(self._file.fileno()).st_size
        if address > size - _HEAP_HEADER.size:
            raise ValueError("a text stands beyond the end of the file")
        self._file.seek(address)
        signature, _, num_bytes = _HEAP_HEADER.unpack(self._file.read(_HEAP_HEADER.size))
        if signature != b"GCOL" or num_bytes > size - address:
            raise ValueError("a heap of texts is damaged")
        data = self._file.read(num_bytes - _HEAP_HEADER.size)
        position = 0
        while position + _HEAP_OBJECT.size <= len(data):
            number, _, length = _HEAP_OBJECT.unpack_from(data, position)
            if number == 0:  # what is free
                return
            position += _HEAP_OBJECT.size
            yield number, data[position : position + length]
            position += (length + 7) // 8 * 8


def _dtype(descriptor: Any) -> np.dtype[Any]:
    """A numpy dtype from its descriptor as JSON holds it: a text, or lists of (name, descriptor, shape if any)."""
    import numpy as np

    if isinstance(descriptor, str):
        return np.dtype(descriptor)
    return np.dtype([(name, _dtype(below), *map(tuple, shape)) for name, below, *shape in descriptor])
