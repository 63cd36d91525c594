"""One part of a store being written: the rows of one shard, `codes.h5.parts/<shard>.h5`.

A part is built under a temporary name, fsynced and renamed: that it exists is the record that its shard is done.
Rows stand at the front of datasets with room for every image of the shard; attribute `n_ok` says how many are real.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import h5py
import numpy as np

from brics_cli.codes.allocation import RawRows
from brics_cli.codes.format import NO_LABEL, Array, RowHash, Statistics, StoreHeader, StoreShard, fixed_bytes
from brics_cli.codes.merging import meta_bytes
from brics_cli.errors import ArtefactError
from brics_cli.workspace import atomic_path, open_hdf5

PART_VERSION = 1


class Columns(NamedTuple):
    """The columns of a part beside its codes."""

    keys: list[str]
    labels: list[int]
    index_in_shard: list[int]
    metas: list[str]
    failures: list[tuple[str, str]]


def part_path(directory: Path, shard: StoreShard) -> Path:
    """Where the part of `shard` stands."""
    name = quote(shard.name, safe=" ")
    if len(name) > 150:
        name = name[:100] + hashlib.sha256(name.encode()).hexdigest()[:16]
    return directory / f"{name}.h5"


class PartWriter:
    """Write one part inside a `with` block: `add` batches in order; leaving without an exception makes it final."""

    def __init__(self, directory: Path, header: StoreHeader, shard: StoreShard) -> None:
        self._header = header
        self._shard = shard
        self._atomic = atomic_path(part_path(directory, shard))
        self._columns = Columns([], [], [], [], [])
        self._statistics = Statistics.empty(header.code_shape[0])
        self._hash = RowHash()
        self.digest = ""
        """Of the content of what was encoded (`images.fingerprints`); to be set before the end where it is known."""

    def __enter__(self) -> Self:
        temporary = self._atomic.__enter__()
        shape = (self._shard.num_images, *self._header.code_shape)
        names = ("codes", "codes_flipped") if self._header.flipped else ("codes",)
        try:
            self._raw = RawRows(temporary, dict.fromkeys(names, shape), self._header.dtype)
        except BaseException as error:
            self._atomic.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def add(
        self,
        codes: Array,
        *,
        keys: Sequence[str],
        indices: Sequence[int],
        flipped: Array | None = None,
        labels: Sequence[int | None] | None = None,
        metas: Sequence[dict[str, Any] | None] | None = None,
        failures: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add stored values `codes` (B, C, h, w) and, with flips, `flipped`; and (key, reason) of failed images."""
        self._columns.failures.extend((key, reason) for key, reason in failures)
        num = len(keys)
        if num == 0:
            return
        if codes.shape != (num, *self._header.code_shape) or codes.dtype != self._header.dtype:
            raise ValueError(f"rows of {codes.shape} {codes.dtype} for {num} keys of {self._header.code_shape}")
        start = len(self._columns.keys)
        self._raw.write("codes", start, codes)
        if self._header.flipped:
            if flipped is None or flipped.shape != codes.shape:
                raise ValueError("flipped codes are missing or of another shape")
            self._raw.write("codes_flipped", start, flipped)
        self._hash.add(codes, flipped if self._header.flipped else None)
        self._statistics.add(codes, self._header)
        self._columns.keys.extend(keys)
        self._columns.index_in_shard.extend(indices)
        self._columns.labels.extend(NO_LABEL if label is None else label for label in labels or [None] * num)
        self._columns.metas.extend(
            "" if meta is None else json.dumps(meta, ensure_ascii=False, sort_keys=True)
            for meta in metas or [None] * num
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as late:
            self._raw.close()
            self._atomic.__exit__(type(late), late, late.__traceback__)
            raise
        self._raw.close()
        self._atomic.__exit__(kind, error, trace)

    def _finish(self) -> None:
        columns, shard = self._columns, self._shard
        num_ok, num_failed = len(columns.keys), len(columns.failures)
        if num_ok + num_failed != shard.num_images:
            raise AssertionError(f"shard {shard.name}: {num_ok} + {num_failed} of {shard.num_images} images")
        metas = columns.metas if any(columns.metas) else None
        keys, labels = fixed_bytes(columns.keys), np.array(columns.labels, np.int64)
        index_in_shard = np.array(columns.index_in_shard, np.int64)
        failures = fixed_bytes([text for failure in columns.failures for text in failure]).reshape(-1, 2)
        row_sha256 = self._hash.hexdigest((key.encode() for key in columns.keys), labels, index_in_shard, metas)
        num_bytes = keys.nbytes + 2 * labels.nbytes + failures.nbytes + self._statistics.histogram.nbytes
        with self._raw.small_datasets(num_bytes + meta_bytes(metas)) as file:
            file["keys"], file["labels"], file["index_in_shard"] = keys, labels, index_in_shard
            if metas is not None:
                file.create_dataset("meta", data=metas, dtype=h5py.string_dtype())
            file["failures"] = failures
            file["total"], file["squares"] = self._statistics.total, self._statistics.squares
            file["histogram"] = self._statistics.histogram
            file.attrs.update(
                part_version=PART_VERSION,
                identity=json.dumps(self._header.identity(), sort_keys=True),
                n_in=shard.num_images,
                n_ok=num_ok,
                num_values=self._statistics.num_values,
                sha256=row_sha256,
                shard=shard.name,
                fingerprint=shard.fingerprint,
                digest=self.digest,
            )


class Part:
    """A finished part, opened for reading inside a `with` block. Raises ArtefactError when it is damaged."""

    def __init__(self, directory: Path, header: StoreHeader, shard: StoreShard) -> None:
        self.path = part_path(directory, shard)
        self._header = header
        self._shard = shard
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._file = self._stack.enter_context(open_hdf5(self.path))
            attributes = dict(self._file.attrs)
            self.num_ok = int(attributes["n_ok"])
            self.sha256 = str(attributes["sha256"])
            self.digest = str(attributes.get("digest", ""))
            self.statistics: Statistics | None = Statistics(
                self._file["total"][()],
                self._file["squares"][()],
                self._file["histogram"][()],
                int(attributes["num_values"]),
            )
            self.keys: Array = self._file["keys"][()]
            self.labels: Array = self._file["labels"][()]
            self.index_in_shard: Array = self._file["index_in_shard"][()]
            self.failures: Array = self._file["failures"][()]
            self.codes = self._file["codes"]
            self.flipped = self._file["codes_flipped"] if self._header.flipped else None
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise self.damaged(str(error)) from None
        expected = (self._shard.num_images, *self._header.code_shape)
        lengths = {len(self.keys), len(self.labels), len(self.index_in_shard), self.num_ok}
        if self.codes.shape != expected or self.codes.dtype != self._header.dtype or len(lengths) != 1:
            raise self.damaged("its datasets do not fit together")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def metas(self) -> list[str] | None:
        """The metadata texts, or None when no image has any."""
        if "meta" not in self._file:
            return None
        return [text.decode() if isinstance(text, bytes) else text for text in self._file["meta"][()]]

    def damaged(self, reason: str) -> ArtefactError:
        return ArtefactError(
            f"the part {self.path} is damaged ({reason})", next="Remove it and run the same command again."
        )


def part_mismatch(directory: Path, header: StoreHeader, shard: StoreShard) -> str | None:
    """Why an existing part of `shard` cannot be used (None: it can): other contents, or a damaged file.

    Raises MachineError when it cannot be read now: it may well be whole.
    """
    path = part_path(directory, shard)
    try:
        with open_hdf5(path) as file:
            attributes = dict(file.attrs)
            found = (attributes.get("identity"), attributes.get("fingerprint"), attributes.get("n_in"))
    except (OSError, RuntimeError) as error:
        return f"unreadable: {error}"
    wanted = (json.dumps(header.identity(), sort_keys=True), shard.fingerprint, shard.num_images)
    return None if found == wanted else "made from another source or with other settings"
