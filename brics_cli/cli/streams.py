"""The standard streams of a long command: there from the start, and not missed when their reader is gone."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

_on_sigbus: Callable[[int], None] | None = None  # what C calls must stay


class _Outliving(io.TextIOWrapper):
    """A text stream that goes on to nowhere once nobody reads it: a dead `tee` must not end days of training.

    Other errors of stdout are raised, once: a result that could not be written is not done.
    """

    is_result = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for what is still in the buffer, and for libraries that write there
        os.close(nowhere)
        if self.is_result and error.errno != errno.EPIPE:
            error.filename = "standard output"
            raise error


def prepare_streams() -> None:
    """Open what was closed (`>&-`), write what an encoding lacks as an escape, and outlive the readers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file to be opened would take its place, and get what is meant for the terminal
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = _outliving(sys.stdout, 1)
    sys.stdout.is_result = True
    sys.stderr = _outliving(sys.stderr, 2)


def _outliving(stream: TextIO | None, descriptor: int) -> _Outliving:
    buffer = stream.buffer if stream is not None else open(descriptor, "wb", closefd=False)  # noqa: SIM115
    encoding = stream.encoding if stream is not None else "utf-8"
    line_buffering = descriptor == 2 or os.isatty(descriptor)
    return _Outliving(buffer, encoding, errors="backslashreplace", line_buffering=line_buffering)


def explain_sigbus(exit_code: int) -> None:
    """Let SIGBUS end the process with a line: what is mapped into memory was cut short, or its disk failed.

    Stores, LMDBs and weights are mapped. Their sizes are looked at before they are read; this is for what happens
    in between. The signal is one of the thread that reads, so Python cannot raise; it can say so.
    """
    global _on_sigbus
    line = (
        b"error: a file was cut short, or its disk failed, while it was read (SIGBUS). What is whole is kept: see that "
        b"nothing else writes to the files that this command reads, and run it again.\n"
    )

    def end(number: int) -> None:
        os.write(2, line)
        os._exit(exit_code)

    _on_sigbus = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    ctypes.CDLL(None).signal(int(signal.SIGBUS), _on_sigbus)
