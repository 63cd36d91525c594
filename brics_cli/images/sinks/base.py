"""What every sink shares: an ordered queue of images, encoded in a few threads."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from brics_cli.errors import UsageError
from brics_cli.images.sinks.encodings import PNG, Encoding

_NUM_THREADS = min(os.cpu_count() or 1, 8)
_MAX_PENDING = 64


class Item(NamedTuple):
    """One image on its way; `encoded` is None for a place left empty by `skip`."""

    key: str
    encoded: Future[bytes] | None
    label: int | None
    meta: dict[str, Any] | None


class ImageSink(ABC):
    """Takes images in order inside a `with` block; on an exception only what is whole stays."""

    class_names: tuple[str, ...] = ()
    """What labels 0, 1, ... stand for: set before leaving the block, for a file that has a place for it (a zip)."""

    def __init__(self, path: Path, *, encoding: Encoding = PNG) -> None:
        self.path = path
        self.encoding = encoding
        self.num_written = 0
        self._pending: deque[Item] = deque()
        self._stack = ExitStack()

    def resume_point(self, keys: Sequence[str]) -> int:
        """How many leading `keys` are safely there from an interrupted run; writing goes on with the next one."""
        return 0

    def write(
        self, key: str, image: np.ndarray, *, label: int | None = None, meta: dict[str, Any] | None = None
    ) -> None:
        """Take one uint8 image (H, W, 3). Raises UsageError for a key that is no relative path."""
        check_key(key)
        self._pending.append(Item(key, self._pool.submit(self.encoding.encode, np.array(image)), label, meta))
        self._drain(_MAX_PENDING)

    def skip(self, key: str) -> None:
        """Leave the place of an image that failed empty, so that later ones keep theirs."""
        self._pending.append(Item(key, None, None, None))
        self._drain(_MAX_PENDING)

    def __enter__(self) -> Self:
        self._pool = self._stack.enter_context(ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="brics-write"))
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._discard(error)
            return
        try:
            self._drain(0)
            self._finish()
        except BaseException as late:
            self._discard(late)
            raise
        self._stack.close()

    def _discard(self, error: BaseException) -> None:
        """Remove what is not whole. Another error on the way (the disk still full) must not hide the first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with suppress(OSError, ValueError):
            self._abandon(error)
        with suppress(OSError, ValueError):
            self._stack.__exit__(type(error), error, error.__traceback__)

    def _drain(self, num_left: int) -> None:
        while len(self._pending) > num_left:
            item = self._pending.popleft()
            self._put(item, None if item.encoded is None else item.encoded.result())
            self.num_written += item.encoded is not None

    def _open(self) -> None:  # noqa: B027 - may stay empty
        """Prepare for the first image."""

    @abstractmethod
    def _put(self, item: Item, encoded: bytes | None) -> None:
        """Write one encoded image; None leaves its place empty."""

    def _finish(self) -> None:  # noqa: B027
        """Make what was written last final."""

    def _abandon(self, error: BaseException) -> None:  # noqa: B027
        """Give up what is being written, because of `error`."""


def check_key(key: str) -> None:
    """Raise UsageError for a key that would be written outside the output."""
    parts = key.split("/")
    if not key or ".." in parts or "" in parts or "\0" in key:
        raise UsageError(f"the key {key!r} is not a relative path", next="Such a file name cannot be written safely.")
