"""Images in one array: ADM's `.npz` (`arr_0`, uint8 (N, H, W, 3), labels as `arr_1`), or a plain `.npy` of the same.

Nothing is unpickled. An image is one `pread`, given on as a PPM file, so that no more than one is in memory; a
deflated array has no offsets, and is unpacked to a temporary file that has no name.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import recorded_class_names
from brics_cli.images.collection import (
    VIRTUAL_SHARD_SIZE,
    RawImage,
    Shard,
    UnshardedCollection,
    check_num_bytes,
    printable,
    shard_layout,
    visible_path,
)
from brics_cli.images.labels import Labelling, number_labels
from brics_cli.images.names import Names
from brics_cli.images.passed_over import PassedOver
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.process_cache import Descriptor, ProcessCache
from brics_cli.images.sources.samples import tidy_name
from brics_cli.images.unpacking import copy_unpacked
from brics_cli.images.wanted import ANYTHING, Wanted

NPY_MAGIC = b"\x93NUMPY"
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
AGAIN = "Save it again: numpy.savez(path, images)."
MAX_COLUMN_BYTES = 2**30
"""A larger array beside the images holds no labels and no keys."""
_WANTED = "images are uint8 (N, H, W, 3)"
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<26xHH")  # ..., lengths of the name and of the extra field


@dataclass(frozen=True)
class Array:
    """The header of one array: what is in it, and how many bytes of its file the header takes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_images(self) -> bool:
        return self.why_not_images() is None

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(f'{side:,}' for side in self.shape)})"

    def why_not_images(self) -> str | None:
        """What to do about an array that does not hold images as brics reads them; None where it does."""
        if self.dtype.hasobject:
            return "Pickled objects are never opened."
        if len(self.shape) != 4:
            if len(self.shape) == 3 and self.shape[-1] == 3:
                return "It is one image: save x[None]."
            return "Of grey images save numpy.repeat(x[..., None], 3, axis=-1)." if len(self.shape) == 3 else AGAIN
        if self.shape[-1] != 3:
            if self.shape[1] == 3:
                return "Channels come last: save x.transpose(0, 2, 3, 1)."
            return "Three channels are read: of grey images save numpy.repeat(x, 3, axis=-1), of RGBA x[..., :3]."
        if self.dtype != np.uint8:
            return "Save uint8: numpy.rint(255 * x) of [0, 1], numpy.rint(127.5 * (x + 1)) of [-1, 1]."
        if self.fortran_order:
            return "It is in Fortran's order: save numpy.ascontiguousarray(x)."
        return None


