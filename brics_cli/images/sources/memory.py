"""What sources hold in memory: many short names in few bytes, and things that are costly to open and must not cross a
fork or a pickle (open files, LMDB environments, row groups).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from brics_cli.images.collection import Strings
from brics_cli.workspace.mirrors import open_file

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Names(Strings):
    """An unchangeable sequence of strings, kept as one run of bytes: about a tenth of what a list of `str` takes.

    Surrogates (bytes of a file name that are not UTF-8) survive.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)  # (N + 1,)
        self._text = b"".join(encoded)

    def any_holds(self, text: str) -> bool:
        """Whether one of them at least has `text` in it; across the end of one, perhaps, and the start of the next."""
        return text.encode() in self._text

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._ends.tolist()):
            yield self._text[start:end].decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, position: int) -> str:
        return self._text[self._ends[position] : self._ends[position + 1]].decode("utf-8", "surrogateescape")


class ProcessCache(Generic[Key, Value]):
    """The `limit` values used last, made by `make(key)`; each process makes its own, its threads share them.

    A value that is dropped while a thread still uses it lives until that thread lets go of it. `make` must be
    picklable for the cache to be; values are not pickled.
    """

    def __init__(self, make: Callable[[Key], Value], *, limit: int) -> None:
        self._make = make
        self._limit = limit
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __getstate__(self) -> tuple[Callable[[Key], Value], int]:
        return self._make, self._limit

    def __setstate__(self, state: tuple[Callable[[Key], Value], int]) -> None:
        self._make, self._limit = state
        self._start()

    def clear(self) -> None:
        """Drop all values."""
        self._start()

    def __getitem__(self, key: Key) -> Value:
        if self._process != os.getpid():  # forked: the parent's lock may be held for ever, its handles are not ours
            self._start()
        with self._lock:
            if key not in self._values:
                self._values[key] = self._make(key)
            self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
            return self._values[key]


class Descriptor:
    """A file open for reading by position, closed when nobody holds it any more. Safe across threads and forks."""

    def __init__(self, number: int) -> None:
        self.number = number

    @classmethod
    def of(cls, path: Path) -> Descriptor:
        """Open `path`, which is fetched where it stands for a remote file."""
        return cls(open_file(path))

    def read(self, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` from `offset` on; fewer at the end of the file."""
        parts = []
        while num_bytes > 0 and (part := os.pread(self.number, num_bytes, offset)):  # one call reads 2 GiB at most
            parts.append(part)
            offset += len(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        os.close(self.number)
