"""Works for tests of executors: spawned processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

from brics_cli.errors import ArtefactError

SIGINT_BLOCKED = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""Whether Ctrl-C can reach this process while it is still importing."""


class Told(NamedTuple):
    """An event that ends a task."""

    device: str
    task: int
    value: int
    num_tasks: int = 1


@dataclass(frozen=True)
class Each:
    """A work that does `one` of its tasks after the other; `one` gives what is told of it."""

    def __call__(self, device: str) -> Callable[[Iterator[int]], Iterator[Told]]:
        return lambda tasks: (Told(device, task, self.one(task)) for task in tasks)

    def one(self, task: int) -> int:
        raise NotImplementedError


class SaysWhetherBlocked(Each):
    """Tells whether Ctrl-C was blocked when this file was imported."""

    def one(self, task: int) -> int:
        return int(SIGINT_BLOCKED)


class Squares(Each):
    """Tells the square of a task, after having slept: so that every worker gets some."""

    def one(self, task: int) -> int:
        time.sleep(0.05)
        return task**2


class Fails(Each):
    """Raises an error of ours at task 2."""

    def one(self, task: int) -> int:
        if task == 2:
            raise ArtefactError("shard 2 is damaged", next="Pack it again.")
        return task


class Dies(Each):
    """Dies at task 1 like a process that the kernel kills for its memory."""

    def one(self, task: int) -> int:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@dataclass(frozen=True)
class DiesOnce(Each):
    """Dies over the task `at` the first time that anybody takes it; tells the square of each."""

    folder: Path
    at: int

    def one(self, task: int) -> int:
        marker = self.folder / "died"
        if task == self.at and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task**2


@dataclass(frozen=True)
class Setting(Each):
    """Tells the number that an environment variable is."""

    name: str

    def one(self, task: int) -> int:
        return int(os.environ[self.name])


class ReadsAhead(Each):
    """Takes two tasks ahead of the one it does, as decoding does, and tells of each in two events; dies over task 5."""

    def __call__(self, device: str) -> Callable[[Iterator[int]], Iterator[Told]]:
        def run(tasks: Iterator[int]) -> Iterator[Told]:
            taken: deque[int] = deque()
            for task in chain(tasks, repeat(None)):
                if task is not None:
                    taken.append(task)
                if len(taken) > 2 or (task is None and taken):
                    done = taken.popleft()
                    yield Told(device, done, 0, num_tasks=0)
                    if done == 5:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield Told(device, done, 1)
                elif task is None:
                    return

        return run


@dataclass(frozen=True)
class Lingers(Each):
    """Writes its process id, and then never ends."""

    folder: Path

    def __call__(self, device: str) -> Callable[[Iterator[int]], Iterator[Told]]:
        def run(tasks: Iterator[int]) -> Iterator[Told]:
            (self.folder / str(os.getpid())).touch()
            yield Told(device, next(tasks), os.getpid())
            time.sleep(600)

        return run
