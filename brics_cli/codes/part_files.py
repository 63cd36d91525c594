"""The parts of a store that is a folder, read as one: any rows of the codes, and stretches of the other columns.

What the index says of each part is enough to find its rows without HDF5, so that a part is opened when something in it
is first asked for. Its length, and the sha256 of its rows where it is written in it, are held against the index then.

Codes are mapped. A batch has rows of as many parts as it has rows, and Python takes longer to go from part to part than
memory to copy the rows; so numpy copies them by their addresses, as rows of one array that is all of the memory between
the first and the last (0.97 of the speed of one file, a loop over the rows 0.47).

B rows asked for, codes (C, h, w).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import time
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from brics_cli.codes.format import ABSENT, PART_COLUMNS, PART_FIELDS, Array
from brics_cli.errors import ArtefactError, machine_error
from brics_cli.workspace.hdf5 import Hdf5Dataset
from brics_cli.workspace.naming import INDEX_NAME, PARTS_FOLDER

MOST_MAPPED = 16_384
"""Parts at a time: Linux lets a process have 65,530 maps."""
LOOK_AGAIN_S = 1.0
"""How often the length of a part that is mapped is looked at: touching what was cut off ends the process."""
_MADV_POPULATE_READ = 22
_COLUMN_DTYPES = {"labels": "<i8", "index_in_shard": "<i8", "meta": None}


class PartFiles:
    """The parts of the store in `folder`, as its index describes them: rows of `/parts` and `/shards`.

    Raises ValueError when these do not fit together, ArtefactError when parts are not there.
    """

    def __init__(
        self, folder: Path, parts: Array, shards: Array, *, code_shape: tuple[int, int, int], dtype: np.dtype[Any]
    ) -> None:
        if not {*PART_FIELDS} <= {*(parts.dtype.names or ())} or len(parts) != len(shards):
            raise ValueError("/parts has other fields or rows than /shards")
        self.folder = folder / PARTS_FOLDER
        self.names = [name.decode() for name in parts["file"]]
        if any(Path(name).name != name for name in self.names):
            raise ValueError("/parts names files elsewhere")
        self.paths = [self.folder / name for name in self.names]
        self.num_bytes: Array = parts["num_bytes"].astype(np.int64)
        self._table, self._sha256 = parts, shards["sha256"]
        self._offsets = {name: parts[name].astype(np.int64) for name in PART_COLUMNS}
        self.num_rows: Array = shards["n_ok"].astype(np.int64)
        self._shape, self._dtype = code_shape, dtype
        self._row_bytes = math.prod(code_shape) * dtype.itemsize
        used = self.num_rows > 0
        for name in PART_COLUMNS[:2] if self.has_flipped else PART_COLUMNS[:1]:
            room = self.num_bytes - self._offsets[name]
            if (self._offsets[name][used] < 0).any() or (room // self._row_bytes < self.num_rows)[used].any():
                raise ValueError(f"/parts has no room for {name}")
        if (self.num_rows < 0).any():
            raise ValueError("/shards has shards of less than no rows")
        self.starts = np.concatenate([[0], np.cumsum(self.num_rows)])
        self._check_listing()
        self._maps: dict[int, Mapping] = {}
        self._addresses = np.zeros(len(parts), np.int64)
        self._looked = np.full(len(parts), -math.inf)
        self._lock = Lock()

    @property
    def has_flipped(self) -> bool:
        return bool((self._offsets["codes_flipped"] != ABSENT).any())

    def place(self, number: int) -> tuple[Any, ...]:
        """What the index says of a part: its row of `/parts`."""
        return (self.names[number], *(int(self._table[name][number]) for name in PART_FIELDS[1:]))

    def _check_listing(self) -> None:
        try:
            there = {entry.name for entry in os.scandir(self.folder)}
        except FileNotFoundError:
            there = set()
        if missing := [name for name in self.names if name not in there]:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise self._damaged(missing[0], f"is missing{more}, of {len(self.names):,} parts")

    def _damaged(self, name: str, how: str) -> ArtefactError:
        index = self.folder.parent / INDEX_NAME
        return ArtefactError(
            f"{self.folder / name} {how}",
            next=f"Bring it back, or remove it and {index}: the command that encoded it then makes it again.",
        )

    def take(self, name: str, rows: Array) -> Array:
        """Stored values (B, C, h, w) of `rows` (B,), a copy. Raises ArtefactError for a part that cannot be read."""
        num = int(self.starts[-1])
        rows = np.where(rows < 0, rows + num, rows)
        if len(rows) == 0:
            return np.empty((0, *self._shape), self._dtype)
        if rows.min() < 0 or rows.max() >= num:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {num}")
        numbers = np.searchsorted(self.starts, rows, side="right") - 1  # (B,)
        if len(rows) > MOST_MAPPED // 2 and len(np.unique(numbers)) > MOST_MAPPED // 2:
            return np.concatenate([self.take(name, half) for half in np.array_split(rows, 2)])
        maps, places = self.mapped(numbers)
        places += self._offsets[name][numbers] + (rows - self.starts[numbers]) * self._row_bytes
        first = int(places.min())
        memory = np.asarray(_Memory(first, int(places.max()) - first + 1, self._row_bytes))
        taken = memory[places - first].view(self._dtype).reshape(len(rows), *self._shape)
        del maps  # which must not go before
        return taken

    def will_need(self, number: int) -> None:
        """Let the machine read a part ahead, as far as it is not in its memory, and wait for it."""
        self.mapped(np.array([number]))[0][number].will_need()

    def mapped(self, numbers: Array) -> tuple[dict[int, Mapping], Array]:
        """Maps, of these parts too, which stay while somebody has the dictionary, and where each of these begins.

        A part was looked at no longer than LOOK_AGAIN_S ago.
        """
        with self._lock:
            now = time.monotonic()
            for number in np.unique(numbers[self._looked[numbers] < now - LOOK_AGAIN_S]).tolist():
                if number in self._maps:
                    self._check_length(number, self.paths[number].stat().st_size)
                else:
                    with self.open(number) as file:
                        self._maps[number] = mapping = Mapping(file, int(self.num_bytes[number]))
                    self._addresses[number] = mapping.address
                self._looked[number] = now
            if len(self._maps) > MOST_MAPPED:
                kept = set(numbers.tolist())
                gone = [each for each in self._maps if each not in kept][: len(self._maps) - MOST_MAPPED]
                self._looked[gone] = -math.inf
                self._maps = {number: self._maps[number] for number in self._maps.keys() - set(gone)}
            return self._maps, self._addresses[numbers]

    def open(self, number: int) -> BinaryIO:
        """A part, open for reading; it is the one that the index describes."""
        path = self.paths[number]
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise self._damaged(path.name, "is missing") from None
        except OSError as error:
            raise machine_error(error, where=path) or error from None
        try:
            self._check_length(number, os.fstat(file.fileno()).st_size)
            file.seek(int(self._table["sha256_at"][number]))
            if file.read(64) != self._sha256[number]:
                raise self._damaged(path.name, "holds other rows than its store was made of (their sha256)")
        except BaseException:
            file.close()
            raise
        return file

    def _check_length(self, number: int, num_bytes: int) -> None:
        if num_bytes != self.num_bytes[number]:
            how = "was cut short" if num_bytes < self.num_bytes[number] else "has become longer"
            raise self._damaged(self.names[number], f"{how}: {num_bytes:,} of {self.num_bytes[number]:,} bytes")

    def column(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` - 1 of keys, labels, index_in_shard or meta (as bytes)."""
        numbers = range(
            int(np.searchsorted(self.starts, start, side="right")) - 1, int(np.searchsorted(self.starts, stop))
        )
        found = []
        for number in numbers if stop > start else ():
            first, num_rows = int(self.starts[number]), int(self.num_rows[number])
            rows = slice(max(start - first, 0), min(stop - first, num_rows))
            if num_rows == 0:
                continue
            offset = int(self._offsets[name][number])
            if name == "meta" and offset == ABSENT:
                found.append(np.full(rows.stop - rows.start, b"", object))
                continue
            dtype = _COLUMN_DTYPES.get(name, f"|S{self._table['key_bytes'][number]}")
            outline = {"dtype": dtype, "shape": [num_rows], "offset": offset, "written": True}
            with self.open(number) as file:
                found.append(Hdf5Dataset(file, name, outline)[rows])
        return np.concatenate(found) if found else np.empty(0, _COLUMN_DTYPES.get(name, "S1"))


