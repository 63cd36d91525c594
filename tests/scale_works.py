"""Works for tests of executors: spawned processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brics_cli.errors import ArtefactError

SIGINT_BLOCKED = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""Whether Ctrl-C can reach this process while it is still importing."""


@dataclass(frozen=True)
class SaysWhetherBlocked:
    """Tells whether Ctrl-C was blocked when this file was imported."""

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[bool]:
        yield SIGINT_BLOCKED


@dataclass(frozen=True)
class Squares:
    """Tells (device, task, task squared), after having slept: so that every worker gets some."""

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[tuple[str, int, int]]:
        for task in tasks:
            time.sleep(0.05)
            yield device, task, task**2


@dataclass(frozen=True)
class Fails:
    """Raises an error of ours at task 2."""

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[int]:
        for task in tasks:
            if task == 2:
                raise ArtefactError("shard 2 is damaged", next="Pack it again.")
            yield task


@dataclass(frozen=True)
class Dies:
    """Dies like a process that the kernel kills for its memory."""

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[int]:
        yield next(tasks)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Lingers:
    """Writes its process id, and then never ends."""

    folder: Path

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[int]:
        (self.folder / str(os.getpid())).touch()
        yield os.getpid()
        time.sleep(600)
