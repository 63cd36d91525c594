"""`brics sample`: denoiser -> codes -> the autoencoder that its codes came from -> images (DESIGN section 3.6).

Image i of a run has the key of its seed, and depends on the model, the settings and that seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.codes import StoreWriter
from brics_cli.errors import InterruptedRunError
from brics_cli.images import claim_output, contact_sheet, open_sink
from brics_cli.images.companions import write_companions
from brics_cli.images.outputs import output_lock
from brics_cli.images.sinks import discard_pieces
from brics_cli.images.sinks.base import remove_leftovers
from brics_cli.runtime.executors import LocalExecutor
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.runtime.stopping import stop_signals
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.sample_plan import Format, SamplePlan, store_layout
from brics_cli.sampling.sample_tasks import SampleTask
from brics_cli.sampling.sampling import Computed, DeviceWork, Event, TaskSampler, Written
from brics_cli.workspace import write_provenance
from brics_cli.workspace.artefacts import finished

SHEET_COLUMNS = 8


@dataclass(frozen=True)
class SampleResult:
    """What was sampled: `num_images` are at `path`, `num_now` of them from this run, at `img_per_s`.

    `seconds` says where this run's time went, on several devices of all together; `writing_s` is what the writing
    threads spent beside it. `batch_sizes` are (first seed, last seed, images per batch). `settings` are those that
    the images depend on.
    """

    path: Path
    format: Format
    num_images: int
    num_now: int
    img_per_s: float | None
    seconds: dict[str, float]
    writing_s: float
    sheet: Path
    model: Path
    autoencoder: Path
    settings: dict[str, Any]
    batch_sizes: list[tuple[int, int, int]]
    already_complete: bool


def sample(plan: SamplePlan, *, overwrite: bool = False, reporter: Reporter) -> SampleResult:
    """Sample every seed of the plan, going on where an interrupted run stopped.

    Raises ArtefactError or WouldOverwriteError when something else is at the output, MachineError when another
    process is writing it, when memory holds not even one image, or when the process of one of several devices died;
    InterruptedRunError on Ctrl-C or SIGTERM.
    """
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    start, run = time.perf_counter(), _Run(plan, reporter)
    with output_lock(plan.out):
        if _complete(plan, overwrite=overwrite):
            BatchSizes.discard(plan.folder)
            return run.result(already_complete=True, seconds=None)
        reporter.message(f"sampling {len(plan.seeds):,} images into {plan.out}")
        try:
            if plan.format == "h5":
                run.write_store(overwrite=overwrite)
            else:
                run.write_images()
        except (_Stopped, KeyboardInterrupt):
            raise InterruptedRunError(f"interrupted, {plan.out} is not complete; what is whole is kept") from None
    return run.result(already_complete=False, seconds=time.perf_counter() - start)


def _complete(plan: SamplePlan, *, overwrite: bool) -> bool:
    """Claim the output; whether all of it is there. A store claims its own file when its writer opens."""
    if plan.format == "h5":
        with StoreWriter(plan.out, *store_layout(plan), overwrite=overwrite, kind="samples") as writer:
            return writer.complete
    return claim_output(plan.artefact, overwrite=overwrite, is_file=plan.is_file) == "complete"


class _Run:
    """One pass of `sample`: what both ways of writing share."""

    def __init__(self, plan: SamplePlan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.identity = {"settings": plan.settings, "parents": [parent.sha256 for parent in plan.parents]}
        self.sizes = BatchSizes(plan.stream.batch_size)
        self.split = TimeSplit()
        self.num_now, self.writing_s = 0, 0.0
        self.shown: dict[int, np.ndarray] = {}

    def write_images(self) -> None:
        """Write what is missing of the images, join pieces to their file, and put everything on record."""
        plan = self.plan
        self.write_tasks(plan.pending())
        if plan.is_file:
            with open_sink(plan.out, overwrite=True, resumable=True) as joined:
                joined.class_names = plan.stream.denoiser.class_names  # its pieces are all there, and are joined
        if plan.format == "wds" and not plan.is_file:
            names = plan.stream.denoiser.class_names
            write_companions(plan.out, extension="png", class_names=names, reporter=self.reporter)
        self.write_sheet()
        write_provenance(finished(plan.artefact, **self.details()))
        BatchSizes.discard(plan.folder)
        if plan.is_file:
            discard_pieces(plan.out)

    def write_store(self, *, overwrite: bool) -> None:
        """Write the codes themselves, the missing parts of them, and merge."""
        plan = self.plan
        with StoreWriter(plan.out, *store_layout(plan), overwrite=overwrite, kind="samples") as writer:
            pending = set(writer.pending)
            self.write_tasks([task for task in plan.tasks if task.number in pending])
            self.write_sheet()
            details = self.details() | {"settings": plan.settings}
            writer.merge(parents=plan.parents, details=details, reporter=self.reporter)

    def write_tasks(self, pending: Sequence[SampleTask]) -> None:
        """Draw and write the `pending` tasks, and draw what the sheet needs beside them."""
        plan, total = self.plan, len(self.plan.seeds)
        self.sizes = BatchSizes.read(plan.folder, plan.stream.batch_size, identity=self.identity)
        left = sum(len(task.seeds) for task in pending)
        if left < total:
            self.reporter.message(f"going on: {total - left:,} of {total:,} images are there")
        if not self.sizes.runs:
            self.record_done(pending)
        unseen = [seed for seed in plan.sheet_seeds if not any(seed in task.seeds for task in pending)]
        tasks = [*pending, *([SampleTask(None, range(unseen[0], unseen[-1] + 1))] if unseen else [])]
        with self.reporter.task("sample", total=total, unit="img", initial=total - left) as task:
            try:
                with closing(self.events(tasks, on_step=lambda note: task.advance(0, note=note))) as events:
                    for event in events:
                        self.take(event)
                        if isinstance(event, Written):
                            task.advance(event.num_images)
                        elif len(plan.devices) > 1:
                            task.advance(0, note=str(self.split))
            finally:
                if self.sizes.shrunk:
                    self.sizes.write(plan.folder, identity=self.identity)

    def record_done(self, pending: Sequence[SampleTask]) -> None:
        """What is there of all tasks was computed in batches as asked for."""
        left = {task.number: task.seeds for task in pending}
        for task in self.plan.tasks:
            missing = left.get(task.number, task.seeds[:0])
            for done in (range(task.seeds.start, missing.start), range(missing.stop, task.seeds.stop)):
                if done:
                    self.sizes.record(done, self.sizes.asked)

    def events(self, tasks: list[SampleTask], *, on_step: Callable[[str], None]) -> Generator[Event, None, None]:
        """Run `tasks` in this process on one device, in one process per device on several.

        Stops between two evaluations of the network by raising _Stopped, on several devices at once by
        KeyboardInterrupt.
        """
        plan = self.plan
        if len(plan.devices) > 1:
            yield from self.events_of_devices(tasks)
            return
        with stop_signals() as stop:
            total, step = plan.stream.settings.num_evaluations, 0

            def between_steps() -> None:
                nonlocal step
                if stop.requested:
                    raise _Stopped
                step = step % total + 1
                on_step(f"step {step}/{total}  {self.split}")

            yield from TaskSampler(
                plan.stream, plan.autoencoder, plan.output, sizes=self.sizes, sheet=plan.sheet_seeds,
                on_step=between_steps,
            ).run(tasks)  # fmt: skip

    def events_of_devices(self, tasks: list[SampleTask]) -> Generator[Event, None, None]:
        plan, num = self.plan, len(self.plan.devices)
        if len(tasks) < num:
            self.reporter.message(f"{len(tasks):,} shards keep only so many of {num} devices busy: see --shard-size")
        work = DeviceWork(plan.models.files, plan.output, self.sizes, plan.sheet_seeds, torch.get_num_threads())
        try:
            yield from LocalExecutor([str(device) for device in plan.devices]).run(work, tasks)
        finally:
            remove_leftovers(plan.folder, "*")  # of processes that were ended while they wrote

    def take(self, event: Event) -> None:
        """Add up what an event says."""
        if isinstance(event, Written):
            self.num_now += event.num_images
            self.writing_s += event.seconds
        elif isinstance(event, Computed):
            self.split.add(event.seconds)
            self.shown.update(event.shown)
            if event.seeds:
                self.sizes.record(event.seeds, event.batch_size)
        else:  # memory ran out
            self.reporter.warning(
                f"out of memory on {event.device} ({event.reason}): going on with batches of {event.batch_size}; "
                "pixels may differ by 1 of 255 from those of larger batches"
            )
            if event.seeds:
                self.sizes.record(event.seeds, event.batch_size)
            self.sizes.write(self.plan.folder, identity=self.identity)

    def write_sheet(self) -> None:
        """The contact sheet of the first images."""
        images = [self.shown[seed] for seed in self.plan.sheet_seeds]
        rows = [images[first : first + SHEET_COLUMNS] for first in range(0, len(images), SHEET_COLUMNS)]
        self.plan.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, path=self.plan.sheet)

    def details(self) -> dict[str, Any]:
        plan = self.plan
        size, sampler = plan.autoencoder.config.image_size, plan.stream.settings
        num = len(plan.seeds)
        details = {
            "num_images": num,
            "seeds": [plan.seeds.start, plan.seeds.stop - 1],
            "image_size": size,
            "transform": plan.autoencoder.transform,
            "device": ",".join(str(device) for device in plan.devices),
            "class_names": list(plan.stream.denoiser.class_names),
            "summary": f"{num:,} samples, {size} px, {sampler.sampler} {sampler.num_steps} steps",
        }
        if self.sizes.shrunk:
            details["batch_sizes"] = self.sizes.runs
        return details

    def result(self, *, already_complete: bool, seconds: float | None) -> SampleResult:
        plan = self.plan
        return SampleResult(
            path=plan.out,
            format=plan.format,
            num_images=len(plan.seeds),
            num_now=self.num_now,
            img_per_s=self.num_now / seconds if seconds else None,
            seconds=self.split.seconds,
            writing_s=self.writing_s,
            sheet=plan.sheet,
            model=plan.stream.denoiser.path,
            autoencoder=plan.autoencoder.path,
            settings=plan.settings,
            batch_sizes=self.sizes.runs,
            already_complete=already_complete,
        )


class _Stopped(Exception):
    """Somebody asked to stop, and the next evaluation of the network has not begun."""
