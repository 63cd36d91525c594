"""The worker of `on_ray.RayExecutor`: an actor that has set the work up, asks for tasks, and tells when they are whole.

Importing this module needs nothing of what the work does: versions are compared first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import IO, Any

import brics_cli
from brics_cli.errors import MachineError
from brics_cli.runtime.executors import Work, as_it_travels

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "h5py")
"""The bytes that brics writes depend on them."""


@cache
def installed() -> dict[str, str]:
    """What must be the same on all machines: Python, brics and the digest of its code, and what its bytes depend on."""
    code, folder = hashlib.sha256(), Path(brics_cli.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        code.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {package: version(package).partition("+")[0] for package in PACKAGES}  # +cu130, +cpu: the same version
    return {"Python": python, "brics": f"{brics_cli.__version__} ({code.hexdigest()[:12]})", **packages}


class Worker:
    """The work runs in a thread of its own; `listen` waits for what it says, and `give` answers what it asks."""

    def __init__(self) -> None:
        self._said: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._given: SimpleQueue[tuple[Any] | None] = SimpleQueue()
        self._probe: IO[bytes] | None = None

    def begin(
        self, directory: str, expected: dict[str, str], environment: dict[str, str], written_to: str | None
    ) -> tuple[str, str | None]:
        """Go to the driver's `directory`, so that relative paths mean the same, and take over its `environment`: the
        name of this machine, and of a file in the folder `written_to`, which is there until `set_up`.

        Raises MachineError where a folder is not there, or something else than `expected` is installed.
        """
        host = socket.gethostname()
        found = installed()
        if differing := [
            f"{name} {found[name]}, not {expected[name]}" for name in expected if found[name] != expected[name]
        ]:
            raise MachineError(
                f"the Ray worker on {host} has {', '.join(differing)}",
                next="Install on every node what the driver has.",
            )
        os.environ.update(environment)
        folder = directory
        try:
            os.chdir(folder)
            if written_to is not None:
                folder = written_to
                # A name that all outputs take for what a killed process has left.
                self._probe = NamedTemporaryFile(dir=folder, prefix=".brics.tar.", suffix=".tmp")  # noqa: SIM115
        except OSError as error:
            raise MachineError(
                f"the Ray worker on {host} cannot use {folder} ({error.strerror})",
                next="Run the command, and write, on a file system that all nodes share.",
            ) from None
        return host, None if self._probe is None else str(self._probe.name)

    def set_up(self, work: Work[Any, Any], device: str) -> list[tuple[str, Any]]:
        """Start the work; what it said first."""
        if self._probe is not None:
            self._probe.close()
        Thread(target=self._work, args=(work, device), name="brics-work", daemon=True).start()
        return self.listen()

    def listen(self) -> list[tuple[str, Any]]:
        """What the work has said since, at least one: ("events", those up to the end of a task), ("asks", None) for a
        task, or ("error", what it raised)."""
        said = [self._said.get()]
        with suppress(Empty):
            while True:
                said.append(self._said.get_nowait())
        return said

    def give(self, task: tuple[Any] | None) -> None:
        """The answer to one `asks`: a task, or None: finish what was taken."""
        self._given.put(task)

    def _work(self, work: Work[Any, Any], device: str) -> None:
        try:
            run = work(device)
            while True:
                events = []
                for event in run(self._tasks()):
                    events.append(event)
                    if event.num_tasks:
                        self._said.put(("events", events))
                        events = []
                if events:
                    self._said.put(("events", events))
        except Exception as error:
            self._said.put(("error", as_it_travels(error)))

    def _tasks(self) -> Iterator[Any]:
        while True:
            self._said.put(("asks", None))
            given = self._given.get()
            if given is None:
                return
            yield given[0]
