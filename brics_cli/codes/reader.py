"""Read a key-code store: `KeyCodeStore(path)`. The header is validated, then the codes are memory-mapped.

N rows, codes (C, h, w). A mapped read is 10x as fast as h5py's indexing, and needs no open HDF5 handle, so a store
can be pickled to worker processes.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from brics_cli.codes.format import (
    FAILURE_FIELDS,
    FOLDER_VERSION,
    FORMAT_VERSION,
    NEEDED_SHARD_FIELDS,
    NUM_BINS,
    QUANTISATIONS,
    Array,
    StoreHeader,
    dequantise,
)
from brics_cli.codes.part_files import PartFiles
from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json
from brics_cli.workspace import Artefact, open_hdf5, read_provenance
from brics_cli.workspace.naming import INDEX_NAME, is_store_folder, store_file, store_path
from brics_cli.workspace.places import locate

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from brics_cli.workspace.hdf5 import Hdf5File

HOW_TO_MAKE = "brics encode-dataset IMAGES --out codes.h5"
AGAIN = f"Make it again: {HOW_TO_MAKE}"
NO_STORE = f"Give a store that brics wrote: {HOW_TO_MAKE}"


T = TypeVar("T")


class KeyCodeStore:
    """The codes of a collection, by row: `store[i]` is float32 (C, h, w), in [0, 1] for bounded codes.

    `path` is a file, or the folder of a store that is kept in parts. Opening reads the header alone, of a folder its
    index; a part is opened when a row of it is first asked for. Raises ArtefactError when the file is missing, no
    store, of a newer format, or when its header does not fit the file (truncated, damaged), and for a part that is
    missing, cut short or another one; MachineError when the machine cannot read it now (locked by another process, a
    failing mount), here as in every method that reads.

    Attributes: `path`; `code_shape` (C, h, w); `image_size`; `transform` (name) and `transform_version`;
    `quantisation`; `code_kind` (bounded or continuous); `precision`; `autoencoder` (`sha256`, `config`); `source`
    (the collection's path) and `source_sha256`; `identity` (all that must not change between two runs that write
    one store); `sha256` (of the rows); `created`; `brics_version`; `mean` and `std` of the codes per channel, float32
    (C,).

    It is a map-style dataset as torch's DataLoader takes them: `DataLoader(store, batch_size=256, shuffle=True)`
    gives batches of codes, read with one indexing each; `as_dataset` adds labels and flips.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = store_path(locate(path))
        self._header_file = store_file(self.path) if self.path.is_dir() else self.path
        if not self._header_file.is_file():
            what = "is a folder, not a key-code store" if self.path.is_dir() else "is missing"
            if is_store_folder(self.path):
                what = f"holds parts of a key-code store that is not finished (it has no {INDEX_NAME})"
            raise ArtefactError(f"{self.path} {what}", next=f"Give a store, or make one: {HOW_TO_MAKE}")
        try:
            with open_hdf5(self._header_file) as file:
                self._read_header(file)
        except (OSError, RuntimeError):
            with self._header_file.open("rb") as file_:
                is_hdf5 = file_.read(8) == b"\x89HDF\r\n\x1a\n"
            if not is_hdf5:
                raise ArtefactError(
                    f"{self._header_file} is not a key-code store (not an HDF5 file)", next=NO_STORE
                ) from None
            raise ArtefactError(f"{self._header_file} is damaged or truncated", next=AGAIN) from None
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ArtefactError(f"the header of {self._header_file} is damaged ({error})", next=AGAIN) from None
        self._maps: dict[str, Array] = {}
        self._file: BinaryIO | None = None

    def _read_header(self, file: Hdf5File) -> None:
        attributes = file.attrs
        version = attributes.get("format_version")
        if version is None or "identity" not in attributes:
            raise ArtefactError(f"{self.path} is not a key-code store (an HDF5 file of something else)", next=NO_STORE)
        if int(version) not in (FORMAT_VERSION, FOLDER_VERSION):
            raise ArtefactError(
                f"{self.path} has store format {version}, and this brics reads {FORMAT_VERSION} and {FOLDER_VERSION}",
                next="Upgrade: pip install -U brics-cli",
            )
        if (int(version) == FOLDER_VERSION) != self.path.is_dir():
            raise ArtefactError(
                f"{self._header_file} is the index of a store that is a folder, and not in it"
                if int(version) == FOLDER_VERSION
                else f"{self._header_file} is a store of its own, and no index of parts",
                next="Give the store itself.",
            )
        channels, height, width = (int(side) for side in attributes["code_shape"])
        self.code_shape: tuple[int, int, int] = (channels, height, width)
        self.image_size = int(attributes["image_size"])
        self.transform, _, self.transform_version = str(attributes["transform"]).partition("/")
        self.quantisation: Any = str(attributes["quantisation"])
        self.code_kind: Any = str(attributes["code_kind"])
        self.precision = str(attributes["precision"])
        self.autoencoder: dict[str, Any] = parse_json(attributes["autoencoder"])
        self.source = str(attributes["source"])
        self.source_sha256 = str(attributes["source_sha256"])
        self.identity: dict[str, Any] = dict(parse_json(attributes["identity"]))
        self.sha256 = str(attributes["sha256"])
        self.created = str(attributes["created"])
        self.brics_version = str(attributes["brics_version"])
        if not isinstance(self.autoencoder.get("sha256"), str):
            raise ValueError("it names no autoencoder")
        self._dtype = QUANTISATIONS[self.quantisation][0]
        self._has_class_names = "class_names" in file
        self._parts: PartFiles | None = None
        self._offsets: dict[str, int] = {}
        if self.path.is_dir():
            self._parts = PartFiles(
                self.path, file["parts"][()], file["shards"][()], code_shape=self.code_shape, dtype=self._dtype
            )
            self._num_rows = int(self._parts.starts[-1])
        else:
            self._find_columns(file)
        self.mean: npt.NDArray[np.float32] = file["stats/mean"][()].astype(np.float32)
        self.std: npt.NDArray[np.float32] = file["stats/std"][()].astype(np.float32)
        if self.mean.shape != (channels,) or self.std.shape != (channels,):
            raise ValueError(f"stats of shape {self.mean.shape} for {channels} channels")

    def _find_columns(self, file: Hdf5File) -> None:
        """Where in its one file the codes are. Raises ValueError when the columns do not fit together."""
        self._num_rows = len(file["keys"])
        for name, kind in (("keys", "S"), ("labels", "i")):
            if file[name].shape != (self._num_rows,) or file[name].dtype.kind != kind:
                raise ValueError(f"{name} is {file[name].shape} {file[name].dtype}")
        for name in ("codes", "codes_flipped"):
            if name == "codes" or name in file:
                dataset, expected = file[name], (self._num_rows, *self.code_shape)
                if dataset.shape != expected or dataset.dtype != self._dtype:
                    raise ValueError(f"{name} is {dataset.shape} {dataset.dtype}, not {expected} {self._dtype}")
                if dataset.offset is None:
                    raise ValueError(f"{name} is not contiguous")
                self._offsets[name] = dataset.offset  # all of it is in the file: that was checked when it was opened

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"KeyCodeStore({str(self.path)!r}: {len(self):,} x {self.code_shape} {self.quantisation})"

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        """The codes of one image: float32 (C, h, w)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a store of {len(self)}")
        return self.batch([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """`[self[i] for i in indices]` in one read: what torch's DataLoader calls for a batch."""
        return list(self.batch(indices))

    def as_dataset(self, *, flips: bool = False) -> Dataset[tuple[Tensor, int]]:
        """A `torch.utils.data.Dataset` of (codes float32 (C, h, w), label or -1).

        With `flips` it is twice as long: row N + i is the mirror image of row i. Raises ArtefactError for `flips` in
        a store without them.
        """
        from brics_cli.codes.dataset import KeyCodeDataset

        return KeyCodeDataset(self, flips=flips)

    def batch(self, indices: Sequence[int] | slice | Array, *, flipped: bool = False) -> npt.NDArray[np.float32]:
        """The codes of several images, or of their mirror images: float32 (B, C, h, w)."""
        return dequantise(self.raw(indices, flipped=flipped), self.quantisation)

    def raw(self, indices: Sequence[int] | slice | Array, *, flipped: bool = False) -> Array:
        """Stored values as they are (uint8, uint16 or float16), a copy: (B, C, h, w).

        Raises ArtefactError for `flipped` in a store without flips.
        """
        if flipped and not self.has_flipped:
            raise ArtefactError(f"{self.path} holds no flipped codes", next="Encode again with --flips.")
        name = "codes_flipped" if flipped else "codes"
        if self._parts is not None:
            if isinstance(indices, slice):
                indices = np.arange(*indices.indices(len(self)))
            numbers = np.asarray(indices, np.int64)
            return self._parts.take(name, numbers.reshape(-1)).reshape(*numbers.shape, *self.code_shape)
        rows = self._map(name)
        if isinstance(indices, slice):
            return np.array(rows[indices])
        return rows.take(np.asarray(indices, np.int64), axis=0)

    def will_need(self, row: int) -> None:
        """Let the machine read ahead the shard that a row is in; of a folder its part, which is waited for."""
        number = bisect_right(self.shard_starts, row) - 1
        if self._parts is not None:
            self._parts.will_need(number)
            return
        start, stop = self.shard_starts[number : number + 2]
        for name, offset in self._offsets.items() if hasattr(os, "posix_fadvise") else ():
            rows = self._map(name)
            place = offset + rows[:start].nbytes, rows[start:stop].nbytes
            assert self._file is not None
            os.posix_fadvise(self._file.fileno(), *place, os.POSIX_FADV_WILLNEED)

    @property
    def has_flipped(self) -> bool:
        """Whether the codes of the mirrored images are there too."""
        return "codes_flipped" in self._offsets if self._parts is None else self._parts.has_flipped

    @property
    def is_folder(self) -> bool:
        """Whether it is kept in parts, in a folder, rather than in one file."""
        return self._parts is not None

    @property
    def part_paths(self) -> list[Path]:
        """The parts of a store that is a folder, in the order of `shards`."""
        return [] if self._parts is None else self._parts.paths

    def part_place(self, number: int) -> tuple[Any, ...]:
        """What its index says of a part: its row of `/parts`."""
        assert self._parts is not None
        return self._parts.place(number)

    @property
    def num_bytes(self) -> int:
        """Of its file, or of all files of its folder."""
        num_bytes = self._header_file.stat().st_size
        return num_bytes if self._parts is None else num_bytes + int(self._parts.num_bytes.sum())

    def _map(self, name: str) -> Array:
        """The dataset `name`, mapped. A file that has become shorter is an error: touching what is gone is SIGBUS."""
        if self._file is None:
            self._file = self.path.open("rb")
        if name not in self._maps:
            shape = (self._num_rows, *self.code_shape)
            mapped = np.memmap(self._file, self._dtype, "r", self._offsets[name], shape)
            self._maps[name] = mapped.view(np.ndarray)  # a memmap pays for its bookkeeping at every slice
        num_bytes, size_bytes = self._offsets[name] + self._maps[name].nbytes, os.fstat(self._file.fileno()).st_size
        if size_bytes < num_bytes:
            raise ArtefactError(
                f"{self.path} was cut short while it was read: {size_bytes:,} of at least {num_bytes:,} bytes",
                next=AGAIN,
            )
        return self._maps[name]

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row."""
        return self._column("keys", made=lambda column: [key.decode() for key in column])

    def key_bytes(self) -> Array:
        """The keys as they are stored: UTF-8 in fixed-length bytes (N,), without a text object for each."""
        return self._column("keys", made=np.asarray)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each row, -1 for none: int64 (N,)."""
        return self._column("labels", made=np.asarray)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What labels 0, 1, ... stand for; empty where they have no names."""
        if not self._has_class_names:
            return ()
        return self._column("class_names", made=lambda names: tuple(name.decode() for name in names))

    def meta(self, index: int) -> dict[str, Any] | None:
        """The metadata of one row, read from the file on each call; None when it has none."""
        return self._column("meta", index, made=_meta)

    def metas(self, start: int, stop: int) -> list[dict[str, Any] | None]:
        """The metadata of rows start to stop - 1, in one read."""
        return self._column("meta", slice(start, stop), made=lambda texts: [_meta(text) for text in texts])

    @cached_property
    def num_metas(self) -> int:
        """How many rows have metadata."""
        blocks = (slice(start, start + 2**16) for start in range(0, len(self), 2**16))
        return sum(self._column("meta", block, made=lambda texts: sum(map(bool, texts))) for block in blocks)

    @cached_property
    def histogram(self) -> npt.NDArray[np.int64]:
        """The codes of each channel, counted in 256 bins: int64 (C, 256), over [0, 1] when they are bounded, else
        [-8, 8]."""
        return self._column("stats/histogram", made=_histogram)

    @cached_property
    def shards(self) -> list[dict[str, Any]]:
        """The shards table: name, size, fingerprint, n_in, n_ok, n_failed, sha256 and digest of each."""
        return self._column("shards", made=partial(_rows, fields=NEEDED_SHARD_FIELDS))

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """The images that could not be encoded: shard, key, reason."""
        return self._column("failures", made=partial(_rows, fields=FAILURE_FIELDS))

    @cached_property
    def failures_by_shard(self) -> dict[str, list[tuple[str, str]]]:
        """Key and reason of each of them, by the name of the shard."""
        found: dict[str, list[tuple[str, str]]] = {}
        for failure in self.failures:
            found.setdefault(failure["shard"], []).append((failure["key"], failure["reason"]))
        return found

    @cached_property
    def shard_starts(self) -> list[int]:
        """The first row of each shard, and N."""
        return list(accumulate((shard["n_ok"] for shard in self.shards), initial=0))

    @property
    def header(self) -> StoreHeader:
        """What it was made of and with, as its writer had it."""
        return StoreHeader(
            code_shape=self.code_shape,
            image_size=self.image_size,
            transform=f"{self.transform}/{self.transform_version}",
            quantisation=self.quantisation,
            autoencoder=self.autoencoder,
            source=self.source,
            source_sha256=self.source_sha256,
            num_images=int(self.identity.get("num_images", len(self))),
            flipped=self.has_flipped,
            precision=self.precision,
            code_kind=self.code_kind,
            selection=str(self.identity.get("selection", "")),
            part=str(self.identity.get("part", "")),
            labels=str(self.identity.get("labels", "")),
            class_names=self.class_names,
        )

    @property
    def artefact(self) -> Artefact:
        """Its provenance. Raises ArtefactError when that is missing."""
        artefact = read_provenance(self.path)
        if artefact is None:
            raise ArtefactError(f"{self.path} carries no provenance", next=AGAIN)
        return artefact

    def _column(self, name: str, index: int | slice | None = None, *, made: Callable[[Any], T]) -> T:
        """A dataset, or rows of it, as `made` makes it."""
        try:
            if self._parts is not None and name in ("keys", "labels", "meta"):
                rows = range(len(self))[slice(None) if index is None else index]
                if isinstance(rows, int):
                    return made(self._parts.column(name, rows, rows + 1)[0])
                return made(self._parts.column(name, rows.start, rows.stop))
            with open_hdf5(self._header_file) as file:
                if file.attrs.get("sha256") != self.sha256:
                    raise ArtefactError(
                        f"{self.path} has been replaced since it was opened", next="Run the same command again."
                    )
                return made(file[name][() if index is None else index])
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ArtefactError(f"{self.path}: dataset {name!r} cannot be read ({error})", next=AGAIN) from None


def _meta(text: bytes) -> dict[str, Any] | None:
    return parse_json(text) if text else None


def _histogram(counts: Array) -> npt.NDArray[np.int64]:
    if counts.ndim != 2 or counts.shape[1] != NUM_BINS or counts.min(initial=0) < 0:
        raise ValueError(f"it is no count in {NUM_BINS} bins")
    return counts.astype(np.int64)


def _rows(table: Array, *, fields: Sequence[str]) -> list[dict[str, Any]]:
    names = table.dtype.names or ()
    if not {*fields} <= {*names}:
        raise ValueError(f"its fields are {', '.join(names)}")
    return [
        {
            name: value.decode() if isinstance(value, bytes) else int(value)
            for name, value in zip(names, row, strict=True)
        }
        for row in table
    ]