class Mapping:
    """A file in memory, for reading, until nothing refers to this object. `address` is where.

    Python's `mmap` keeps a descriptor open for each, of which a process has 1,024.
    """

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self.num_bytes, self.address = num_bytes, 0
        self._unmap = _libc().munmap  # when a process ends, modules go before this does
        self.address = _libc().mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if self.address == ctypes.c_void_p(-1).value:
            self.address = 0
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), file.name)

    def will_need(self) -> None:
        """Have all of it read, and entered into the tables of this process (Linux 5.14), so that rows of a window are
        read in shuffled order twice as fast."""
        if self.advise(_MADV_POPULATE_READ):
            self.advise(mmap.MADV_WILLNEED)

    def advise(self, advice: int) -> int:
        """Tell the machine how it will be read; 0 where it was understood."""
        return int(_libc().madvise(self.address, self.num_bytes, advice))

    def __del__(self) -> None:
        if self.address:
            self._unmap(self.address, self.num_bytes)


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.mmap.argtypes = (pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
    library.mmap.restype = pointer
    library.munmap.argtypes, library.madvise.argtypes = (pointer, size), (pointer, size, ctypes.c_int)
    return library


class _Memory:
    """Memory from an address on as numpy takes it: the row at each of the next `num` addresses, (num, row_bytes)."""

    def __init__(self, address: int, num: int, row_bytes: int) -> None:
        self.__array_interface__ = {
            "data": (address, True), "shape": (num, row_bytes), "strides": (1, 1), "typestr": "|u1", "version": 3,
        }  # fmt: skip
