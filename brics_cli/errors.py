"""What can go wrong, and the exit code each kind ends with (DESIGN section 8).

Every error a user can cause is a `BricsError` whose text is one line: what is wrong, where, what to do next.
Anything else that reaches `brics_cli.cli` is a bug and exits 1.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from enum import IntEnum


class ExitCode(IntEnum):
    """The process exit codes of every command."""

    DONE = 0
    BUG = 1
    USAGE = 2
    ARTEFACT = 3
    WOULD_OVERWRITE = 4
    SOME_FAILED = 5
    MACHINE = 6
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class BricsError(Exception):
    """Base of every expected error: `BricsError("what is wrong, and where", next="what to do")`."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, *, next: str | None = None) -> None:
        self.what = what
        self.next = next
        stop = "" if what.endswith((".", "?")) else "."
        super().__init__(what if next is None else f"{what}{stop} {next}")

    def reword(self, change: Callable[[str], str]) -> None:
        """Say the same as `change` says it."""
        BricsError.__init__(self, change(self.what), next=None if self.next is None else change(self.next))


class UsageError(BricsError):
    """A flag, a config key or an input path is wrong (exit 2)."""

    exit_code = ExitCode.USAGE


class ArtefactError(BricsError):
    """Something that an earlier command should have made is missing, damaged or does not fit (exit 3)."""

    exit_code = ExitCode.ARTEFACT


class WouldOverwriteError(BricsError):
    """The output is already there and `--overwrite` was not given (exit 4)."""

    exit_code = ExitCode.WOULD_OVERWRITE


class TooManyFailuresError(BricsError):
    """More images failed than `--max-failures` allows (exit 5)."""

    exit_code = ExitCode.SOME_FAILED


class MachineError(BricsError):
    """The machine said no: disk full, permission, memory, a lock held, training diverged (exit 6)."""

    exit_code = ExitCode.MACHINE


class InterruptedRunError(BricsError):
    """Ctrl-C, SIGTERM or SIGHUP ended a command after it saved its state (exit 130)."""

    exit_code = ExitCode.INTERRUPTED


class NothingSavedError(BricsError):
    """The same of a command that had nothing to save: exit 130, 143 or 129 by the `number` of the signal."""

    def __init__(self, number: int, what: str | None = None) -> None:
        name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(f"{name}; {what}" if what else name)
        self.exit_code = ExitCode(128 + number)


THEN_AGAIN = "Then run the same command again."
_FULL = f"Free some space. {THEN_AGAIN}"
_MOUNT = f"Check the disk or the network mount. {THEN_AGAIN}"
_PERMISSIONS = "Check the permissions, or use another path."
_LOCKED = "Wait for it or end it; to read in spite of its lock: HDF5_USE_FILE_LOCKING=FALSE"
_NO_LOCKS = "See that nothing else writes there, and do without locks: HDF5_USE_FILE_LOCKING=FALSE"
_PROCESSES = f"Raise the limit on processes (`ulimit -u`), or ask for fewer workers. {THEN_AGAIN}"

