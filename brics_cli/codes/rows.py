"""The rows of one shard of a whole store, as `merging` takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from brics_cli.codes.format import Array, Statistics
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError
from brics_cli.workspace.hdf5_values import Hdf5Dataset, Hdf5File


class StoreRows:
    """Shard `number` of `store`, whose `file` is open: a `merging.ShardRows`."""

    statistics: Statistics | None = None  # taken from the codes: a store has them for all of its shards together

    def __init__(self, store: KeyCodeStore, file: Hdf5File, number: int) -> None:
        shard = store.shards[number]
        start, stop = store.shard_starts[number : number + 2]
        rows = slice(start, stop)
        self._path, self._name, self._file, self._rows = store.path, shard["name"], file, rows
        self.num_ok: int = shard["n_ok"]
        self.sha256: str = shard["sha256"]
        self.digest: str = shard.get("digest", "")
        self.keys: Array = file["keys"][rows]
        self.labels: Array = file["labels"][rows]
        self.index_in_shard: Array = file["index_in_shard"][rows]
        failed = [
            (failure["key"].encode(), failure["reason"].encode())
            for failure in store.failures
            if failure["shard"] == shard["name"]
        ]
        self.failures: Array = np.array(failed, "S").reshape(-1, 2)
        self.codes: Any = _Window(file["codes"], start)
        self.flipped: Any = _Window(file["codes_flipped"], start) if store.has_flipped else None

    @property
    def metas(self) -> list[str] | None:
        texts = [text.decode() if isinstance(text, bytes) else text for text in self._file["meta"][self._rows]]
        return texts if any(texts) else None

    def damaged(self, reason: str) -> ArtefactError:
        return ArtefactError(
            f"shard {self._name} of {self._path} is damaged ({reason})", next=f"See: brics info {self._path} --verify"
        )


class _Window:
    """A dataset from row `start` on, read by slices. Read, not mapped: a merge must not fill the page tables."""

    def __init__(self, dataset: Hdf5Dataset, start: int) -> None:
        self._dataset, self._start = dataset, start
        self.shape = dataset.shape
        self.dtype = dataset.dtype

    def __getitem__(self, rows: slice) -> Array:
        block: Array = self._dataset[self._start + rows.start : self._start + rows.stop]
        return block
