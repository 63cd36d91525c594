"""From seeds to files on one device: while a batch is computed, the one before it is compressed and written.

Batches are cut where the seed is a multiple of the batch size, and a batch that is wanted in part is computed whole.
So the image of a seed is computed in the same place of the same batch in every run, whatever range was asked for,
wherever it was resumed: equal to the last bit on one kind of device. (Another batch size may change the last bits.)

Any process may take any task; the bytes are those of one process that takes them all.
B images of a batch, (B, H, W, 3) uint8; codes (B, C, h, w).
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from brics_cli.codes import quantise
from brics_cli.codes.parts import write_part
from brics_cli.errors import MachineError, is_out_of_memory
from brics_cli.images.sinks import OutputImage
from brics_cli.runtime.reporting import TimeSplit
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.models import CodesOfSeeds, Models, OnStep
from brics_cli.sampling.plan import Plan
from brics_cli.sampling.tasks import Task, key_of


@dataclass(frozen=True)
class Batch:
    """`seeds`, computed in a batch of `batch_size`, and their labels (None: no classes).

    `images` (b, H, W, 3) uint8, where they were decoded; `codes` (b, C, h, w), where they are kept.
    """

    seeds: range
    batch_size: int
    labels: list[int] | None
    images: np.ndarray | None
    codes: np.ndarray | None

    @property
    def label_of_each(self) -> list[int] | list[None]:
        return self.labels if self.labels is not None else [None] * len(self.seeds)


Add = Callable[[Batch], None]
OpenFile = Callable[[Task], AbstractContextManager[Add]]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Progress:
    """What happened since the last one.

    `seeds` (none of a task for the sheet alone) are computed in batches of `batch_size`. `shown` are images for the
    sheet, by seed; `seconds` by phase: denoise, decode, and write, which is waiting for the disk. `num_written` images
    went to the disk in `writing_s` of the writing thread. `out_of_memory` says where and why memory ran out: `seeds`
    are then what is left of the task, to be computed in smaller batches. `num_tasks` is 1 once a task is whole, where
    each has a run of its own (`runtime.executors.Event`).
    """

    seeds: range = range(0)
    batch_size: int = 0
    shown: dict[int, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    num_written: int = 0
    writing_s: float = 0.0
    out_of_memory: str | None = None
    num_tasks: int = 0


@dataclass(frozen=True)
class OutOfMemory:
    """What a device said when its memory ran out, in one line."""

    reason: str


def attempt(call: Callable[[], ResultT], *, device: torch.device) -> ResultT | OutOfMemory:
    """The result of `call`, or, with everything it held on `device` freed again, that memory ran out."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or "out of memory").splitlines()[0]
    # Only here are the frames gone that held the tensors of the failed batch.
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return OutOfMemory(reason)


def halved(size: int, memory: OutOfMemory, *, device: torch.device) -> int:
    """The batch size after `size`. Raises MachineError when not even one image fits."""
    if size == 1:
        raise MachineError(
            f"out of memory on {device} with one image at a time ({memory.reason})",
            next="Free the memory that other programs hold there, or use --device cpu.",
        )
    return size // 2


