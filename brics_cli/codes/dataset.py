"""A key-code store as a `torch.utils.data.Dataset`; apart from the reader, which needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brics_cli.errors import ArtefactError

if TYPE_CHECKING:
    from brics_cli.codes.reader import KeyCodeStore


class KeyCodeDataset(Dataset[tuple[Tensor, int]]):
    """(codes float32 (C, h, w), label) of every row; with `flips` of every mirror image too, after them.

    A DataLoader asks for whole batches (`__getitems__`), each one indexing of the mapped file. It can be pickled to
    worker processes, yet none are needed: reading is a copy out of memory.
    """

    def __init__(self, store: KeyCodeStore, *, flips: bool = False) -> None:
        if flips and not store.has_flipped:
            raise ArtefactError(f"{store.path} holds no flipped codes", next="Encode again with --flips.")
        self.store = store
        self.flips = flips

    def __len__(self) -> int:
        return len(self.store) * (2 if self.flips else 1)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a dataset of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The items at `indices`, 0 to len - 1, in one read."""
        wanted = np.asarray(indices, np.int64)
        rows = wanted % len(self.store)
        codes = torch.from_numpy(self.store.batch(rows))  # (B, C, h, w)
        mirrored = np.flatnonzero(wanted >= len(self.store))
        if len(mirrored):
            codes[torch.from_numpy(mirrored)] = torch.from_numpy(self.store.batch(rows[mirrored], flipped=True))
        return list(zip(codes, self.store.labels[rows].tolist(), strict=True))
