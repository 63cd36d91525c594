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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import recorded_class_names
from brics_cli.images.collection import (
    ANYTHING,
    Collection,
    RawImage,
    Wanted,
    check_num_bytes,
    printable,
    virtual_shards,
)
from brics_cli.images.labels import Labelling, number_labels
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.members import tidy_name
from brics_cli.images.sources.memory import Descriptor, Names, ProcessCache
from brics_cli.images.sources.zip import ENCRYPTED, start_of_member
from brics_cli.images.unpacking import copy_unpacked
from brics_cli.wording import count
from brics_cli.workspace.mirrors import present

NPY_MAGIC = b"\x93NUMPY"
AGAIN = "Save it again: numpy.savez(path, images)."
MAX_COLUMN_BYTES = 2**30
"""A larger array beside the images holds no labels and no keys."""
_WANTED = "images are uint8 (N, H, W, 3)"
_DAMAGE = (ValueError, EOFError, OverflowError, zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error)


@dataclass(frozen=True)
class Array:
    """The header of one array: what is in it, how many bytes of its file the header takes, and which file that is in a
    `.npz`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_bytes: int
    member: zipfile.ZipInfo | None = None

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


class ArrayCollection(Collection):
    """The images in a `.npz` or `.npy` file, in their order.

    Keys are those in `keys`, which `brics` writes, else the places: `00000012`. Raises UsageError when there are no
    images of the form that is read, ArtefactError when the file is truncated or damaged.
    """

    def __init__(self, path: str, files: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        (file,) = files
        self.path = path
        arrays = read_headers(file)
        self._name = _name_of_images(arrays, file)
        images = arrays[self._name]
        self.kind = "npz" if images.member is not None else "npy"
        num_images, self._height, self._width, _ = images.shape
        self._image_bytes = 3 * self._height * self._width
        self._unpacked = ProcessCache(_unpack, limit=1)
        self._descriptors = ProcessCache(Descriptor.of, limit=1)
        self._offset, self._header_bytes = self._find(file, images), images.header_bytes
        self._digits = max(8, len(str(num_images)))
        keys = _column(file, arrays.get("keys"), "keys", "SU", num_images)
        self._keys = None if keys is None else _as_keys(keys)
        self._labelling: Labelling | None = None
        if wanted.labels != "none":
            classes = _column(file, arrays.get("arr_1"), "arr_1", "iufbSU", num_images)
            values = None if classes is None else _label_values(classes)
            if values is not None:
                names = recorded_class_names(file)
                self._labelling = number_labels(values, source="arr_1", shown=self._key, names=names)
                self.class_names = self._labelling.names
        reads_labels = self._labelling is not None or wanted.labels == "none"
        read = {self._name: True, "arr_1": reads_labels, "keys": self._keys is not None}
        if unread := [name for name in arrays if not read.get(name)]:
            what = "arrays" if len(unread) > 1 else "array"
            self.passed_over.reasons[f"{what} ({', '.join(map(printable, unread))})"] = len(unread)
        checksums = [(array.member.filename, array.member.CRC) for array in arrays.values() if array.member is not None]
        self.shards = virtual_shards(np.broadcast_to(np.int64(self._image_bytes), num_images), also=checksums)

    def _find(self, file: Path, images: Array) -> int | None:
        """Where the first image begins in the file; None where the array is deflated. Raises ArtefactError."""
        start, num_bytes, is_deflated = 0, file.stat().st_size, False
        if images.member is not None:
            start = start_of_member(self._descriptors[file], images.member.header_offset) or 0
            num_bytes, is_deflated = images.member.file_size, images.member.compress_type != zipfile.ZIP_STORED
            if not is_deflated and start + num_bytes > file.stat().st_size:
                raise ArtefactError(f"{file} is truncated", next=AGAIN)
        if images.header_bytes + images.num_bytes != num_bytes:
            raise ArtefactError(
                f"{file} is damaged: {self._name} takes {num_bytes:,} bytes, and its header says "
                f"{images.header_bytes + images.num_bytes:,}",
                next=AGAIN,
            )
        return None if is_deflated else start + images.header_bytes

    def describe(self) -> str:
        deflated = ", compressed" if self._offset is None else ""
        array = "" if self._name == "arr_0" or self.kind == "npy" else f", array {self._name!r}"
        labels = "" if self._labelling is None else f", labels from arr_1: {self._labelling.said}"
        keys = "" if self._keys is not None else ", named by their place"
        size = f"{self._width} x {self._height} px"
        return f"{count(len(self), 'image')}, {size}, {self.kind}{array}{deflated}{keys}{labels}{self.note}"

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        """The one file that all is read from."""
        return [self.path]

    def key(self, shard_index: int, index: int) -> str:
        return self._key(self.starts[shard_index] + index)

    def _key(self, position: int) -> str:
        return f"{position:0{self._digits}d}" if self._keys is None else self._keys[position]

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self.starts[shard_index] + index
        check_num_bytes(self._image_bytes)
        path = Path(self.path)
        file = self._descriptors[path] if self._offset is not None else self._unpacked[path, self._name]
        offset = self._header_bytes if self._offset is None else self._offset
        pixels = file.read(offset + position * self._image_bytes, self._image_bytes)
        if len(pixels) != self._image_bytes:
            raise ImageError("damaged: the file became shorter")
        label, meta = (None, {}) if self._labelling is None else self._labelling.of(position)
        data = b"P6\n%d %d\n255\n" % (self._width, self._height) + pixels
        return RawImage(self._key(position), data, label, meta or None, shard_index, index)


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
        with present(path) as here, here.open("rb") as file:
            if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
                file.seek(0)
                return {"arr_0": _header(file)}
        arrays = {}
        with present(path) as here, zipfile.ZipFile(here) as archive:
            for info in archive.infolist():
                if info.flag_bits & ENCRYPTED:
                    raise UsageError(f"{path} is encrypted", next="Unpack it with its password, and save it again.")
                if info.filename.endswith(".npy"):
                    with archive.open(info) as member:
                        arrays[info.filename.removesuffix(".npy")] = _header(member, info)
        return arrays
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtefactError(f"{path} is truncated or damaged ({reason[:200]})", next=AGAIN) from None


def _header(file: IO[bytes], member: zipfile.ZipInfo | None = None) -> Array:
    """The header of an array, of any version. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the array format")
    shape, fortran_order, dtype = read(file)
    return Array(shape, dtype, fortran_order, file.tell(), member)


