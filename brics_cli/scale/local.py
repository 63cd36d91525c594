"""The local executor: one process per device of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from brics_cli.errors import MachineError
from brics_cli.scale.executor import EventT, TaskT, Work

STOP_S = 5.0
"""Seconds that a worker has to end before it is killed."""


class LocalExecutor:
    """A process for each of `devices`; a device named twice gets two. Each takes the next task when it is ready.

    Processes are spawned, not forked: CUDA cannot be used in a forked one. Every worker has a pipe of its own, so
    that one that is killed can leave no lock held and no message cut in half for the others. They end with their
    parent, however that ends.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def run(self, work: Work[TaskT, EventT], tasks: Sequence[TaskT]) -> Iterator[EventT]:
        """See `Executor.run`."""
        context = multiprocessing.get_context("spawn")
        taken = context.Value("q", 0)
        workers: dict[Connection, tuple[str, BaseProcess]] = {}
        try:
            for device in self.devices[: len(tasks)]:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(work, device, list(tasks), taken, theirs), daemon=True)
                # Ctrl-C reaches the whole group, and a process that is only importing would answer with a traceback.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                theirs.close()  # so that the worker's death ends the pipe
                workers[ours] = (device, process)
            running = dict(workers)
            while running:
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    try:
                        kind, value = ready.recv()
                    except EOFError:
                        device, dead = running[ready]
                        raise _death(device, dead) from None
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


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


def _death(device: str, process: BaseProcess) -> MachineError:
    process.join(STOP_S)
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    return MachineError(
        f"the process of device {device} {how}{memory}", next="What is whole is kept: run the same command again."
    )


def _serve(work: Work[Any, Any], device: str, tasks: list[Any], taken: Any, events: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tasks_left() -> Iterator[Any]:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(tasks):
                return
            yield tasks[number]

    try:
        for event in work(device, tasks_left()):
            events.send(("event", event))
        events.send(("done", None))
    except Exception as error:
        events.send(("error", _sendable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """`error`, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
