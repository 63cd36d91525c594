"""Executors: where a batch job's tasks run, one shard each (DESIGN section 9). `LocalExecutor`: on this machine;
`on_ray.RayExecutor`: on a cluster.

Every worker of this machine is a process that tells by a pipe of its own what happens, so that one that is killed
leaves no lock held and no message cut in half for the others. One more pipe holds the numbers of the tasks: who reads
one has taken it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from brics_cli.errors import MachineError, TooManyFailuresError
from brics_cli.isolation import child_command, child_environment

TaskT = TypeVar("TaskT")
EventT = TypeVar("EventT", bound="Event")
Task_contra = TypeVar("Task_contra", contravariant=True)
Event_co = TypeVar("Event_co", covariant=True, bound="Event")

STOP_S = 5.0
"""Seconds that a worker has to end before it is killed."""
_NUMBER = struct.Struct("<q")


class Event(Protocol):
    """What a worker tells. `num_tasks`: how many more of the tasks it has taken are whole on disk, the oldest first."""

    @property
    def num_tasks(self) -> int: ...


class Work(Protocol[Task_contra, Event_co]):
    """What a worker does: set up once for `device`; what comes back takes tasks, and tells what happens.

    It must be picklable, and so must its events. Asking the iterator for a task is taking it: a worker may read ahead.
    When the iterator ends, what was taken is to be finished; then there may be another iterator. A task's result goes
    to disk under its final name when it is whole, so that nothing is lost with a worker, and doing a task twice does
    no harm.
    """

    def __call__(self, device: str) -> Callable[[Iterator[Task_contra]], Iterator[Event_co]]: ...


@dataclass(frozen=True)
class TaskFailed(Generic[TaskT]):
    """The event of a task that was given up, since worker after worker died over it; `reason` in words."""

    task: TaskT
    reason: str
    num_tasks: int = 1


def settled(
    events: Generator[EventT | TaskFailed[TaskT], None, None], failed: Callable[[TaskFailed[TaskT]], EventT | None]
) -> Generator[EventT, None, None]:
    """`events`, which are closed at the end; for a task that has failed what `failed` makes of it, None for nothing."""
    with closing(events):
        for event in events:
            settled_as = failed(event) if isinstance(event, TaskFailed) else event
            if settled_as is not None:
                yield settled_as


def check_none_failed(failed: Sequence[TaskFailed[Any]], *, what: str) -> None:
    """Raise TooManyFailuresError where some of `what` have failed, for outputs that are nothing without them."""
    if failed:
        raise TooManyFailuresError(
            f"{len(failed):,} of {what} could not be made; the first: {failed[0].reason}",
            next="The others are kept: the same command goes on with those that are missing.",
        )


class Executor(Protocol):
    """Runs `work` over `tasks` on all workers it has; each task is taken by one of them."""

    def run(
        self, work: Work[TaskT, EventT], tasks: Sequence[TaskT], *, folder: Path | None = None
    ) -> Generator[EventT | TaskFailed[TaskT], None, None]:
        """The workers' events as they come, in the order of each worker. Raises what a worker raised.

        `folder` is where workers write, if they do: those on other machines must see it as it is seen here. However it
        ends, no worker is left running.
        """
        ...


class LocalExecutor:
    """A process for each of `devices`; a device named twice gets two. Each takes the next task when it is ready.

    They are started afresh, not forked (CUDA cannot be used in a forked one) and not by multiprocessing, which would
    run the caller's script again in each. They end with their parent, however that ends.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def run(
        self, work: Work[TaskT, EventT], tasks: Sequence[TaskT], *, folder: Path | None = None
    ) -> Generator[EventT, None, None]:
        """See `Executor.run`. Raises MachineError when a worker died."""
        workers: dict[Connection, tuple[str, subprocess.Popen[bytes]]] = {}
        numbers = _pipe_of_numbers(len(tasks))
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
            for _, process in workers.values():
                process.terminate()
            for connection, (_, process) in workers.items():
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                connection.close()


def _pipe_of_numbers(num: int) -> int:
    """The end to read from of a pipe that holds the numbers 0 to `num` - 1; a thread fills it as it empties."""
    read, write = os.pipe()

    def fill() -> None:
        with suppress(BrokenPipeError):  # nobody is left to read
            for number in range(num):
                os.write(write, _NUMBER.pack(number))
        os.close(write)

    threading.Thread(target=fill, name="brics-tasks", daemon=True).start()
    return read


def _start(numbers: int) -> tuple[Connection, subprocess.Popen[bytes]]:
    """A worker, and the pipe to it."""
    # Ctrl-C reaches the whole group, and a process that is only importing would answer with a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        return start_child(__name__, numbers, pass_fds=[numbers], env={})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_child(
    module: str, *arguments: object, pass_fds: Sequence[int], env: dict[str, str], **settings: Any
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start `main()` of `module`, whose first argument is the descriptor of a pipe; our end of it, and the process."""
    ours, theirs = multiprocessing.Pipe()
    descriptor = above_standard_streams(os.dup(theirs.fileno()))
    theirs.close()
    try:
        command = child_command(module, descriptor, *arguments)
        process = subprocess.Popen(command, pass_fds=[descriptor, *pass_fds], env=child_environment(**env), **settings)
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(descriptor)  # so that the child's end is the end of the pipe
    return ours, process


def above_standard_streams(descriptor: int) -> int:
    """The same file under a number that no standard stream has, for a process that is started with it.

    In a program whose standard streams are closed the next file gets one of their numbers, and what the process writes
    to that stream would go into the file.
    """
    import fcntl  # not on every system

    try:
        duplicate: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        return duplicate
    finally:
        os.close(descriptor)


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


def main() -> None:
    """A worker. Its arguments: the descriptors of its pipe, whose first message is (work, device, tasks), and of the
    pipe of numbers."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)
    events: Connection = Connection(int(sys.argv[1]))

    def taken() -> Iterator[Any]:
        while number := os.read(int(sys.argv[2]), _NUMBER.size):  # whole or nothing: that is how they are written
            yield tasks[_NUMBER.unpack(number)[0]]

    def end_with_parent() -> None:
        with suppress(EOFError, OSError):
            events.recv()  # nothing more comes but the end
        os._exit(1)

    try:
        work, device, tasks = events.recv()
        threading.Thread(target=end_with_parent, daemon=True).start()
        for event in work(device)(taken()):
            events.send(("event", event))
        events.send(("done", None))
    except Exception as error:
        events.send(("error", as_it_travels(error)))


def as_it_travels(error: Exception) -> Exception:
    """`error`, or where that cannot be pickled, its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
