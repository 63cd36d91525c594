"""`brics sample`: denoiser -> codes -> the autoencoder that its codes came from -> images (DESIGN section 3.6).

Image i of a run has the key of its seed, and depends on the model, the settings and that seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.core.image_tensors import to_uint8
from brics_cli.data import claim_output, contact_sheet, open_sink
from brics_cli.data.outputs import output_lock
from brics_cli.data.sinks import discard_pieces
from brics_cli.errors import InterruptedRunError
from brics_cli.reporting import Reporter, Task, TimeSplit
from brics_cli.store import StoreWriter, quantise
from brics_cli.streams.sample_plan import Format, SamplePlan, store_layout
from brics_cli.streams.samples import SampledBatch
from brics_cli.training.signals import StopRequest, stop_signals
from brics_cli.workspace import write_provenance
from brics_cli.workspace.artefacts import finished

SHEET_IMAGES, SHEET_COLUMNS = 64, 8


@dataclass(frozen=True)
class SampleResult:
    """What was sampled: `num_images` are at `path`, `num_now` of them from this run, at `img_per_s`.

    `seconds` says where this run's time went; `settings` are those that the images depend on.
    """

    path: Path
    format: Format
    num_images: int
    num_now: int
    img_per_s: float | None
    seconds: dict[str, float]
    sheet: Path
    model: Path
    autoencoder: Path
    settings: dict[str, Any]
    already_complete: bool


def sample(plan: SamplePlan, *, overwrite: bool = False, reporter: Reporter) -> SampleResult:
    """Sample every seed of the plan, going on where an interrupted run stopped.

    Raises ArtefactError or WouldOverwriteError when something else is at the output, MachineError when another
    process is writing it, InterruptedRunError on Ctrl-C or SIGTERM.
    """
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    split, start = TimeSplit(), time.perf_counter()
    with output_lock(plan.out), stop_signals() as stop:
        if _complete(plan, overwrite=overwrite):
            return _result(plan, num_now=0, split=split, seconds=None)
        reporter.message(f"sampling {len(plan.seeds):,} images into {plan.out}")
        run = _Run(plan, split, stop, reporter)
        try:
            if plan.format == "h5":
                num_now = run.write_store(overwrite=overwrite)
            else:
                num_now = run.write_images()
                write_provenance(finished(plan.artefact, **_details(plan)))
                if plan.is_file:
                    discard_pieces(plan.out)
        except (_Stopped, KeyboardInterrupt):
            raise InterruptedRunError(f"interrupted, {plan.out} is not complete; what is whole is kept") from None
    return _result(plan, num_now=num_now, split=split, seconds=time.perf_counter() - start)


def _complete(plan: SamplePlan, *, overwrite: bool) -> bool:
    """Claim the output; whether all of it is there. A store claims its own file when its writer opens."""
    if plan.format == "h5":
        with StoreWriter(plan.out, *store_layout(plan), overwrite=overwrite, kind="samples") as writer:
            return writer.complete
    return claim_output(plan.artefact, overwrite=overwrite, is_file=plan.is_file) == "complete"


class _Run:
    """One pass of `sample`: what both ways of writing share."""

    def __init__(self, plan: SamplePlan, split: TimeSplit, stop: StopRequest, reporter: Reporter) -> None:
        self.plan, self.split, self.stop, self.reporter = plan, split, stop, reporter
        self.first_images: list[np.ndarray] = []

    def write_images(self) -> int:
        """Write images to the sink that was claimed, and the sheet; returns how many were written now."""
        plan, keys = self.plan, [key_of(seed) for seed in self.plan.seeds]
        sink_format = "wds" if plan.format == "h5" else plan.format
        with open_sink(plan.out, sink_format, shard_size=plan.shard_size, overwrite=True, resumable=True) as sink:
            done = sink.resume_point(keys)
            with self.reporter.task("sample", total=len(keys), unit="img", initial=done) as task:
                for batch in self.batches(plan.seeds[done:], task):
                    images = self.decode(batch)  # (rows, H, W, 3)
                    with self.split.phase("write"):
                        for seed, image, label in zip(batch.seeds, images, batch.labels_or_none, strict=True):
                            sink.write(key_of(seed), image, label=label)
                    if done == 0:
                        self.keep_first(images)
        self.write_sheet()
        return len(keys) - done

    def write_store(self, *, overwrite: bool) -> int:
        """Write the codes themselves, part by part, and the sheet; returns how many were written now."""
        plan = self.plan
        header, shards = store_layout(plan)
        with StoreWriter(plan.out, header, shards, overwrite=overwrite, kind="samples") as writer:
            pending = writer.pending
            num_now = sum(shards[number].num_images for number in pending)
            done = header.num_images - num_now
            with self.reporter.task("sample", total=header.num_images, unit="img", initial=done) as task:
                for number in pending:
                    seeds = plan.seeds[number * plan.shard_size : (number + 1) * plan.shard_size]
                    with writer.part(number) as part:
                        for batch in self.batches(seeds, task):
                            if done == 0 and len(self.first_images) < SHEET_IMAGES:
                                self.keep_first(self.decode(batch))
                            with self.split.phase("write"):
                                part.add(
                                    quantise(batch.codes[batch.rows], header.quantisation),
                                    keys=[key_of(seed) for seed in batch.seeds],
                                    indices=[seed - seeds.start for seed in batch.seeds],
                                    labels=batch.labels_or_none,
                                )
            self.write_sheet()
            details = _details(plan) | {"settings": plan.settings}
            writer.merge(parents=plan.parents, details=details, reporter=self.reporter)
        return num_now

    def batches(self, seeds: range, task: Task | None) -> Iterator[SampledBatch]:
        """The sampled batches of `seeds`, with progress; raises _Stopped between two evaluations of the network."""
        evaluations, step = self.plan.stream.settings.num_evaluations, 0

        def on_step() -> None:
            nonlocal step
            step += 1
            if self.stop.requested:
                raise _Stopped
            if task is not None:
                task.advance(0, note=f"step {step}/{evaluations}  {self.split}")

        batches = self.plan.stream.batches(seeds, on_step=on_step)
        while True:
            step = 0
            with self.split.phase("denoise"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            if task is not None:
                task.advance(len(batch.seeds), note=str(self.split))

    @torch.inference_mode()
    def decode(self, batch: SampledBatch) -> np.ndarray:
        """The images asked for of a batch, uint8 (rows, H, W, 3); all of it is decoded, so that shapes never vary."""
        with self.split.phase("decode"):
            return to_uint8(self.plan.autoencoder.decode(batch.codes))[batch.rows]

    def keep_first(self, images: np.ndarray) -> None:
        """Keep images (B, H, W, 3) for the sheet until there are enough."""
        self.first_images.extend(images[: SHEET_IMAGES - len(self.first_images)])

    def write_sheet(self) -> None:
        """The contact sheet of the first images, sampled again when this run went on after them."""
        first_seeds = self.plan.seeds[:SHEET_IMAGES]
        if len(self.first_images) < len(first_seeds):
            self.first_images.clear()
            for batch in self.batches(first_seeds, None):
                self.keep_first(self.decode(batch))
        rows = [self.first_images[i : i + SHEET_COLUMNS] for i in range(0, len(first_seeds), SHEET_COLUMNS)]
        self.plan.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, path=self.plan.sheet)


def estimate_seconds(plan: SamplePlan) -> float:
    """Time one evaluation of the network and one decoding, and scale to the whole plan. Writing is not in it."""
    denoiser, settings, size = plan.stream.denoiser, plan.stream.settings, plan.stream.batch_size
    codes = torch.full((size, *denoiser.code_shape), 0.5, device=denoiser.mean.device)
    log_snr = torch.zeros(size, device=codes.device)
    labels = torch.zeros(size, dtype=torch.int64, device=codes.device) if denoiser.num_classes else None
    evaluation = _timed(lambda: denoiser.denoise(codes, log_snr, labels=labels, guidance=settings.guidance).cpu())
    decoding = _timed(lambda: to_uint8(plan.autoencoder.decode(codes)))
    num_batches = (plan.seeds.stop - 1) // size - plan.seeds.start // size + 1
    return num_batches * (settings.num_evaluations * evaluation + decoding)


@torch.inference_mode()
def _timed(call: Callable[[], object]) -> float:
    call()  # the first call of a shape plans memory and kernels
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def key_of(seed: int) -> str:
    """The key of the image of a seed."""
    return f"{seed:08d}"


class _Stopped(Exception):
    """Somebody asked to stop, and the next evaluation of the network has not begun."""


def _details(plan: SamplePlan) -> dict[str, Any]:
    config = plan.autoencoder.config
    sampler = plan.stream.settings
    return {
        "num_images": len(plan.seeds),
        "seeds": [plan.seeds.start, plan.seeds.stop - 1],
        "image_size": config.image_size,
        "transform": plan.autoencoder.transform,
        "device": str(plan.stream.denoiser.mean.device),
        "summary": f"{len(plan.seeds):,} samples, {config.image_size} px, {sampler.sampler} {sampler.num_steps} steps",
    }


def _result(plan: SamplePlan, *, num_now: int, split: TimeSplit, seconds: float | None) -> SampleResult:
    return SampleResult(
        path=plan.out,
        format=plan.format,
        num_images=len(plan.seeds),
        num_now=num_now,
        img_per_s=num_now / seconds if seconds else None,
        seconds=split.seconds,
        sheet=plan.sheet,
        model=plan.stream.denoiser.path,
        autoencoder=plan.autoencoder.path,
        settings=plan.settings,
        already_complete=seconds is None,
    )