_MACHINE_ERRNOS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the device", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EFBIG: ("the file would be larger than is allowed here", f"Raise `ulimit -f`. {THEN_AGAIN}"),
    errno.EROFS: ("the file system is read-only", "Write somewhere else."),
    errno.EACCES: ("permission denied", _PERMISSIONS),
    errno.EPERM: ("operation not permitted", _PERMISSIONS),
    errno.EIO: ("input/output error", _MOUNT),
    errno.ESTALE: ("the network mount has lost the file (stale handle)", _MOUNT),
    errno.ETIMEDOUT: ("the network mount does not answer", _MOUNT),
    errno.EREMOTEIO: ("input/output error of a remote disk", _MOUNT),
    errno.EHOSTDOWN: ("the network mount's host is down", _MOUNT),
    errno.EHOSTUNREACH: ("the network mount's host cannot be reached", _MOUNT),
    errno.ENOTCONN: ("the network mount is not connected", _MOUNT),
    errno.ENODEV: ("the device is gone", _MOUNT),
    errno.ENXIO: ("the device is gone", _MOUNT),
    errno.EBUSY: ("busy, in use by something else", f"Free it. {THEN_AGAIN}"),
    errno.ENOMEM: ("out of memory", "Free some, or ask for less at once (a smaller batch, fewer workers)."),
    errno.EMFILE: ("too many open files", f"Raise `ulimit -n`. {THEN_AGAIN}"),
    errno.ENFILE: ("too many open files on this machine", f"Close some programs. {THEN_AGAIN}"),
    errno.EAGAIN: ("no more processes or threads can be started", _PROCESSES),
    errno.ENOLCK: ("no locks on this file system", _NO_LOCKS),
}
"""errno -> what the machine said, and what to do about it. `machine_error` is the one place that looks here."""
_LOCKED_ERRNOS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
_ERRNO_IN_TEXT = re.compile(r"(?:errno(?: =)?|\(os error) (\d+)", re.IGNORECASE)
"""How HDF5 ("errno = 11"), pyarrow ("[errno 5]") and Rust's libraries ("(os error 5)") say what the system said."""


_PATH_ERRNOS: dict[int, str] = {
    errno.ENOTDIR: "there is a file where a directory is needed",
    errno.EISDIR: "there is a directory where a file is needed",
    errno.EEXIST: "there is a file where a directory is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "the links go in circles",
}


_OUT_OF_MEMORY = (
    *("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED"),  # torch: of a driver, of its CPU, of a CUDA library
    *("failed to map segment", "annot allocate memory", "std::bad_alloc"),  # the loader of libraries, C, C++
)
"""What a plain RuntimeError, ImportError or OSError says when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device, or of the machine, ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return True
    text = str(error) if isinstance(error, RuntimeError | ImportError | OSError) else ""
    return any(said in text for said in _OUT_OF_MEMORY)


def errno_of(error: BaseException) -> int | None:
    """The errno behind `error`: its own, or the one that a library wrote into its text; None when there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    found = _ERRNO_IN_TEXT.search(text)
    if found is not None:
        return int(found[1])
    said = text.rpartition(": ")[2]  # lmdb: "PATH: Input/output error"
    return next((number for number in _MACHINE_ERRNOS if os.strerror(number) == said), None)


def machine_error(error: BaseException, *, where: object = None) -> MachineError | None:
    """What `error` of a file or library means when the machine caused it; None when the machine is not the cause.

    `where` is the file, for errors that do not name it.
    """
    if is_out_of_memory(error):
        said = (str(error) or "out of memory").splitlines()[0]
        return MachineError(f"out of memory ({said})", next=_MACHINE_ERRNOS[errno.ENOMEM][1])
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return MachineError("no more threads can be started", next=_PROCESSES)
    number = errno_of(error)
    if number not in _MACHINE_ERRNOS:
        return None
    what, next_step = _MACHINE_ERRNOS[number]
    if number in _LOCKED_ERRNOS and "lock" in str(error):
        what, next_step = "locked by another process", _LOCKED
    where = getattr(error, "filename", None) or where
    return MachineError(f"{what}: {where}" if where else what, next=next_step)


def first_line(error: BaseException) -> str:
    """What `error` says in its first line; its kind when it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def as_brics_error(error: BaseException) -> BricsError | None:
    """The `BricsError` that says what `error` (disk, permission, memory) means to a user; None for a bug."""
    if isinstance(error, BricsError):
        return error
    if isinstance(error, OSError) and error.errno in _PATH_ERRNOS:
        return UsageError(f"{_PATH_ERRNOS[error.errno]}: {error.filename}", next="Use another path.")
    if isinstance(error, FileNotFoundError):
        if not error.filename:  # of tempfile
            return MachineError(str(error.strerror), next="Make one, or name one: TMPDIR=/path/with/room")
        return ArtefactError(f"{error.filename} is missing, or was taken away", next="Check the path.")
    if isinstance(error, RecursionError):
        return ArtefactError("a file that was read is nested too deeply", next="Check the JSON and YAML files given.")
    return machine_error(error)
