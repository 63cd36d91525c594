"""Formats 1 and 2 of the key-code store: names, types, quantisation, hashes. Reader, writer and verifier share this.

N rows, codes (C, h, w). `/codes` (N, C, h, w) and `/codes_flipped` are contiguous and uncompressed, so that they can
be memory-mapped; quantised by `uint8` (q = rint(255 z)), `uint16` (q = rint(65535 z)) or `float16` (as they are, for
unbounded codes). The other datasets are described in DESIGN section 4.

Format 1 is one file. Format 2 is a folder: `parts/` as they were encoded, a file per shard, and `index.h5`, which has
what a file of format 1 has, the datasets of N rows as HDF5 virtual datasets of the parts, and the table `/parts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from brics_cli.config.names import CodeKind, Quantisation

if TYPE_CHECKING:
    import h5py
    from torch import Tensor

FORMAT_VERSION = 1
"""Of rows, and of a store in one file."""
FOLDER_VERSION = 2
"""Of a store that is a folder, whose parts hold rows of format 1."""
QUANTISATIONS: dict[str, tuple[np.dtype[Any], int]] = {
    "uint8": (np.dtype("u1"), 255),
    "uint16": (np.dtype("<u2"), 65535),
    "float16": (np.dtype("<f2"), 1),
}
"""Name -> (stored type, scale); codes are stored values / scale."""

NUM_BINS = 256
"""Bins per channel of the histogram in `/stats`: over [0, 1] for bounded codes, [-8, 8] for continuous ones."""
NO_LABEL = -1
COUNTED_VALUES = 28 * 1024
"""Values that are counted at a time: torch looks for their range in several threads from 32,768 on."""

SHARD_FIELDS = ("name", "size", "fingerprint", "n_in", "n_ok", "n_failed", "sha256", "digest")
"""`fingerprint` is of names and sizes, `digest` of the images' content: empty where it was not taken (samples, and
stores made before there were digests, which have no such field)."""
NEEDED_SHARD_FIELDS = SHARD_FIELDS[:-1]
FAILURE_FIELDS = ("shard", "key", "reason")
PART_COLUMNS = ("codes", "codes_flipped", "keys", "labels", "index_in_shard", "meta")
"""Datasets of a part that rows of the store are in."""
PART_FIELDS = ("file", "num_bytes", "key_bytes", "sha256_at", *PART_COLUMNS)
"""Of the table `/parts`, which has the part of each row of `/shards`: the file's name and length, bytes of a key, where
in the file the text of its rows' sha256 is, and where each of its datasets begins (`ABSENT`: it has none)."""
ABSENT = -1
VIRTUAL_ATTRIBUTE = "virtual"
"""Of an index: the names of its virtual datasets, which take long to open."""
SEAL_ATTRIBUTE = "seal"
SEALED_DATASETS = ("shards", "failures", "stats/mean", "stats/std", "stats/histogram")
"""Those whose values the seal covers; of the others row hashes do."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoreShard:
    """One shard of the source: `num_images` of it are to be encoded. `fingerprint` is of its names and sizes."""

    name: str
    num_images: int
    size_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class StoreHeader:
    """What a store is made of and with. Two runs write to one store only when `identity` is the same.

    `transform` is `name/version`; `autoencoder` holds `sha256` (of its weights) and `config`; `precision` is that
    of the encoder's arithmetic (fp32, bf16); `source` is the collection's path, for the reader's information, and
    `source_sha256` of its names and sizes (what was in its images is in the shards' `digest`); `num_images` of it are
    encoded (all, or --limit). `selection` is the sha256 of the keys that were asked for, empty for all; `part` is
    `i/n` for every n-th shard of the source, empty for all; `labels` is `folder` when folders are classes, empty for
    the labels that images carry. `class_names` are those of labels 0, 1, ..., empty where they have none (dataset
    `class_names`).
    """

    code_shape: tuple[int, int, int]
    image_size: int
    transform: str
    quantisation: Quantisation
    autoencoder: dict[str, Any]
    source: str
    source_sha256: str
    num_images: int
    flipped: bool = False
    precision: str = "fp32"
    code_kind: CodeKind = "bounded"
    selection: str = ""
    part: str = ""
    labels: str = ""
    class_names: tuple[str, ...] = ()

    @property
    def transform_name(self) -> str:
        """`transform` without its version."""
        return self.transform.partition("/")[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of stored values."""
        return QUANTISATIONS[self.quantisation][0]

    @property
    def bytes_per_image(self) -> int:
        """Of codes; twice that with flipped ones."""
        return int(np.prod(self.code_shape)) * self.dtype.itemsize * (2 if self.flipped else 1)

    def identity(self) -> dict[str, Any]:
        """What must not change between two runs that write to one store."""
        chosen = {"selection": self.selection, "part": self.part, "labels": self.labels}
        return {
            "format": FORMAT_VERSION,
            "autoencoder": self.autoencoder["sha256"],
            "code_shape": list(self.code_shape),
            "image_size": self.image_size,
            "transform": self.transform,
            "quantisation": self.quantisation,
            "flips": self.flipped,
            "precision": self.precision,
            "source": self.source_sha256,
            "num_images": self.num_images,
            **{name: value for name, value in chosen.items() if value},
        }

    def attributes(self) -> dict[str, Any]:
        """The HDF5 attributes that say all this to any reader (`created`, `sha256`, ... come with the merge)."""
        values = asdict(self)
        del values["num_images"]  # of the source; N, what was encoded, is the length of the datasets
        del values["class_names"]  # attributes hold 64 KiB
        values["autoencoder"] = json.dumps(self.autoencoder, sort_keys=True)
        values["identity"] = json.dumps(self.identity(), sort_keys=True)
        written = {  # a path may hold bytes that are no UTF-8, which no text of HDF5 can
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in values.items()
        }
        return {"format_version": FORMAT_VERSION, **written}


def quantise(codes: Array | Tensor, quantisation: Quantisation) -> Array:
    """Codes (..., C, h, w), numpy or torch on any device, as stored values; exact at 0 and 1, idempotent.

    Values outside [0, 1] are clamped, except by float16. Raises ValueError when a value is not finite.
    """
    dtype, scale = QUANTISATIONS[quantisation]
    if not isinstance(codes, np.ndarray):
        stored, finite = quantise_on_device(codes, quantisation)
        rows = stored.cpu().numpy().astype(dtype, copy=False)
        is_finite = bool(finite)
    elif quantisation == "float16":
        with np.errstate(over="ignore"):
            rows = codes.astype(dtype)
        is_finite = bool(np.isfinite(rows).all())
    else:
        is_finite = bool(np.isfinite(codes.sum()))  # as in `quantise_on_device`
        if is_finite:
            scaled = np.clip(codes, 0, 1).astype(np.float32, copy=False)
            rows = np.rint(np.multiply(scaled, np.float32(scale), out=scaled), out=scaled).astype(dtype)
    if not is_finite:
        raise ValueError("codes hold values that are not finite")
    return rows


def quantise_on_device(codes: Tensor, quantisation: Quantisation) -> tuple[Tensor, Tensor]:
    """`quantise` without waiting for the device: the stored values there, and whether all are finite (0-dim bool).

    The values are uint8, int32 (for uint16) or float16: as few bytes to move off the device as torch allows.
    """
    import torch

    codes = codes.detach().float()
    if quantisation == "float16":
        stored = codes.half()
        return stored, torch.isfinite(stored.sum(dtype=torch.float32))
    scaled = codes.clamp(0, 1).mul_(QUANTISATIONS[quantisation][1]).round_()
    # one sum is finite when all are, and takes a twentieth of the time of looking at each
    return scaled.to(torch.uint8 if quantisation == "uint8" else torch.int32), torch.isfinite(codes.sum())


def dequantise(rows: Array, quantisation: Quantisation) -> npt.NDArray[np.float32]:
    """Stored values as float32 codes."""
    scale = QUANTISATIONS[quantisation][1]
    codes = rows.astype(np.float32)
    return codes if scale == 1 else np.divide(codes, np.float32(scale), out=codes)


def bin_edges(code_kind: str) -> tuple[float, float]:
    """The range of the histogram."""
    return (0.0, 1.0) if code_kind == "bounded" else (-8.0, 8.0)


@dataclass
class Statistics:
    """Sums over rows, per channel: enough for mean, standard deviation and histogram; parts add up exactly."""

    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    histogram: npt.NDArray[np.int64]
    num_values: int = 0
    """Values per channel."""

    @classmethod
    def empty(cls, num_channels: int) -> Statistics:
        zeros = np.zeros(num_channels)
        return cls(zeros.copy(), zeros.copy(), np.zeros((num_channels, NUM_BINS), np.int64))

    def add(self, rows: Array, header: StoreHeader) -> None:
        """Count stored `rows` (B, C, h, w)."""
        if header.quantisation == "uint8" and header.code_kind == "bounded":
            self._add_counts(rows)
            return
        low, high = bin_edges(header.code_kind)
        codes = dequantise(rows, header.quantisation)
        by_channel = np.moveaxis(codes, 1, 0).reshape(codes.shape[1], -1)  # (C, B h w)
        self.total += by_channel.sum(axis=1, dtype=np.float64)
        self.squares += np.einsum("cn,cn->c", by_channel, by_channel, dtype=np.float64)
        bins = ((by_channel - low) * (NUM_BINS / (high - low))).astype(np.int64).clip(0, NUM_BINS - 1)
        for channel, found in enumerate(bins):
            self.histogram[channel] += np.bincount(found, minlength=NUM_BINS)
        self.num_values += by_channel.shape[1]

    def _add_counts(self, rows: Array) -> None:
        """`add` for uint8: its 256 values are counted, each a bin of its own, then weighed: fast, and exact.

        All channels in one count: value v of channel c is number 256 c + v. Torch counts small integers as they are,
        in half the time of numpy, which widens them first; few rows at a time stay in the cache and in this thread.
        """
        import torch

        num_channels = rows.shape[1]
        channels = np.arange(num_channels, dtype=np.int16 if num_channels < 128 else np.int32)[:, None] * 256
        counts = np.zeros(256 * num_channels, np.int64)
        num_rows = max(COUNTED_VALUES // max(rows[0].size, 1), 1) if len(rows) else 1
        for start in range(0, len(rows), num_rows):
            block = rows[start : start + num_rows].reshape(-1, num_channels, rows[0, 0].size)
            numbers = torch.from_numpy((block + channels).reshape(-1))  # (rows C h w)
            counts += torch.bincount(numbers, minlength=len(counts)).numpy()
        counts = counts.reshape(num_channels, 256)
        values = np.arange(256) / QUANTISATIONS["uint8"][1]
        self.total += counts @ values
        self.squares += counts @ values**2
        self.histogram += counts
        self.num_values += rows.size // rows.shape[1]

    def merge(self, other: Statistics) -> None:
        self.total += other.total
        self.squares += other.squares
        self.histogram += other.histogram
        self.num_values += other.num_values

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        return self.total / max(self.num_values, 1)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        variance = self.squares / max(self.num_values, 1) - self.mean**2
        return cast("npt.NDArray[np.float64]", np.sqrt(np.maximum(variance, 0)))


class RowHash:
    """sha256 of a shard's rows: of each column's bytes, then of those digests and the other columns."""

    def __init__(self) -> None:
        self._codes = hashlib.sha256()
        self._flipped = hashlib.sha256()

    def add(self, codes: Array, flipped: Array | None) -> None:
        """Hash further rows, in order."""
        self._codes.update(np.ascontiguousarray(codes).data)
        if flipped is not None:
            self._flipped.update(np.ascontiguousarray(flipped).data)

    def hexdigest(
        self, keys: Iterable[bytes], labels: Array, index_in_shard: Array, metas: Sequence[str] | None
    ) -> str:
        """The digest of all rows. `metas` None is a column of empty texts."""
        digest = hashlib.sha256(self._codes.digest() + self._flipped.digest())
        digest.update(b"".join(key + b"\0" for key in keys))
        digest.update(labels.astype("<i8").tobytes())
        digest.update(index_in_shard.astype("<i8").tobytes())
        for position, meta in enumerate(metas or ()):
            if meta:
                digest.update(f"{position}\0{meta}\0".encode())
        return digest.hexdigest()


def store_sha256(row_hashes: Iterable[str]) -> str:
    """The sha256 of a store: of its shards' row hashes, in order."""
    return hashlib.sha256("\n".join(row_hashes).encode()).hexdigest()


def names_sha256(names: Array) -> str:
    """The sha256 of the names of classes as they are stored: attribute of the dataset, which the seal covers."""
    return hashlib.sha256(names.tobytes()).hexdigest()


def fixed_bytes(texts: Sequence[str]) -> Array:
    """Texts as UTF-8 in fixed-length bytes, the longest deciding."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=f"S{max((len(text) for text in encoded), default=1) or 1}")


def seal(file: h5py.File) -> str:
    """sha256 of all that row hashes leave out: attributes (but the seal itself), tables, statistics, types.

    It is kept in the store as attribute `seal`, and tells when any of them was changed.
    """
    digest = hashlib.sha256()

    def add(name: str, attributes: h5py.AttributeManager) -> None:
        plain = {key: _plain(value) for key, value in attributes.items() if key != SEAL_ATTRIBUTE}
        digest.update(f"{name}\0{json.dumps(plain, sort_keys=True)}\0".encode())

    add("/", file.attrs)
    names: list[str] = []
    file.visit(names.append)
    for name in sorted(names):
        add(name, file[name].attrs)
        if hasattr(file[name], "dtype"):  # a dataset, no group
            digest.update(f"{file[name].dtype.str} {file[name].dtype.descr} {file[name].shape}\0".encode())
        if name in SEALED_DATASETS or name == "parts":
            digest.update(np.ascontiguousarray(file[name][()]).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """An HDF5 attribute as JSON can hold it; bytes that are no UTF-8 stay distinct."""
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), _plain(value.tolist())]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float) else repr(value)
