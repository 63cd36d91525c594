"""`brics sample`: denoiser -> codes -> the autoencoder that its codes came from -> images (DESIGN section 3.6).

Image i of a run has the key of its seed, and depends on the model, the settings and that seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.codes import StoreWriter
from brics_cli.errors import InterruptedRunError
from brics_cli.images import contact_sheet
from brics_cli.images.sheets import seed_captions
from brics_cli.images.sinks import discard_pieces
from brics_cli.runtime.executors import LocalExecutor, TaskFailed, check_none_failed, settled
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.runtime.stopping import stop_signals
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.engine import DeviceWork, Engine, Progress
from brics_cli.sampling.plan import Plan
from brics_cli.sampling.tasks import SampleFormat, Task
from brics_cli.wording import count
from brics_cli.workspace import write_provenance
from brics_cli.workspace.artefacts import finished
from brics_cli.workspace.files import remove_leftovers
from brics_cli.workspace.outputs import output_lock

SHEET_COLUMNS = 8


@dataclass(frozen=True)
class SampleResult:
    """What was sampled: `num_images` are at `path`, `num_now` of them from this run, at `img_per_s`.

    `seconds` says where this run's time went, on several devices of all together; `writing_s` is what the writing
    threads spent meanwhile. `batch_sizes` are (first seed, last seed, images per batch). `settings` are those that
    the images depend on.
    """

    path: Path
    format: SampleFormat
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


class SamplingInterrupted(InterruptedRunError):
    """The run of `plan` was interrupted: the same model and output go on with it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__(
            f"interrupted, {plan.out} is not complete; what is whole is kept",
            next=f"Sample the same again from {plan.models.denoiser.path} into {plan.out}.",
        )


def sample(plan: Plan, *, overwrite: bool = False, reporter: Reporter) -> SampleResult:
    """Sample every seed of the plan, going on where an interrupted run stopped.

    Raises ArtefactError or WouldOverwriteError when something else is at the output, MachineError when another
    process is writing it, when memory holds not even one image, or when the process of one of several devices died;
    SamplingInterrupted on Ctrl-C or SIGTERM.
    """
    start, run = time.perf_counter(), _Run(plan, reporter)
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(plan.out):
        try:
            done_before = (run.write_store if plan.format == "h5" else run.write_images)(overwrite=overwrite)
        except (_Stopped, KeyboardInterrupt):
            raise SamplingInterrupted(plan) from None
    if done_before:
        reporter.message(f"{plan.out} is complete already, of the same model and settings: nothing to do")
    return SampleResult(
        path=plan.out,
        format=plan.format,
        num_images=len(plan.seeds),
        num_now=run.num_now,
        img_per_s=None if done_before else run.num_now / (time.perf_counter() - start),
        seconds=run.split.seconds,
        writing_s=run.writing_s,
        sheet=plan.sheet,
        model=plan.models.denoiser.path,
        autoencoder=plan.models.autoencoder.path,
        settings=plan.settings,
        batch_sizes=run.sizes.runs,
        already_complete=done_before,
    )


