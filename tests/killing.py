"""`brics` in a process that tests can interrupt or kill."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from brics_cli.cli.app import run


def die_before_change(number: int, root: Path) -> None:
    """End this process, as kill -9 would, before the `number`-th time (from 0) that it changes what is below `root`.

    Seen are files opened to write, made, renamed and removed by Python; what libhdf5 writes into an open file is not.
    """
    changes = count()

    def end(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"):
            return
        if str(arguments[0]).startswith(str(root)) and next(changes) == number:
            os._exit(KILLED)

    sys.addaudithook(end)


KILLED = 9


class Command:
    """`brics ...` in a forked process: it can be killed like any other, and need not import everything again.

    With `before` it is called there first.
    """

    def __init__(self, arguments: list[str], stderr: Path, before: Callable[[], None] = lambda: None) -> None:
        stderr.touch()  # it is there however early the process is killed
        self.pid = os.fork()
        if self.pid == 0:
            log = os.open(stderr, os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv, sys.stdout, sys.stderr = ["brics", *arguments], os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            code = run(arguments)
            sys.stderr.flush()
            os._exit(code)

    def stop_when(self, condition: Callable[[], bool], number: int, timeout_s: float = 60) -> int:
        """Send signal `number` as soon as `condition` holds; the exit code, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(self.pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill_after(self, seconds: float) -> int:
        """Kill it (-9) after so many seconds, if it has not ended by itself; the exit code, -9 when it was killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
