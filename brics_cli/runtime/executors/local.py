"""The local executor: one process per device of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from brics_cli.errors import MachineError
from brics_cli.isolation import child_command, child_environment
from brics_cli.runtime.executors.executor import EventT, TaskT, Work
from brics_cli.runtime.executors.worker import NUMBER

STOP_S = 5.0
"""Seconds that a worker has to end before it is killed."""


class LocalExecutor:
    """A process for each of `devices`; a device named twice gets two. Each takes the next task when it is ready.

    They are started afresh, not forked (CUDA cannot be used in a forked one) and not by multiprocessing, which would
    run the caller's script again in each. Every worker has a pipe of its own for its events, so that one that is
    killed can leave no lock held and no message cut in half for the others. They end with their parent, however that
    ends.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def run(self, work: Work[TaskT, EventT], tasks: Sequence[TaskT]) -> Iterator[EventT]:
        """See `Executor.run`."""
        workers: dict[Connection, tuple[str, subprocess.Popen[bytes]]] = {}
        numbers = _numbers(len(tasks))
        try:
            try:
                for device in self.devices[: len(tasks)]:
                    ours, process = _start(numbers)
                    workers[ours] = (device, process)
                    with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, and its pipe says so below
                        ours.send((work, device, list(tasks)))
            finally:
                os.close(numbers)
            running = dict(workers)
            while running:
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    try:
                        kind, value = ready.recv()
                    except (EOFError, ConnectionResetError):
                        raise _death(*running[ready]) from None
                    if kind == "event":
                        yield value
                    elif kind == "error":
                        raise value
                    else:
                        del running[ready]
        finally:
            _stop([process for _, process in workers.values()])
            for connection in workers:
                connection.close()


def _numbers(num: int) -> int:
    """The end to read from of a pipe that holds the numbers 0 to `num` - 1; a thread fills it as it empties."""
    read, write = os.pipe()

    def fill() -> None:
        with suppress(BrokenPipeError):  # nobody is left to read
            for number in range(num):
                os.write(write, NUMBER.pack(number))
        os.close(write)

    threading.Thread(target=fill, name="brics-tasks", daemon=True).start()
    return read


def _start(numbers: int) -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = multiprocessing.Pipe()
    # Ctrl-C reaches the whole group, and a process that is only importing would answer with a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        command = child_command("brics_cli.runtime.executors.worker", theirs.fileno(), numbers)
        process = subprocess.Popen(command, env=child_environment(), pass_fds=[theirs.fileno(), numbers])
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that the worker's death ends the pipe
    return ours, process


def _stop(processes: Sequence[subprocess.Popen[Any]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _death(device: str, process: subprocess.Popen[Any]) -> MachineError:
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    code = process.returncode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    causes = {-signal.SIGKILL: "out of memory?", -signal.SIGBUS: "a file that it read was cut short?"}
    why = f" ({causes[code]})" if code in causes else ""
    return MachineError(
        f"the process of device {device} {how}{why}", next="What is whole is kept: run the same command again."
    )
