"""An LMDB whose values are image files: LSUN's (`church_outdoor_train_lmdb`, key = id, value = webp or jpeg).

Opened read-only and without its lock file, which a read-only or network file system may not give. A file that is
shorter than its last page opens all the same, and reading it would end in SIGBUS; so its length is looked at first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from brics_cli.errors import ArtefactError, BricsError, UsageError, machine_error
from brics_cli.images.collection import ANYTHING, Collection, RawImage, Wanted, check_num_bytes, virtual_shards
from brics_cli.images.pixels import ImageError, is_image_file
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.memory import Names, ProcessCache
from brics_cli.wording import count
from brics_cli.workspace.mirrors import present

MAGIC = b"\xde\xc0\xef\xbe"
"""At byte 16 of `data.mdb`."""
_MAGIC_OFFSET = 16
SHORTEST_IMAGE = 64
"""Bytes. A shorter value is a note such as a count, no image."""
_NUM_SNIFFED = 8
_SAFE_KEY = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class _Environment:
    """One open LMDB, closed when nobody holds it any more: LMDB allows one per file and process."""

    def __init__(self, path: Path) -> None:
        try:
            with present(data_file(path)):  # then it is mapped, whatever becomes of its name
                self.environment = lmdb.open(
                    str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_spare_txns=64
                )
            last_page, page_size = self.environment.info()["last_pgno"], self.environment.stat()["psize"]
        except lmdb.Error as error:
            raise _unreadable(path, error) from None
        size_bytes, needed = data_file(path).stat().st_size, (last_page + 1) * page_size
        if size_bytes < needed:
            self.environment.close()
            raise ArtefactError(
                f"the LMDB {path} is truncated: {size_bytes:,} of {needed:,} bytes", next="Download it again."
            )


_open: WeakValueDictionary[tuple[int, int], _Environment] = WeakValueDictionary()
"""By device and inode: collections of one file share what LMDB lets a process open only once."""


def _close_all() -> None:
    for environment in list(_open.values()):
        environment.environment.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_all)  # an environment must not be used across a fork


def _environment(path: Path) -> _Environment:
    status = data_file(path).stat()
    key = (status.st_dev, status.st_ino)
    environment = _open.get(key)
    if environment is None:
        environment = _open[key] = _Environment(path)
    return environment


class LmdbCollection(Collection):
    """The images in an LMDB (its folder or its file), in the order of their keys.

    Raises UsageError when its values are no images, ArtefactError when it is damaged or truncated.
    """

    kind = "LMDB"

    def __init__(self, path: str, files: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        # data.mdb is opened through its folder, whose name says what it is
        self._file = Path(path).parent if Path(path).name == "data.mdb" else Path(path)
        self.path = str(self._file)
        self._environments = ProcessCache(_environment, limit=1)
        keys: list[bytes] = []
        sizes: list[int] = []
        sniffed: list[bool] = []
        try:
            with self._transaction() as transaction, transaction.cursor() as cursor:
                for key, value in cursor:
                    if len(value) < SHORTEST_IMAGE:
                        self.passed_over.reasons[f"values of fewer than {SHORTEST_IMAGE} bytes"] += 1
                        continue
                    if len(sniffed) < _NUM_SNIFFED:
                        sniffed.append(is_image_file(bytes(value[:SHORTEST_IMAGE])))
                    keys.append(bytes(key))
                    sizes.append(len(value))
        except lmdb.Error as error:
            raise _unreadable(self._file, error) from None
        if not any(sniffed):
            raise UsageError(
                f"the LMDB {self._file} holds no image files"
                + (f" among its {count(len(keys), 'value')}" if keys else ""),
                next="brics reads LMDBs whose values are webp, jpeg or png files, such as LSUN's.",
            )
        self._keys = Names(key.decode("latin-1") for key in keys)
        shown = [self._shown(position) for position in range(len(keys))]
        self.shards = virtual_shards(sizes, rows=list(zip(shown, sizes, strict=True)))

    def describe(self) -> str:
        form = "LSUN LMDB" if self._file.name.endswith("_lmdb") else "LMDB"
        return f"{count(len(self), 'image')}, {form}, {self._file.name.removesuffix('_lmdb')}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return self._shown(self.starts[shard_index] + index)

    def _shown(self, position: int) -> str:
        """The key as text; in hexadecimal when it is not a plain word, so that it can name a file."""
        key = self._keys[position].encode("latin-1")
        return key.decode("ascii") if _SAFE_KEY.fullmatch(key) else key.hex()

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self.starts[shard_index] + index
        try:
            with self._transaction() as transaction:
                value = transaction.get(self._keys[position].encode("latin-1"))
                if value is None:
                    raise ImageError("gone from the LMDB since it was opened")
                check_num_bytes(len(value))
                data = bytes(value)
        except lmdb.Error as error:
            raise _unreadable(self.path, error) from None
        return RawImage(self._shown(position), data, None, None, shard_index, index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return [str(data_file(self._file))]

    def _transaction(self) -> lmdb.Transaction:
        return self._environments[self._file].environment.begin(buffers=True)


def _unreadable(path: Path | str, error: lmdb.Error) -> BricsError:
    damaged = ArtefactError(f"the LMDB {path} is damaged ({error})", next="Download it again.")
    return machine_error(error, where=path) or damaged


def data_file(path: Path) -> Path:
    """The file of the LMDB `path`, which is its folder or the file itself."""
    return path / "data.mdb" if path.is_dir() else path


def is_lmdb(path: Path) -> bool:
    """Whether `path` (a folder or a file) is an LMDB, by its magic number."""
    file = data_file(path)
    if not file.is_file():
        return False
    with present(file) as here, here.open("rb") as opened:
        opened.seek(_MAGIC_OFFSET)
        return opened.read(len(MAGIC)) == MAGIC


FORMAT = Format(
    "an LMDB",
    reads="LMDBs",
    suffixes=(".mdb", ".lmdb"),
    open=LmdbCollection,
    is_file=lambda path, first: is_lmdb(path),
    files_in=lambda folder: [folder] if is_lmdb(folder) else [],
    own_files=frozenset({"data.mdb", "lock.mdb"}),
)
