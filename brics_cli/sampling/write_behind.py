"""Writing beside computing: items go to one thread that consumes them in order, and its errors come back at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

ItemT = TypeVar("ItemT")

WAKE_S = 0.05
"""How often a side that waits for the other looks whether that one has given up."""
_END = object()


class Cancelled(Exception):
    """Raised inside `consume`: nothing more will come, and what is not whole is to be given up."""


class WriteBehind(Generic[ItemT]):
    """Runs `consume(items)` in a thread while the `with` block runs; `put` hands it the next item.

    At most `depth` items wait, so memory is bounded and a slow disk slows the block down. An error of `consume` is
    raised in the block, by the next `put` or `check`. When the block ends by an exception, the iterator that `consume`
    reads raises `Cancelled`: its own `with` blocks leave nothing half-written.
    """

    def __init__(self, consume: Callable[[Iterator[ItemT]], None], *, depth: int = 2) -> None:
        self._consume = consume
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._cancelled = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="brics-write-behind", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: ItemT) -> None:
        """Hand over `item`, waiting while `depth` others wait. Raises what `consume` raised."""
        self._put(item)

    def check(self) -> None:
        """Raise what `consume` raised, if it did."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is consumed. Raises what `consume` raised."""
        self._put(_END)
        self._thread.join()
        self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._thread.is_alive():
                self.finish()
        finally:
            self._cancelled.set()
            self._thread.join()
        if error is None:
            self.check()

    def _put(self, item: object) -> None:
        while True:
            self.check()
            try:
                self._queue.put(item, timeout=WAKE_S)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            self._consume(self._items())
        except Cancelled:
            pass
        except BaseException as error:
            self._error = error

    def _items(self) -> Iterator[ItemT]:
        while True:
            if self._cancelled.is_set():
                raise Cancelled
            try:
                item = self._queue.get(timeout=WAKE_S)
            except queue.Empty:
                continue
            if item is _END:
                return
            yield item
