"""Writing beside computing: order, bounded waiting, errors that come back at once, nothing half-written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from brics_cli.sampling.write_behind import Cancelled, WriteBehind


def test_items_are_consumed_in_order_in_another_thread() -> None:
    seen: list[tuple[int, str]] = []

    def consume(items: Iterator[int]) -> None:
        seen.extend((item, threading.current_thread().name) for item in items)

    with WriteBehind(consume) as writer:
        for item in range(20):
            writer.put(item)
    assert seen == [(item, "brics-write-behind") for item in range(20)]


def test_no_more_items_wait_than_agreed() -> None:
    taken, gate = [], threading.Event()

    def consume(items: Iterator[int]) -> None:
        for item in items:
            taken.append(item)
            gate.wait(10)

    with WriteBehind(consume, depth=2) as writer:
        for item in range(3):
            writer.put(item)  # one is being consumed, two wait
        threading.Timer(0.2, gate.set).start()
        start = time.perf_counter()
        writer.put(3)
        assert time.perf_counter() - start > 0.1
    assert taken == [0, 1, 2, 3]


def test_an_error_is_raised_by_the_next_look() -> None:
    def consume(items: Iterator[int]) -> None:
        for item in items:
            if item == 1:
                raise OSError(28, "No space left on device")

    seen = []
    with pytest.raises(OSError, match="No space"), WriteBehind(consume) as writer:
        for item in range(1000):
            writer.put(item)
            time.sleep(0.001)
            writer.check()
            seen.append(item)
    assert len(seen) < 100


def test_an_error_of_the_last_item_is_not_lost() -> None:
    def consume(items: Iterator[int]) -> None:
        list(items)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), WriteBehind(consume) as writer:
        writer.put(0)


def test_an_exception_in_the_block_gives_up_what_is_not_whole() -> None:
    ended: list[str] = []

    def consume(items: Iterator[int]) -> None:
        try:
            list(items)
            ended.append("whole")
        except Cancelled:
            ended.append("given up")
            raise

    with pytest.raises(KeyboardInterrupt), WriteBehind(consume) as writer:
        writer.put(0)
        raise KeyboardInterrupt
    assert ended == ["given up"] and not any(t.name == "brics-write-behind" for t in threading.enumerate())