class ArrayCollection(UnshardedCollection):
    """The images in the `.npz` or `.npy` file `path`, in their order.

    Keys are those in `keys`, which `brics` writes, else the places: `00000012`. Raises UsageError when there are no
    images of the form that is read, ArtefactError when the file is truncated or damaged.
    """

    def __init__(self, path: Path, wanted: Wanted = ANYTHING) -> None:
        self.path = str(visible_path(path))
        with path.open("rb") as file:
            self.kind = "npy" if file.read(len(NPY_MAGIC)) == NPY_MAGIC else "npz"
        arrays = read_headers(path)
        self._member = _images_of(arrays, path)
        images = arrays[self._member]
        _, self._height, self._width, _ = images.shape
        self._image_bytes = 3 * self._height * self._width
        self._unpacked = ProcessCache(_unpack, limit=1)
        self._descriptors = ProcessCache(Descriptor.of, limit=1)
        self._offset = self._find(path, images)
        keys = self._column(path, arrays, "keys", "SU")
        self._keys = None if keys is None else _names(keys)
        self._digits = max(8, len(str(images.shape[0])))
        classes = None if wanted.labels == "none" else self._column(path, arrays, "arr_1", "iufbSU")
        values = None if classes is None else _label_values(classes)
        self._labelling: Labelling | None = None
        if values is not None:
            names = recorded_class_names(path)
            self._labelling = number_labels(values, source="arr_1", shown=self._key, names=names)
            self.class_names = self._labelling.names
        read = {
            self._member: True,
            "arr_1": values is not None or wanted.labels == "none",
            "keys": self._keys is not None,
        }
        if unread := [name for name in arrays if not read.get(name)]:
            self.passed_over = PassedOver()
            plural = "s" if len(unread) > 1 else ""
            self.passed_over.reasons[f"array{plural} ({', '.join(map(printable, unread))})"] = len(unread)
        self._shard_size, index = VIRTUAL_SHARD_SIZE, _checksums(path)
        self.shards = []
        for number, start in enumerate(range(0, images.shape[0], self._shard_size)):
            num_images = min(self._shard_size, images.shape[0] - start)
            name, num_bytes = f"{number:05d}", num_images * self._image_bytes
            self.shards.append(Shard(name, num_images, num_bytes, shard_layout(name, num_bytes, index)))

    def _find(self, path: Path, images: Array) -> int | None:
        """Where the first image begins in the file; None where the array is deflated. Raises ArtefactError."""
        if self.kind == "npy":
            start, num_bytes = 0, path.stat().st_size
        else:
            with _opened(path) as archive:
                info = archive.getinfo(f"{self._member}.npy")
            num_bytes = info.file_size
            header = self._descriptors[path].read(info.header_offset, 30)
            start = info.header_offset + 30 + sum(_LOCAL_HEADER.unpack(header)) if len(header) == 30 else 0
            if info.compress_type == zipfile.ZIP_STORED and start + num_bytes > path.stat().st_size:
                raise ArtefactError(f"{path} is truncated", next=AGAIN)
        if images.header_bytes + images.num_bytes != num_bytes:
            raise ArtefactError(
                f"{path} is damaged: {self._member} takes {num_bytes:,} bytes, and its header says "
                f"{images.header_bytes + images.num_bytes:,}",
                next=AGAIN,
            )
        if self.kind == "npz" and info.compress_type != zipfile.ZIP_STORED:
            return None
        return start + images.header_bytes

    def _column(self, path: Path, arrays: Mapping[str, Array], name: str, kinds: str) -> np.ndarray | None:
        """The array `name` where it says one thing of each image, or a vector; None else."""
        array = arrays.get(name)
        num_images = arrays[self._member].shape[0]
        if self.kind == "npy" or array is None or array.dtype.kind not in kinds:
            return None
        if array.shape[:1] != (num_images,) or len(array.shape) > 2 or array.num_bytes > MAX_COLUMN_BYTES:
            return None
        with _opened(path) as archive, archive.open(f"{name}.npy") as member:
            try:
                return np.lib.format.read_array(member, allow_pickle=False)
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ArtefactError(f"{path} is damaged: {name} ({error})", next=AGAIN) from None

    def describe(self) -> str:
        deflated = ", compressed" if self._offset is None else ""
        member = "" if self._member == "arr_0" or self.kind == "npy" else f", array {self._member!r}"
        labels = "" if self._labelling is None else f", labels from arr_1: {self._labelling.said}"
        keys = "" if self._keys is not None else ", named by their place"
        size = f"{self._width} x {self._height} px"
        return f"{len(self):,} images, {size}, {self.kind}{member}{deflated}{keys}{labels}{self.note}"

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> Iterable[str]:
        """The one file that all is read from."""
        return [self.path]

    def key(self, shard_index: int, index: int) -> str:
        return self._key(self._position(shard_index, index))

    def _key(self, position: int) -> str:
        return f"{position:0{self._digits}d}" if self._keys is None else self._keys[position]

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self._position(shard_index, index)
        check_num_bytes(self._image_bytes)
        path = Path(self.path)
        if self._offset is None:
            member = self._unpacked[path, self._member]
            offset = os.fstat(member.number).st_size - self._image_bytes * len(self)
        else:
            member, offset = self._descriptors[path], self._offset
        pixels = member.read(offset + position * self._image_bytes, self._image_bytes)
        if len(pixels) != self._image_bytes:
            raise ImageError("damaged: the file became shorter")
        label, meta = -1, None
        if self._labelling is not None:
            label, meta = int(self._labelling.ids[position]), self._labelling.metas.get(position)
        data = b"P6\n%d %d\n255\n" % (self._width, self._height) + pixels
        return RawImage(self._key(position), data, label if label >= 0 else None, meta, shard_index, index)


def is_array_file(first: bytes) -> bool:
    """Whether a file that begins with `first` (512 bytes) is a `.npy`, or a zip whose first member is one."""
    if first.startswith(NPY_MAGIC):
        return True
    length = int.from_bytes(first[26:28], "little")
    return first.startswith(b"PK\x03\x04") and first[30 : 30 + length].endswith(b".npy")


