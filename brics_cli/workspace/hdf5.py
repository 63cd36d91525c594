"""Reading an HDF5 file, whatever somebody did to it: libhdf5 can crash, hang or ask for all memory on a damaged one.

So a process of its own (`main`), with limits, tells the outline of a file: its attributes, and where each dataset
is. The values are read from there without libhdf5; every read is checked against the length of the file. An
outline is JSON, since nothing that comes from such a process is to be trusted:

    {"attributes": {NAME: value}, "datasets": {PATH: {"dtype", "shape", "offset", "written"}}}
    or {"error": text}

`dtype` is null for texts of variable length, `offset` for datasets that are not written or not in one piece. Datasets
that the file's attribute `virtual` names are left out: to open one takes as long as it has sources. An outline is
remembered for as long as the file is the same one, by its inode, size and times; in the user's cache for later
processes, too, once these times are old enough to tell.

No lock is taken, so a read-only or NFS mount will do; one that is held is respected. What the machine said (a lock,
EIO, too many open files) is told from a file that is damaged: `errors.machine_error`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from brics_cli.errors import MachineError, machine_error
from brics_cli.isolation import child_command, child_environment
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.workspace.files import GRANULARITY_NS, cache_folder, write_text_atomically
from brics_cli.workspace.locks import locks_are_off

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LIMIT_S = 60.0
"""Seconds of waiting for outlines: a process that computes is ended sooner, after `CPU_S` for each file."""
CPU_S = 8
"""Processor seconds for each file: an outline takes milliseconds."""
TOO_SLOW = "The machine or its disk is too slow now: try again."
MEMORY_BYTES = 4 << 30
MOST_BYTES = 16 << 20
"""Of an outline."""
MOST_AT_ONCE = 32
MOST_REMEMBERED = 4096

_Signature = tuple[int, int, int, int, int]
_outlines: dict[_Signature, dict[str, Any]] = {}


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """The file, open for reading while the block runs.

    Raises MachineError when the machine is why it cannot be read, then or within the block; OSError when the file is:
    it is no HDF5, truncated, or crashes libhdf5.
    """
    try:
        with path.open("rb") as file:
            _check_not_locked(file)
            outline = _outlines_of([file], keep=True)[0]
            if "error" in outline:
                raise OSError(outline["error"])
            yield Hdf5File(file, outline)
    except (OSError, RuntimeError, MemoryError) as error:
        said = machine_error(error, where=path)
        if said is None:
            raise
        raise said from None


def look_ahead(paths: Sequence[Path], *, keep: bool = False) -> None:
    """Take the outlines of several files in one process, for `open_hdf5` to find: that is 20 times as fast.

    `keep` them for later processes, too: not for files that are soon to be removed.
    """
    for start in range(0, len(paths), MOST_AT_ONCE):
        with ExitStack() as stack:
            files = []
            for path in paths[start : start + MOST_AT_ONCE]:
                with suppress(OSError):  # `open_hdf5` says so
                    files.append(stack.enter_context(path.open("rb")))
            with suppress(MachineError):  # the same
                _outlines_of(files, keep=keep)


def remember_own(path: Path) -> None:
    """Take the outline of a file that this process has just written, in this process: it was not tampered with."""
    with path.open("rb") as file:
        signature, outline = _signature(file), _outline(str(path))
        _remember(signature, outline)
        _keep(file, signature, outline)


class Hdf5File:
    """`file.attrs[name]`, `file[path][rows]`, `path in file`, as in h5py.

    What does not fit the file raises ValueError, and what is not there KeyError.
    """

    def __init__(self, file: BinaryIO, outline: dict[str, Any]) -> None:
        self._file = file
        self.attrs: dict[str, Any] = outline["attributes"]
        self._datasets: dict[str, Any] = outline["datasets"]

    def __contains__(self, path: str) -> bool:
        return path in self._datasets

    def __getitem__(self, path: str) -> Hdf5Dataset:
        if path not in self._datasets:
            raise KeyError(f"no dataset {path!r}")
        return Hdf5Dataset(self._file, path, self._datasets[path])

    def get(self, path: str) -> Hdf5Dataset | None:
        """The dataset at `path`, or None."""
        try:
            return self[path]
        except KeyError:
            return None


class Hdf5Dataset:
    """`dataset[()]`, `dataset[i]`, `dataset[i:j]`. `offset` is where its values begin, None when not in one piece."""

    TEXT = struct.Struct("<IQI")
    """An element of variable length: its length, the address of a heap, and its number there."""

    def __init__(self, file: BinaryIO, path: str, outline: dict[str, Any]) -> None:
        import numpy as np

        self._file, self._path = file, path
        self._is_text = outline["dtype"] is None
        self.dtype: np.dtype[Any] = np.dtype("O") if self._is_text else _dtype(outline["dtype"])
        if self.dtype.hasobject != self._is_text:
            raise ValueError(f"{path} holds neither numbers nor text")
        self.shape = tuple(int(side) for side in outline["shape"])
        self.offset: int | None = outline["offset"]
        self._is_blank = self._is_text and not outline["written"]
        self._row_bytes = math.prod(self.shape[1:]) * (self.TEXT.size if self._is_text else self.dtype.itemsize)
        end = (self.offset or 0) + math.prod(self.shape[:1]) * self._row_bytes
        if min(self.shape, default=0) < 0 or (self.offset or 0) < 0:
            raise ValueError(f"{path} has a shape or a place that nothing has")
        if self.offset is not None and end > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path} reaches beyond the end of the file")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, tuple):
            return self._read(0, self.shape[0] if self.shape else 1).reshape(self.shape)
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._read(start, max(start, stop)).reshape(-1, *self.shape[1:])
        row = range(self.shape[0])[rows]
        return self._read(row, row + 1).reshape(self.shape[1:])[()]

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        import numpy as np

        if start == stop or 0 in self.shape:
            return np.empty(0, self.dtype)
        if self._is_blank:
            return np.full((stop - start) * math.prod(self.shape[1:]), b"", object)
        if self.offset is None:
            raise ValueError(f"{self._path} is not stored in one piece")
        data = np.empty((stop - start) * self._row_bytes, np.uint8)
        self._file.seek(self.offset + start * self._row_bytes)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError(f"{self._path} reaches beyond the end of the file")
        if not self._is_text:
            return data.view(self.dtype)
        heaps: dict[int, dict[int, bytes]] = {}
        texts = []
        for length, address, number in self.TEXT.iter_unpack(data.data):
            if address and address not in heaps:
                heaps[address] = dict(_heap(self._file, address))
            texts.append(heaps[address][number][:length] if address and length else b"")
        return np.array(texts, object)


def _heap(file: BinaryIO, address: int) -> Iterator[tuple[int, bytes]]:
    """The texts of the global heap at `address`, by their numbers."""
    size = os.fstat(file.fileno()).st_size
    if address > size - 16:
        raise ValueError("a text lies beyond the end of the file")
    file.seek(address)
    signature, num_bytes = struct.unpack("<4s4xQ", file.read(16))
    if signature != b"GCOL" or num_bytes > size - address:
        raise ValueError("a heap of texts is damaged")
    data = file.read(num_bytes - 16)
    position = 0
    while position + 16 <= len(data):
        number, length = struct.unpack_from("<H6xQ", data, position)
        if number == 0:  # what is free
            return
        yield number, data[position + 16 : position + 16 + length]
        position += 16 + (length + 7) // 8 * 8


def _dtype(descriptor: Any) -> np.dtype[Any]:
    """A numpy dtype from its `_descriptor`."""
    import numpy as np

    if isinstance(descriptor, str):
        return np.dtype(descriptor)
    return np.dtype([(name, _dtype(base), tuple(shape)) for name, base, shape in descriptor])


def _check_not_locked(file: BinaryIO) -> None:
    """Raise OSError (EAGAIN) while another process has it open for writing. Without locks there is nobody to see.

    brics writes under another name and renames: only other programs change a store in place.
    """
    if locks_are_off():
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise OSError(error.errno, "locked by another process", file.name) from None


def _signature(file: BinaryIO) -> _Signature:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remember(signature: _Signature, outline: dict[str, Any]) -> None:
    if "error" not in outline:  # that may pass, as what the machine says does
        if len(_outlines) >= MOST_REMEMBERED:
            _outlines.pop(next(iter(_outlines)), None)
        _outlines[signature] = outline


def _memory(file: BinaryIO) -> Path:
    """Where the outline of the file at this path is kept for later processes, with its signature."""
    path = os.path.abspath(file.name)  # noqa: PTH100 - no link is followed
    return cache_folder("outlines") / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _keep(file: BinaryIO, signature: _Signature, outline: dict[str, Any]) -> None:
    with suppress(OSError, RuntimeError):  # no place for caches: the next process reads it again
        write_text_atomically(_memory(file), json.dumps([signature, outline]))


def _kept(file: BinaryIO, signature: _Signature) -> dict[str, Any] | None:
    with suppress(OSError, RuntimeError, ValueError, TypeError, AttributeError):
        known, outline = parse_json(read_bytes(_memory(file), most=MOST_BYTES))
        if known == list(signature) and {"attributes", "datasets"} <= outline.keys():
            _remember(signature, outline)
            return dict(outline)
    return None


def _outlines_of(files: Sequence[BinaryIO], *, keep: bool) -> list[dict[str, Any]]:
    """The outline of each; {"error": reason} for one that cannot be read."""
    start = time.time_ns()
    signatures = {file: _signature(file) for file in files}  # before they are read: what is changed then has another
    found = {file: _outlines.get(each) or _kept(file, each) for file, each in signatures.items()}
    wanted = [file for file, outline in found.items() if outline is None]
    while wanted:
        for outline in _in_child(wanted):
            file = wanted.pop(0)
            found[file], signature = outline, signatures[file]
            _remember(signature, outline)
            is_settled = max(signature[3:]) < start - GRANULARITY_NS
            if keep and is_settled and "error" not in outline:
                _keep(file, signature, outline)
    return [outline for outline in found.values() if outline is not None]


def _in_child(files: Sequence[BinaryIO]) -> list[dict[str, Any]]:
    """The outlines of the first files, up to and with the first that ends the process, at least one."""
    descriptors = [file.fileno() for file in files]
    try:
        child = subprocess.run(
            child_command("brics_cli.workspace.hdf5", *descriptors),
            env=child_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=descriptors,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").split(b"\n")[1:-1]
        if not lines:  # it had computed for less than its limit: nothing is known of the file
            raise MachineError(f"reading {files[0].name} did not end in {LIMIT_S:.0f} s", next=TOO_SLOW) from None
        return [json.loads(line) for line in lines]
    ready, *lines = child.stdout.split(b"\n")[:-1] or [b""]
    if ready != b"ready":
        last = (child.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise MachineError(f"the process that reads HDF5 files did not start ({last})", next="Try the command again.")
    outlines: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if len(outlines) < len(files):
        reason = "does not end" if child.returncode == -signal.SIGXCPU else "crashes libhdf5"
        outlines.append({"error": f"reading it {reason}"})
    return outlines


def main() -> None:
    """The life of the process; its arguments: descriptors of files. One line for each, after one that says ready."""
    if not os.path.exists("/dev/fd"):  # noqa: PTH110
        sys.exit("/dev/fd is missing")
    import h5py  # noqa: F401 - before any limit

    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    print("ready", flush=True)
    for descriptor in sys.argv[1:]:
        limit(resource.RLIMIT_CPU, math.ceil(sum(os.times()[:2])) + CPU_S)
        try:
            text = json.dumps(_outline(f"/dev/fd/{descriptor}"))
            if len(text) > MOST_BYTES:
                raise ValueError(f"its attributes take more than {MOST_BYTES >> 20} MiB")
        except (MemoryError, Exception) as error:
            text = json.dumps({"error": str(error) or type(error).__name__})
        print(text, flush=True)


def limit(which: int, most: int) -> None:
    """Set a soft limit, or leave it where the user's own hard one (`ulimit -v`, `ulimit -t`) is lower."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _outline(path: str) -> dict[str, Any]:
    """The outline of the file at `path`. Raises whatever h5py does for a damaged one."""
    import h5py

    datasets: dict[str, Any] = {}

    def look(name: str) -> None:  # links are not followed
        if name in virtual:
            return
        item = file[name]
        if isinstance(item, h5py.Dataset):
            text = h5py.check_string_dtype(item.dtype)
            is_text = text is not None and text.length is None
            in_one_piece = item.chunks is None and item.external is None and not item.is_virtual
            datasets[name] = {
                "dtype": None if is_text else _descriptor(item.dtype),
                "shape": list(item.shape),
                "offset": item.id.get_offset() if in_one_piece else None,
                "written": not in_one_piece or item.id.get_storage_size() > 0,
            }

    with h5py.File(path, "r", locking=False) as file:
        virtual = str(file.attrs.get("virtual", "")).split()
        file.visit(look)
        return {"attributes": {name: _plain(value) for name, value in file.attrs.items()}, "datasets": datasets}


def _descriptor(dtype: np.dtype[Any]) -> Any:
    """As in numpy: a text, or (name, descriptor, shape) of each field; opaque when there is padding."""
    fields = [(name, dtype[name]) for name in dtype.names or ()]
    if not fields:
        return dtype.str
    if sum(field.itemsize for _, field in fields) != dtype.itemsize:
        return f"|V{dtype.itemsize}"
    return [[name, _descriptor(field.base), list(field.shape)] for name, field in fields]


def _plain(value: Any) -> Any:
    """An attribute as JSON holds it; bytes that are no UTF-8 become text that is not what was written."""
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):  # h5py makes surrogates of bytes that are no UTF-8, and no file can hold those
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int | float) else repr(value)