def _name_of_images(arrays: Mapping[str, Array], path: Path) -> str:
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


def _column(path: Path, array: Array | None, name: str, kinds: str, num_images: int) -> np.ndarray | None:
    """The array `name` where it says one thing of each image, or a vector; None else."""
    if array is None or array.member is None or array.dtype.kind not in kinds:
        return None
    if array.shape[:1] != (num_images,) or len(array.shape) > 2 or array.num_bytes > MAX_COLUMN_BYTES:
        return None
    try:
        with present(path) as here, zipfile.ZipFile(here) as archive, archive.open(array.member) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except _DAMAGE as error:
        raise ArtefactError(f"{path} is damaged: {name} ({error})", next=AGAIN) from None


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


def _as_keys(keys: np.ndarray) -> Names | None:
    """`keys` as text where every image has one of its own that is a relative path; None else."""
    try:
        names = [key.decode() if isinstance(key, bytes) else str(key) for key in keys.tolist()]
        tidy = all(tidy_name(name, where="it") == name for name in names)
    except (UnicodeDecodeError, ArtefactError):
        return None
    return Names(names) if tidy and len(set(names)) == len(names) else None


def _unpack(array: tuple[Path, str]) -> Descriptor:
    """An array of an `.npz`, unpacked to a temporary file without a name. Raises ArtefactError."""
    path, name = array
    try:
        with (
            tempfile.TemporaryFile(prefix="brics-") as temporary,
            present(path) as here,
            zipfile.ZipFile(here) as archive,
            archive.open(f"{name}.npy") as source,
        ):
            copy_unpacked(source, temporary, where=path)
            temporary.flush()
            return Descriptor(os.dup(temporary.fileno()))
    except _DAMAGE as error:
        raise ArtefactError(f"{path} is damaged: {name} ({error})", next=AGAIN) from None


FORMAT = Format(
    "an .npz or .npy array",
    reads=".npz",
    suffixes=(".npz", ".npy"),
    open=ArrayCollection,
    is_file=lambda path, first: is_array_file(first),
)
