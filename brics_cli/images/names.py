"""Many short strings in little memory: the names of a collection's members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np


class Names(Sequence[str]):
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

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]
        if not isinstance(chosen, int):
            return [self[place] for place in chosen]
        index = chosen
        return self._text[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")