class Engine:
    """Draws tasks on the device of `models` and writes them, in batches of `sizes`.

    `open_file` opens what a task is written to (tasks without a number are not written); `keeps_codes`: codes are
    written, not images. Images of the seeds `sheet` come back with the progress. `compute` None is `models.compute`.
    `on_step` is called between two evaluations of the network; what it raises ends the run, and leaves what is whole.
    """

    def __init__(
        self,
        models: Models,
        *,
        sizes: BatchSizes,
        sheet: range,
        open_file: OpenFile | None = None,
        keeps_codes: bool = False,
        compute: Callable[[range, OnStep], CodesOfSeeds] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.models, self.sizes, self.sheet, self.keeps_codes = models, sizes, sheet, keeps_codes
        self.open_file, self.compute, self.on_step = open_file, compute or models.compute, on_step
        self.split = TimeSplit()
        self._last: tuple[range, list[int] | None, Tensor, np.ndarray | None] | None = None

    @classmethod
    def of(cls, plan: Plan, *, sizes: BatchSizes, on_step: OnStep | None = None) -> Self:
        """The engine of a plan."""
        writes, codes = partial(open_file, plan), plan.format == "h5"
        return cls(
            plan.models, sizes=sizes, sheet=plan.sheet_seeds, open_file=writes, keeps_codes=codes, on_step=on_step
        )

    def run(self, tasks: Iterable[Task]) -> Iterator[Progress]:
        """Draw and write `tasks`, telling what happens. Raises OSError when the output cannot be written, MachineError
        when memory holds not even one image, ArtefactError when codes are not finite."""
        device = self.models.device
        with Writer(self.open_file) as writer:

            def on_step() -> None:
                writer.check()
                if self.on_step is not None:
                    self.on_step()

            for task in tasks:
                left = task.seeds
                while left:
                    size = self.sizes.at(left.start)
                    batch = attempt(partial(self._batch, left, size, on_step), device=device)
                    if isinstance(batch, OutOfMemory):
                        writer.check()  # it may have been the writer's memory
                        self._last = None
                        self.sizes.limit = halved(size, batch, device=device)
                        lost = left if task.number is not None else range(0)
                        yield Progress(lost, self.sizes.limit, out_of_memory=f"{device} ({batch.reason})")
                        continue
                    if task.number is not None:
                        with self.split.phase("write"):
                            writer.put(task, batch)
                    yield self._progress(writer, batch, is_written=task.number is not None)
                    left = range(batch.seeds.stop, left.stop)
            with self.split.phase("write"):
                writer.finish()
            yield self._progress(writer)

    @torch.inference_mode()
    def _batch(self, left: range, size: int, on_step: OnStep) -> Batch:
        """The batch that the first of the seeds `left` is in: what is wanted of it, and no more."""
        first = left.start - left.start % size
        whole = range(first, first + size)
        wanted = range(left.start, min(whole.stop, left.stop))
        last, self._last = self._last, None  # a task may want a part of a batch, and the next task the rest
        if last is None or last[0] != whole:
            del last  # its memory is needed now
            with self.split.phase("denoise"):
                codes, labels = self.compute(whole, on_step)
            last = whole, labels, codes, None
        _, labels, codes, images = last
        shown = wanted.start < self.sheet.stop and wanted.stop > self.sheet.start
        if images is None and (shown or not self.keeps_codes):
            with self.split.phase("decode"):
                images = self.models.pixels(codes)
        self._last = whole, labels, codes, images
        rows = slice(wanted.start - first, wanted.stop - first)
        return Batch(
            wanted,
            size,
            None if labels is None else labels[rows],
            None if images is None else images[rows],
            codes[rows].cpu().numpy() if self.keeps_codes else None,
        )

    def _progress(self, writer: Writer, batch: Batch | None = None, *, is_written: bool = True) -> Progress:
        seconds, self.split.seconds = self.split.seconds, {}
        num_written, writing_s = writer.told()
        done = Progress(seconds=seconds, num_written=num_written, writing_s=writing_s)
        if batch is None:
            return done
        images = () if batch.images is None else zip(batch.seeds, batch.images, strict=True)
        shown = {seed: image for seed, image in images if seed in self.sheet}
        return replace(done, seeds=batch.seeds if is_written else range(0), batch_size=batch.batch_size, shown=shown)


@contextmanager
def open_file(plan: Plan, task: Task) -> Iterator[Add]:
    """The file of a task (or its PNG files): takes its batches in order; on an exception nothing half-written stays."""
    assert task.number is not None
    if plan.format == "h5":
        header, shards = plan.store
        with write_part(plan.folder, header, shards[task.number]) as part:

            def add_codes(batch: Batch) -> None:
                assert batch.codes is not None
                part.add(
                    quantise(batch.codes, header.quantisation),
                    keys=[key_of(seed) for seed in batch.seeds],
                    indices=[seed - task.seeds.start for seed in batch.seeds],
                    labels=batch.label_of_each,
                )

            yield add_codes
        return
    sink = plan.sink
    with sink.part(task.number) as put:

        def add_images(batch: Batch) -> None:
            assert batch.images is not None
            images = map(OutputImage, map(key_of, batch.seeds), batch.images, batch.label_of_each)
            with sink.encoded(images) as ahead:
                for image in ahead:
                    put(image)

        yield add_images


class Writer:
    """Writes batches in a thread of its own while the `with` block computes the next ones.

    At most `DEPTH` batches wait, so memory is bounded and a slow disk slows the block down. What the thread raised,
    every later `put`, `check` and `finish` raises. When the block ends by an exception, the file that is not whole is
    given up.
    """

    DEPTH = 2

    def __init__(self, open_file: OpenFile | None) -> None:
        self._open = open_file
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="brics-write-behind")
        self._pending: deque[Future[None]] = deque()
        self._file: tuple[ExitStack, Add] | None = None
        self._error: BaseException | None = None
        self._num_written, self._seconds = 0, 0.0
        self._told = (0, 0.0)

    def __enter__(self) -> Self:
        return self

    def put(self, task: Task, batch: Batch) -> None:
        """Hand over the next batch of `task`, waiting while `DEPTH` others wait."""
        self._wait(num_left=self.DEPTH)
        self._pending.append(self._pool.submit(self._write, task, batch))

    def check(self) -> None:
        """Raise what the thread raised, if it did."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is written."""
        self._wait(num_left=0)

    def _wait(self, *, num_left: int) -> None:
        while len(self._pending) > num_left:
            self._pending.popleft().result()
        self.check()

    def told(self) -> tuple[int, float]:
        """The images written, and the seconds of writing, since this was last asked."""
        before, self._told = self._told, (self._num_written, self._seconds)
        return self._told[0] - before[0], self._told[1] - before[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        except BaseException as late:
            error = late
            raise
        finally:
            self._pool.shutdown(cancel_futures=True)  # and wait for what is being written
            if self._file is not None and error is not None:
                self._file[0].__exit__(type(error), error, error.__traceback__)

    def _write(self, task: Task, batch: Batch) -> None:
        if self._error is not None:  # a file without the batch that failed would not be whole
            return
        start = time.perf_counter()
        try:
            if self._file is None:
                assert self._open is not None
                stack = ExitStack()
                self._file = stack, stack.enter_context(self._open(task))
            stack, add = self._file
            add(batch)
            if batch.seeds.stop == task.seeds.stop:
                stack.close()
                self._file = None
        except BaseException as error:
            self._error = error
            return
        self._num_written += len(batch.seeds)
        self._seconds += time.perf_counter() - start


@dataclass(frozen=True)
class DeviceWork:
    """Tasks in a process of their own (`executors.Work`), which has loaded the models with the plan.

    `num_threads` are those of one process alone: sums are taken in as many parts on the CPU, and bits are the same.
    """

    plan: Plan
    sizes: BatchSizes
    num_threads: int

    def __call__(self, device: str) -> Callable[[Iterator[Task]], Iterator[Progress]]:
        torch.set_num_threads(self.num_threads)
        where = torch.device(device)
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)
        self.plan.models.to(where)
        engine = Engine.of(self.plan, sizes=self.sizes)

        def run(tasks: Iterator[Task]) -> Iterator[Progress]:
            for task in tasks:  # one by one: what is told of a task is told when it is whole
                yield from engine.run([task])
                yield Progress(num_tasks=1)

        return run


def estimate_seconds(plan: Plan) -> float:
    """Time one estimate of the network and one decoding, and scale to the whole plan. Writing is not in it."""
    one_step = replace(plan.models.settings, steps=1)  # one estimate, with whatever guidance
    models, size = replace(plan.models.to(plan.devices[0]), settings=one_step), plan.batch_size
    codes, _ = models.compute(range(size))
    estimate = _timed(lambda: models.compute(range(size)))
    decoding = _timed(lambda: models.pixels(codes))
    num_batches = (plan.seeds.stop - 1) // size - plan.seeds.start // size + 1
    return num_batches * (plan.models.settings.num_evaluations * estimate + decoding) / plan.num_workers_at_once


def _timed(call: Callable[[], object]) -> float:
    call()  # the first call of a shape plans memory and kernels
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
