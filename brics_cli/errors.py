"""What can go wrong, and the exit code each kind ends with (DESIGN section 8).

Every error a user can cause is a `BricsError` whose text is one line: what is wrong, where, what to do next.
Anything else that reaches `brics_cli.cli` is a bug and exits 1.
"""

from __future__ import annotations

import errno
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
    INTERRUPTED = 130


class BricsError(Exception):
    """Base of every expected error: `BricsError("what is wrong, and where", next="what to do")`."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, *, next: str | None = None) -> None:
        self.what = what
        self.next = next
        stop = "" if what.endswith((".", "?")) else "."
        super().__init__(what if next is None else f"{what}{stop} {next}")


class UsageError(BricsError):
    """A flag, a config key or an input path that cannot be meant (exit 2)."""

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
    """Ctrl-C or SIGTERM ended a command after it saved its state (exit 130)."""

    exit_code = ExitCode.INTERRUPTED


_MACHINE_ERRNOS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the device", "Free some space and run the same command again."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and run the same command again."),
    errno.EROFS: ("the file system is read-only", "Write somewhere else with --out."),
    errno.EACCES: ("permission denied", "Check the permissions, or use another path."),
    errno.EPERM: ("operation not permitted", "Check the permissions, or use another path."),
    errno.EIO: ("input/output error", "The disk or the network mount is failing; check it."),
    errno.ENOMEM: ("out of memory", "Use a smaller --batch-size."),
    errno.EMFILE: ("too many open files", "Raise `ulimit -n`."),
}


_PATH_ERRNOS: dict[int, str] = {
    errno.ENOTDIR: "a file stands where a directory is needed",
    errno.EISDIR: "a directory stands where a file is needed",
    errno.EEXIST: "a file stands where a directory is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "the links go in circles",
}


_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")
"""What a plain RuntimeError of torch says when memory ran out: of a driver, of its CPU allocator, of a CUDA library."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device, or of the machine, ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def as_brics_error(error: BaseException) -> BricsError | None:
    """The `BricsError` that says what `error` (disk, permission, memory) means to a user; None for a bug."""
    if isinstance(error, BricsError):
        return error
    if is_out_of_memory(error):
        first_line = (str(error) or "out of memory").splitlines()[0]
        return MachineError(f"out of memory ({first_line})", next="Use a smaller --batch-size.")
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
        what, next_step = _MACHINE_ERRNOS[error.errno]
        where = f": {error.filename}" if error.filename else ""
        return MachineError(f"{what}{where}", next=next_step)
    if isinstance(error, OSError) and error.errno in _PATH_ERRNOS:
        return UsageError(f"{_PATH_ERRNOS[error.errno]}: {error.filename}", next="Use another path.")
    return None