class _Run:
    """One pass of `sample`, and what it adds up."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.sizes = BatchSizes(plan.batch_size)
        self.split = TimeSplit()
        self.num_now, self.writing_s = 0, 0.0
        self.shown: dict[int, np.ndarray] = {}

    def write_images(self, *, overwrite: bool) -> bool:
        """Write what is missing of the images, join pieces to their file; whether nothing was missing."""
        plan = self.plan
        done_before = plan.sink.claim(plan.artefact, overwrite=overwrite) == "complete"
        if not done_before:
            self.draw(plan.pending())
            plan.sink.finish(self.reporter)
            write_provenance(finished(plan.artefact, **self.details()))
        BatchSizes.discard(plan.folder)
        discard_pieces(plan.out)
        return done_before

    def write_store(self, *, overwrite: bool) -> bool:
        """Write the missing parts of the codes, and merge; whether the store was there already."""
        plan = self.plan
        with StoreWriter(plan.out, *plan.store, overwrite=overwrite, kind="samples") as writer:
            if writer.complete:
                return True
            pending = set(writer.pending)
            self.draw([task for task in plan.tasks if task.number in pending])
            details = self.details() | {"settings": plan.settings}
            writer.merge(parents=plan.models.parents, details=details, reporter=self.reporter)
        return False

    def draw(self, pending: Sequence[Task]) -> None:
        """Draw and write the `pending` tasks, and the contact sheet of the first images."""
        plan, total = self.plan, len(self.plan.seeds)
        self.reporter.message(f"sampling {total:,} images into {plan.out}")
        identity = {"settings": plan.settings, "parents": [parent.sha256 for parent in plan.models.parents]}
        self.sizes = BatchSizes.read(plan.folder, plan.batch_size, identity=identity)
        left = sum(len(task.seeds) for task in pending)
        if left < total:
            self.reporter.message(f"going on: {total - left:,} of {total:,} images are there")
        if not self.sizes.runs:
            self.record_done(pending)
        unseen = [seed for seed in plan.sheet_seeds if not any(seed in task.seeds for task in pending)]
        tasks = [*pending, *([Task(None, range(unseen[0], unseen[-1] + 1))] if unseen else [])]
        failed: list[TaskFailed[Task]] = []
        with self.reporter.task("sample", total=total, unit="img", initial=total - left) as task:
            try:
                running = self.run(tasks, on_step=lambda note: task.advance(0, note=note))
                with closing(settled(running, failed.append)) as run:
                    for done in run:
                        self.take(done)
                        if done.out_of_memory is not None:  # before anything is written of what was computed otherwise
                            self.sizes.write(plan.folder, identity=identity)
                        task.advance(done.num_written, note=self.note())
            finally:
                if self.sizes.shrunk:
                    self.sizes.write(plan.folder, identity=identity)
        check_none_failed(failed, what=f"{count(len(tasks), 'shard')} of {plan.out}")
        images = [self.shown[seed] for seed in plan.sheet_seeds]
        rows = [images[first : first + SHEET_COLUMNS] for first in range(0, len(images), SHEET_COLUMNS)]
        plan.sheet.parent.mkdir(parents=True, exist_ok=True)
        labels, classes = plan.models.labels(plan.sheet_seeds), plan.models.denoiser.classes
        names = None if labels is None else [classes.shown(label) for label in labels]
        captions = seed_captions(plan.sheet_seeds, names, num_columns=SHEET_COLUMNS)
        remove_leftovers(plan.sheet.parent, plan.sheet.name)  # of a process that was killed while it wrote the same
        contact_sheet(rows, path=plan.sheet, captions=captions)

    def record_done(self, pending: Sequence[Task]) -> None:
        """What is there of all tasks was computed in batches as asked for."""
        left = {task.number: task.seeds for task in pending}
        for task in self.plan.tasks:
            missing = left.get(task.number, task.seeds[:0])
            for done in (range(task.seeds.start, missing.start), range(missing.stop, task.seeds.stop)):
                if done:
                    self.sizes.record(done, self.sizes.asked)

    def note(self) -> str | None:
        """What stands beside the progress of several workers."""
        if self.plan.executor is not None:
            return f"{self.plan.executor.status}, {self.split}"
        return str(self.split) if len(self.plan.devices) > 1 else None

    def run(
        self, tasks: list[Task], *, on_step: Callable[[str], None]
    ) -> Generator[Progress | TaskFailed[Task], None, None]:
        """Run `tasks` in this process on one device, in one process per device on several, or on the cluster.

        Stops between two evaluations of the network by raising _Stopped, on several workers at once by
        KeyboardInterrupt.
        """
        plan, num_devices = self.plan, len(self.plan.devices)
        if num_devices > 1 or plan.executor is not None:
            if plan.executor is None and len(tasks) < num_devices:
                self.reporter.message(
                    f"{len(tasks):,} shards keep only so many of {num_devices} devices busy: see --shard-size"
                )
            executor = plan.executor or LocalExecutor([str(device) for device in plan.devices])
            work = DeviceWork(replace(plan, executor=None), self.sizes, torch.get_num_threads())
            try:
                yield from executor.run(work, tasks, folder=plan.folder)
            finally:
                remove_leftovers(plan.folder, "*")  # of processes that were ended while they wrote
            return
        with stop_signals() as stop:
            total, step = plan.models.settings.num_evaluations, 0

            def between_steps() -> None:
                nonlocal step
                if stop.requested:
                    raise _Stopped
                step = step % total + 1
                on_step(f"step {step}/{total}  {self.split}")

            yield from Engine.of(plan, sizes=self.sizes, on_step=between_steps).run(tasks)

    def take(self, done: Progress) -> None:
        """Add up what was done."""
        self.num_now += done.num_written
        self.writing_s += done.writing_s
        self.split.add(done.seconds)
        self.shown.update(done.shown)
        if done.seeds:
            self.sizes.record(done.seeds, done.batch_size)
        if done.out_of_memory is not None:
            self.reporter.warning(
                f"out of memory on {done.out_of_memory}: going on with batches of {done.batch_size}; "
                "pixels may differ by 1 of 255 from those of larger batches"
            )

    def details(self) -> dict[str, Any]:
        """What the provenance says besides the settings."""
        plan, denoiser, autoencoder = self.plan, self.plan.models.denoiser, self.plan.models.autoencoder
        num, size, how = len(plan.seeds), plan.models.image_size, plan.models.settings
        details = {
            "num_images": num,
            "seeds": [plan.seeds.start, plan.seeds.stop - 1],
            "image_size": size,
            "transform": autoencoder.transform,
            "device": plan.executor.device if plan.executor else ",".join(str(device) for device in plan.devices),
            "computed_in": plan.models.precision,
            "class_names": list(denoiser.class_names),
            "summary": f"{num:,} samples, {size} px, {how.sampler} {how.num_steps} steps",
        }
        if self.sizes.shrunk:
            details["batch_sizes"] = self.sizes.runs
        return details


class _Stopped(Exception):
    """A stop was requested, and the next evaluation of the network has not begun."""
