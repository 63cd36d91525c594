"""Writing beside computing: order, bounded waiting, errors that come back at once, nothing half-written."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.engine import Add, Batch, Engine, Writer
from brics_cli.sampling.models import CodesOfSeeds, OnStep
from brics_cli.sampling.tasks import Task

WHOLE = Task(0, range(1000))


def batch(first: int, size: int = 1) -> Batch:
    return Batch(range(first, first + size), size, None, None, None)


class Files:
    """Where batches are written: `written`, and what became of each file."""

    def __init__(self, add: Callable[[Batch], None] = lambda batch: None) -> None:
        self.written: list[tuple[int, str]] = []
        self.ended: list[str] = []
        self.add = add

    def open(self, task: Task) -> AbstractContextManager[Add]:
        return self._open(task)

    @contextmanager
    def _open(self, task: Task) -> Iterator[Add]:
        def add(batch: Batch) -> None:
            self.add(batch)
            self.written.append((batch.seeds.start, threading.current_thread().name))

        try:
            yield add
            self.ended.append(f"{task.number} is whole")
        except BaseException:
            self.ended.append(f"{task.number} is given up")
            raise


def no_thread_is_left() -> bool:
    return not any(thread.name.startswith("brics-write-behind") for thread in threading.enumerate())


def test_batches_are_written_in_order_in_another_thread() -> None:
    files = Files()
    with Writer(files.open) as writer:
        for number in range(2):
            for seed in range(10):
                writer.put(Task(number, range(10)), batch(seed))
    assert [seed for seed, _ in files.written] == [*range(10), *range(10)]
    assert {thread for _, thread in files.written} == {"brics-write-behind_0"}
    assert files.ended == ["0 is whole", "1 is whole"] and no_thread_is_left()
    assert writer.told()[0] == 20 and writer.told() == (0, 0.0)


def test_no_more_batches_wait_than_agreed() -> None:
    gate = threading.Event()
    files = Files(lambda batch: assert_set(gate.wait(10)))
    with Writer(files.open) as writer:
        for seed in range(3):
            writer.put(Task(0, range(4)), batch(seed))  # one is being written, two wait
        threading.Timer(0.2, gate.set).start()
        start = time.perf_counter()
        writer.put(Task(0, range(4)), batch(3))
        assert time.perf_counter() - start > 0.1
    assert len(files.written) == 4


def assert_set(was_set: bool) -> None:
    assert was_set


def fails_at(seed: int) -> Callable[[Batch], None]:
    def add(batch: Batch) -> None:
        if batch.seeds.start == seed:
            raise OSError(28, "No space left on device")

    return add


def test_an_error_is_raised_by_the_next_look_and_the_file_is_given_up() -> None:
    files, seen = Files(fails_at(1)), []
    with pytest.raises(OSError, match="No space"), Writer(files.open) as writer:
        for seed in range(1000):
            writer.put(WHOLE, batch(seed))
            time.sleep(0.001)
            writer.check()
            seen.append(seed)
    assert len(seen) < 100 and files.ended == ["0 is given up"] and no_thread_is_left()


def test_a_file_that_lacks_a_batch_is_never_whole() -> None:
    """The batch after the one that failed ends the file, and waits already when the failure is noticed."""
    files, gate = Files(), threading.Event()

    def add(batch: Batch) -> None:
        gate.wait(10)
        fails_at(0)(batch)

    files.add = add
    with pytest.raises(OSError, match="No space"), Writer(files.open) as writer:
        for seed in range(2):
            writer.put(Task(0, range(2)), batch(seed))
        gate.set()
    assert files.written == [] and files.ended == ["0 is given up"]


def test_an_error_is_raised_again_when_somebody_swallowed_it() -> None:
    """As an error that reads like memory that ran out would be, in the middle of a batch."""
    files = Files(fails_at(0))
    with pytest.raises(OSError, match="No space"), Writer(files.open) as writer:
        writer.put(WHOLE, batch(0))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                writer.finish()
        with pytest.raises(OSError, match="No space"):
            writer.put(WHOLE, batch(1))
    assert files.ended == ["0 is given up"]


def test_an_error_of_the_last_batch_is_not_lost() -> None:
    files = Files(fails_at(0))
    with pytest.raises(OSError, match="No space"), Writer(files.open) as writer:
        writer.put(Task(0, range(1)), batch(0))
    assert files.ended == ["0 is given up"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_an_exception_in_the_block_gives_up_what_is_not_whole(error: type[BaseException]) -> None:
    files = Files()
    with pytest.raises(error), Writer(files.open) as writer:
        writer.put(Task(0, range(1)), batch(0))
        writer.put(Task(1, range(2)), batch(0))
        writer.finish()
        raise error
    assert files.ended == ["0 is whole", "1 is given up"] and no_thread_is_left()


def test_the_memory_of_a_batch_is_free_while_the_next_one_is_computed() -> None:
    before: list[weakref.ref[torch.Tensor]] = []

    def compute(seeds: range, on_step: OnStep) -> CodesOfSeeds:
        assert all(codes() is None for codes in before)
        codes = torch.zeros(len(seeds), 1, 2, 2)
        before.append(weakref.ref(codes))
        return codes, None

    models: Any = SimpleNamespace(
        device=torch.device("cpu"), compute=compute, pixels=lambda codes: np.zeros((len(codes), 8, 8, 3), np.uint8)
    )
    list(Engine(models, sizes=BatchSizes(2), sheet=range(6)).run([Task(None, range(6))]))
    assert len(before) == 3