def holds_images(path: Path) -> bool:
    """Whether the `.npz` at `path` holds images: an `arr_0`, or another array of their form. A damaged one does not."""
    try:
        arrays = read_headers(path)
    except ArtefactError:
        return False
    return "arr_0" in arrays or any(array.is_images for array in arrays.values())


def read_headers(path: Path) -> dict[str, Array]:
    """Name -> header of the arrays in a `.npz`; of a `.npy` the one, as `arr_0`. Raises ArtefactError."""
    try:
        with path.open("rb") as file:
            if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
                file.seek(0)
                return {"arr_0": _header(file)}
        with _opened(path) as archive:
            arrays = {}
            for info in archive.infolist():
                if info.flag_bits & _ENCRYPTED:
                    raise UsageError(f"{path} is encrypted", next="Unpack it with its password, and save it again.")
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        arrays[info.filename.removesuffix(".npy")] = _header(member)
            return arrays
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtefactError(f"{path} is truncated or damaged ({reason[:200]})", next=AGAIN) from None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise ArtefactError(f"{path} is truncated or damaged ({error})", next=AGAIN) from None


def _header(file: IO[bytes]) -> Array:
    """The header of an array, of any version. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the array format")
    shape, fortran_order, dtype = read(file)
    return Array(shape, dtype, fortran_order, file.tell())


def _images_of(arrays: Mapping[str, Array], path: Path) -> str:
    """The name of the array that holds the images. Raises UsageError."""
    name = "arr_0" if "arr_0" in arrays else next((name for name, array in arrays.items() if array.is_images), None)
    if name is None and {"mu", "sigma"} <= arrays.keys():
        raise UsageError(
            f"{path} holds statistics ({', '.join(arrays)}), not images",
            next="brics eval --real takes it for fid.",
        )
    if name is None:
        listed = ", ".join(f"{name} {array}" for name, array in list(arrays.items())[:8])
        raise UsageError(f"no images in {path}: {_WANTED}, and it holds {listed or 'no array'}")
    wrong = arrays[name].why_not_images()
    if wrong is not None:
        raise UsageError(f"{path}: {name} is {arrays[name]}, and {_WANTED}", next=wrong)
    if 0 in arrays[name].shape:
        raise UsageError(f"no images in {path}: {name} is {arrays[name]}")
    return name


def _label_values(array: np.ndarray) -> Any:
    """What `number_labels` takes for `array`, one label or vector per image; None for vectors that are not one-hot."""
    if array.ndim == 2 and array.shape[1] != 1:
        if (
            array.dtype.kind in "SU"
            or not (np.count_nonzero(array, axis=1) == 1).all()
            or not (array.max(1) == 1).all()
        ):
            return None
        return array.argmax(1).astype(np.int64)
    array = array.reshape(len(array))
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in array.tolist()]


def _names(keys: np.ndarray) -> Names | None:
    """`keys` as text where every image has one of its own that is a relative path; None else."""
    try:
        names = [key.decode() if isinstance(key, bytes) else str(key) for key in keys.tolist()]
        tidy = all(tidy_name(name, where="it") == name for name in names)
    except (UnicodeDecodeError, ArtefactError):
        return None
    return Names(names) if tidy and len(set(names)) == len(names) else None


def _checksums(path: Path) -> list[tuple[str, int]]:
    """Of the arrays in a `.npz`; of a `.npy` none."""
    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            return []
    with _opened(path) as archive:
        return [(info.filename, info.CRC) for info in archive.infolist()]


def _unpack(member: tuple[Path, str]) -> Descriptor:
    """An array of an `.npz`, unpacked to a temporary file without a name. Raises ArtefactError."""
    path, name = member
    with (
        tempfile.TemporaryFile(prefix="brics-") as temporary,
        _opened(path) as archive,
        archive.open(f"{name}.npy") as source,
    ):
        try:
            copy_unpacked(source, temporary, where=path)
        except (zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise ArtefactError(f"{path} is damaged: {name} ({error})", next=AGAIN) from None
        temporary.flush()
        return Descriptor(os.dup(temporary.fileno()))
