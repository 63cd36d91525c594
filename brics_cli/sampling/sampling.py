"""From seeds to files on one device: while a batch is computed, the one before it is compressed and written.

B images of a batch, (B, H, W, 3) uint8; codes (B, C, h, w).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.runtime.reporting import TimeSplit
from brics_cli.sampling.batch_sizes import BatchSizes, OutOfMemory, attempt, halved
from brics_cli.sampling.sample_models import ModelFiles
from brics_cli.sampling.sample_tasks import Drawn, SampleOutput, SampleTask
from brics_cli.sampling.samples import SampleStream
from brics_cli.sampling.write_behind import WriteBehind


@dataclass(frozen=True)
class Computed:
    """`seeds` (none of a task for the sheet alone) were computed in batches of `batch_size`.

    `shown` are images for the sheet, by seed; `seconds` by phase since the last event: denoise, decode, and write,
    which is waiting for the disk.
    """

    seeds: range
    batch_size: int
    shown: dict[int, np.ndarray]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Written:
    """`num_images` went to the disk in `seconds` of the writing thread, beside the computing."""

    num_images: int
    seconds: float


@dataclass(frozen=True)
class Shrunk:
    """Memory ran out: from now on batches are of `batch_size`. `seeds` are what is left of the task it happened in."""

    seeds: range
    batch_size: int
    device: str
    reason: str


Event = Computed | Written | Shrunk


@dataclass(frozen=True)
class _Batch:
    """A whole batch, of which a task may want a part and the next task the rest."""

    seeds: range
    labels: list[int] | None
    codes: Tensor
    images: np.ndarray | None


class TaskSampler:
    """Draws the images of tasks and writes them to `output`.

    Images of the seeds `sheet` come back with the events. `on_step` is called between two evaluations of the network;
    what it raises ends the run, and leaves what is whole.
    """

    def __init__(
        self,
        stream: SampleStream,
        autoencoder: Autoencoder,
        output: SampleOutput,
        *,
        sizes: BatchSizes,
        sheet: range,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.stream, self.autoencoder, self.output = stream, autoencoder, output
        self.sizes, self.sheet, self.on_step = sizes, sheet, on_step
        self.split = TimeSplit()
        self._last: _Batch | None = None

    def run(self, tasks: Iterable[SampleTask]) -> Iterator[Event]:
        """Draw and write `tasks`, telling what happens. Raises OSError when the output cannot be written, MachineError
        when memory holds not even one image, ArtefactError when codes are not finite."""
        written: deque[Written] = deque()

        def write(items: Iterator[tuple[SampleTask, Drawn | None]]) -> None:
            self._write(items, written)

        with WriteBehind(write) as writer:

            def on_step() -> None:
                writer.check()
                if self.on_step is not None:
                    self.on_step()

            for task in tasks:
                for drawn in self._draw(task, on_step):
                    if isinstance(drawn, Shrunk):
                        yield drawn
                        continue
                    if task.number is not None:
                        with self.split.phase("write"):
                            writer.put((task, drawn))
                    yield self._computed(task, drawn)
                    while written:
                        yield written.popleft()
                if task.number is not None:
                    with self.split.phase("write"):
                        writer.put((task, None))
            with self.split.phase("write"):
                writer.finish()
        while written:
            yield written.popleft()
        yield Computed(range(0), 0, {}, self._seconds())

    def _write(self, items: Iterator[tuple[SampleTask, Drawn | None]], written: deque[Written]) -> None:
        """The writing thread: one file after another, each ended by a None."""
        for task, first in items:
            start, drawn = time.perf_counter(), first
            with self.output.open(task) as add:
                while drawn is not None:
                    add(drawn)
                    written.append(Written(len(drawn.seeds), time.perf_counter() - start))
                    _, drawn = next(items)
                    start = time.perf_counter()
            written.append(Written(0, time.perf_counter() - start))

    def _draw(self, task: SampleTask, on_step: Callable[[], None]) -> Iterator[Drawn | Shrunk]:
        seeds = task.seeds
        while seeds:
            size = self.sizes.at(seeds.start)
            first = seeds.start - seeds.start % size
            whole = range(first, first + size)
            wanted = range(seeds.start, min(whole.stop, seeds.stop))
            shown = wanted.start < self.sheet.stop and wanted.stop > self.sheet.start
            decode = shown or self.output.keeps == "images"
            batch = attempt(partial(self._compute, whole, decode=decode, on_step=on_step), device=self.stream.device)
            if isinstance(batch, OutOfMemory):
                self._last = None
                self.sizes.limit = halved(size, batch, device=self.stream.device)
                yield Shrunk(self._kept(task, seeds), self.sizes.limit, str(self.stream.device), batch.reason)
                continue
            rows = slice(wanted.start - first, wanted.stop - first)
            yield Drawn(
                wanted,
                size,
                None if batch.labels is None else batch.labels[rows],
                None if batch.images is None else batch.images[rows],
                batch.codes[rows].cpu().numpy() if self.output.keeps == "codes" else None,
            )
            seeds = range(wanted.stop, seeds.stop)

    @torch.inference_mode()
    def _compute(self, seeds: range, *, decode: bool, on_step: Callable[[], None]) -> _Batch:
        batch, self._last = self._last, None
        if batch is None or batch.seeds != seeds:
            del batch  # its memory is needed now
            with self.split.phase("denoise"):
                codes, labels = self.stream.compute(seeds, on_step=on_step)
            batch = _Batch(seeds, labels, codes, None)
        if decode and batch.images is None:
            with self.split.phase("decode"):
                batch = replace(batch, images=to_uint8(self.autoencoder.decode(batch.codes)))
        self._last = batch
        return batch

    def _computed(self, task: SampleTask, drawn: Drawn) -> Computed:
        shown = {}
        if drawn.images is not None:
            pairs = zip(drawn.seeds, drawn.images, strict=True)
            shown = {seed: image for seed, image in pairs if seed in self.sheet}
        return Computed(self._kept(task, drawn.seeds), drawn.batch_size, shown, self._seconds())

    def _kept(self, task: SampleTask, seeds: range) -> range:
        return seeds if task.number is not None else range(0)

    def _seconds(self) -> dict[str, float]:
        seconds, self.split.seconds = self.split.seconds, {}
        return seconds


@dataclass(frozen=True)
class DeviceWork:
    """Tasks in a process of their own (`scale.Work`): it loads the models for its device.

    `num_threads` are those of one process alone: sums are taken in as many parts on the CPU, and bits are the same.
    """

    models: ModelFiles
    output: SampleOutput
    sizes: BatchSizes
    sheet: range
    num_threads: int

    def __call__(self, device: str, tasks: Iterator[SampleTask]) -> Iterator[Event]:
        torch.set_num_threads(self.num_threads)
        where = torch.device(device)
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)
        stream, autoencoder = self.models.load(where)
        return TaskSampler(stream, autoencoder, self.output, sizes=self.sizes, sheet=self.sheet).run(tasks)
