"""How a job tells what it is doing without printing: the `Reporter` protocol that `brics_cli.cli` implements.

And what text from files, names and configs becomes before anybody prints it: `printable`, and `command_line` in advice.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from brics_cli.wording import duration

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls, ESC among them; zero-width, bidi and line-separating characters; bytes that are no UTF-8; tags."""


def printable(text: str, *, keep: str = "") -> str:
    """`text` with what a terminal obeys, or nobody sees, written out as in Python: `\\x1b`, `\\u202e`.

    `keep`: what is left as it is, for text whose line ends are ours. Bytes of a file name that are no UTF-8 come out
    as those bytes. Printable text stays as it is, so that doing it twice does nothing.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    return repr(character)[1:-1] if code < 0xD800 or code > 0xDFFF else f"\\u{code:04x}"


def command_line(*words: str | Path) -> str:
    """A command as a POSIX shell reads it; words that are not printable in the quotes of bash, zsh and ksh."""
    return " ".join(_quoted(os.fspath(word)) for word in words)


def _quoted(word: str) -> str:
    if _UNPRINTABLE.search(word) is None:
        return shlex.quote(word)
    plain = {ord(character) for character in map(chr, range(32, 127)) if character not in "'\\"}
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


class Task(Protocol):
    """One piece of work whose progress is shown."""

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        """`num_units` more are done; `note` replaces the short status text beside the bar."""


class Reporter(Protocol):
    """Where a job sends progress and messages. Never results: those are the job's return value."""

    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> AbstractContextManager[Task]:
        """Show a task of `total` units (None: unknown), `initial` of them done before, while the block runs."""

    def message(self, text: str) -> None:
        """Say one thing worth knowing."""

    def warning(self, text: str) -> None:
        """Say one thing the user may want to act on."""


class TimeSplit:
    """Seconds spent per phase of a loop; as text, the share of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count seconds by phase that another process spent."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def __str__(self) -> str:
        total = max(sum(self.seconds.values()), 1e-9)
        return " ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())


class Clock:
    """A task that counts units and time; `show`, if any, gets a line of it at most every `every_s`."""

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str,
        initial: int = 0,
        *,
        show: Callable[[str], object] | None = None,
        every_s: float = 10.0,
    ) -> None:
        self.description, self.total, self.unit, self.note = description, total, unit, ""
        self.initial = self.done = initial
        self.start = self.shown = time.monotonic()
        self.show, self.every_s = show, every_s

    def advance(self, num_units: int = 1, *, note: str | None = None) -> None:
        self.done += num_units
        self.note = self.note if note is None else note
        if self.show is not None and time.monotonic() - self.shown >= self.every_s:
            self.shown = time.monotonic()
            self.show(f"{self.description}: {self.status()}")

    def status(self) -> str:
        """How far it is, how fast, and when it will be done."""
        per_s = (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{count} {self.unit}", f"{_rate(per_s)} {self.unit}/s"]
        if self.total is not None and self.done > self.initial:
            parts.append(f"ETA {duration((self.total - self.done) / max(per_s, 1e-9))}")
        return "  ".join([*parts, self.note] if self.note else parts)

    def summary(self) -> str:
        """What is said at the end."""
        elapsed = time.monotonic() - self.start
        rate = _rate((self.done - self.initial) / max(elapsed, 1e-9))
        text = f"{self.description}: {self.done:,} {self.unit} in {duration(elapsed)} ({rate}/s)"
        return f"{text}  {self.note}" if self.note else text


class SilentReporter:
    """Says nothing: for library use and tests."""

    @contextmanager
    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> Iterator[Task]:
        yield Clock(description, total, unit, initial)

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass


class StderrReporter:
    """The `Reporter` of library use: messages are lines on stderr, and so is progress; on a terminal, one line that
    moves."""

    def __init__(self) -> None:
        self._width = 0

    @contextmanager
    def task(self, description: str, *, total: int | None, unit: str, initial: int = 0) -> Iterator[Task]:
        show, every_s = (self._move, 0.1) if sys.stderr.isatty() else (self.message, 10.0)
        task = Clock(description, total, unit, initial, show=show, every_s=every_s)
        try:
            yield task
        finally:
            if self._width:  # clear the line that moved
                print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
                self._width = 0
        self.message(task.summary())

    def message(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")

    def _move(self, text: str) -> None:
        text = printable(text)[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"
