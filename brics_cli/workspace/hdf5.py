"""Opening an HDF5 file to read, whatever somebody did to it.

libhdf5 runs in a process of its own, which tells the outline of the file (`hdf5_outline`); values are read from where
that says they stand. A file that crashes or hangs it is damaged, and nothing more happens. An outline is remembered
for as long as the file is the same one, by its inode, size and times.

No lock is taken, so a read-only or NFS mount will do; one that is held is respected. What the machine said (a lock,
EIO, too many open files) is told from a file that is damaged: `errors.machine_error`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from brics_cli.errors import MachineError, machine_error
from brics_cli.isolation import child_command, child_environment
from brics_cli.workspace.hdf5_values import Hdf5File
from brics_cli.workspace.locks import locks_are_off

LIMIT_S = 60.0
"""Seconds of waiting for an outline: a process that computes is ended sooner (`hdf5_outline.CPU_S`)."""
MOST_AT_ONCE = 32
MOST_REMEMBERED = 256

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
            outline = _outlines_of([file])[0]
            if "error" in outline:
                raise OSError(outline["error"])
            yield Hdf5File(file, outline)
    except (OSError, RuntimeError, MemoryError) as error:
        said = machine_error(error, where=path)
        if said is None:
            raise
        raise said from None


def look_ahead(paths: Sequence[Path]) -> None:
    """Take the outlines of several files in one process, for `open_hdf5` to find: that is 20 times as fast."""
    for start in range(0, len(paths), MOST_AT_ONCE):
        with ExitStack() as stack:
            files = []
            for path in paths[start : start + MOST_AT_ONCE]:
                with suppress(OSError):  # `open_hdf5` says so
                    files.append(stack.enter_context(path.open("rb")))
            _outlines_of(files)


def remember_own(path: Path) -> None:
    """Take the outline of a file that this process has just written, in this process: it was not tampered with."""
    from brics_cli.workspace.hdf5_outline import outline

    with path.open("rb") as file:
        _remember(_signature(file), outline(str(path)))


def _outlines_of(files: Sequence[BinaryIO]) -> list[dict[str, Any]]:
    """The outline of each; {"error": reason} for one that cannot be read."""
    found = {number: _outlines.get(_signature(file)) for number, file in enumerate(files)}
    wanted = [number for number, outline in found.items() if outline is None]
    while wanted:
        for outline in _in_child([files[number] for number in wanted]):
            number = wanted.pop(0)
            found[number] = outline
            _remember(_signature(files[number]), outline)
    return [outline for outline in found.values() if outline is not None]


def _in_child(files: Sequence[BinaryIO]) -> list[dict[str, Any]]:
    """The outlines of the first files, up to and with the first that ends the process, at least one."""
    descriptors = [file.fileno() for file in files]
    process = subprocess.Popen(
        child_command("brics_cli.workspace.hdf5_outline", *descriptors),
        env=child_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        text=True,
    )
    reason = "crashes libhdf5"
    try:
        said, complaint = process.communicate(timeout=LIMIT_S)
    except BaseException as error:
        process.kill()
        said, complaint = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        reason = "does not end"
    ready, *lines = said.split("\n")[:-1] or [""]
    if ready != "ready":
        last = (complaint.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise MachineError(f"the process that reads HDF5 files did not start ({last})", next="Try the command again.")
    outlines: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if len(outlines) < len(files):
        if process.returncode == -signal.SIGXCPU:
            reason = "does not end"
        outlines.append({"error": f"reading it {reason}"})
    return outlines


def _signature(file: BinaryIO) -> _Signature:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remember(signature: _Signature, outline: dict[str, Any]) -> None:
    if "error" in outline:  # that may pass, as what the machine says does
        return
    if len(_outlines) >= MOST_REMEMBERED:
        _outlines.pop(next(iter(_outlines)), None)
    _outlines[signature] = outline


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
