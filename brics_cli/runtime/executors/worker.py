"""A worker of `local`: a process of its own that takes tasks from one pipe and tells what happens by another.

The first message in is (work, device, tasks). The pipe of tasks holds their numbers; who reads one has taken it.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

NUMBER = struct.Struct("<q")


def main() -> None:
    """Its arguments: the descriptors of the pipe of events, and of that of tasks."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)
    events: Connection = Connection(int(sys.argv[1]))
    try:
        work, device, tasks = events.recv()
        threading.Thread(target=_end_with_parent, args=(events,), daemon=True).start()
        for event in work(device, _taken(int(sys.argv[2]), tasks)):
            events.send(("event", event))
        events.send(("done", None))
    except Exception as error:
        events.send(("error", _sendable(error)))


def _taken(numbers: int, tasks: Sequence[Any]) -> Iterator[Any]:
    while number := os.read(numbers, NUMBER.size):  # whole or nothing: that is how they are written
        yield tasks[NUMBER.unpack(number)[0]]


def _end_with_parent(events: Connection) -> None:
    try:
        events.recv()  # nothing more comes but the end
    except (EOFError, OSError):
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """`error`, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
