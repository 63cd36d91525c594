"""What both training jobs do around a step: count the time, log, validate, draw, save, stop.

The job computes steps; after each it calls `Loop.end_step`, which does what is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from brics_cli.autoencoder.model_files import TRAIN_COMMANDS
from brics_cli.config.changes import label
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import Reporter, Task, TimeSplit
from brics_cli.runtime.stopping import StopRequest, stop_signals
from brics_cli.training.plan import Plan
from brics_cli.training.run import Run, open_run
from brics_cli.training.state import ModelT, TrainingState, Update
from brics_cli.wording import DAY_S, duration

SAID_AFTER_S = 5.0
"""Seconds after the first step when the end is estimated; at once where a step takes as long."""


@dataclass
class TrainResult:
    """What a training command returns: the run, what it was trained on, how far it came, its last metrics by name,
    images left out."""

    run: Path
    data: str
    step: int
    metrics: dict[str, float]
    num_failed: int = 0


@contextmanager
def open_loop(
    plan: Plan, state: TrainingState[ModelT], *, world: World, overwrite: bool, reporter: Reporter
) -> Iterator[Loop[ModelT]]:
    """The loop of a plan: its run opened or resumed, with `state` restored, signals caught, progress shown."""
    with (
        open_run(plan, state, world=world, overwrite=overwrite, reporter=reporter) as run,
        stop_signals() as stop,
        reporter.task(
            TRAIN_COMMANDS[plan.artefact.kind], total=state.schedule.steps, unit="step", initial=state.step
        ) as task,
    ):
        yield Loop(run, state, world=world, stop=stop, task=task, reporter=reporter)


class Loop(Generic[ModelT]):
    """The end of a training step; `metrics` are the newest of each name, `stop` says whether somebody asked to stop."""

    def __init__(
        self,
        run: Run,
        state: TrainingState[ModelT],
        *,
        world: World,
        stop: StopRequest,
        task: Task,
        reporter: Reporter,
    ) -> None:
        self.run, self.state, self.world, self.stop = run, state, world, stop
        self.metrics: dict[str, float] = {}
        self.times = TimeSplit()
        self._task, self._reporter = task, reporter
        self._is_due = False
        self._started = self._first_ended = self._lap_started = time.perf_counter()
        self._num_steps = self._steps_in_lap = 0
        self._end_is_said = False

    def end_step(
        self,
        update: Update,
        *,
        values: Callable[[], dict[str, float]],
        validate: Callable[[], dict[str, float]] | None = None,
        snapshot: Callable[[Path], dict[str, float]],
        save: Callable[[Path, dict[str, float]], str],
    ) -> None:
        """Log, validate, draw and save as the recipe says.

        `values` gives what a log line has beside loss, gradient norm and rate. It is asked when one is due, since it
        waits for the device; a step after which nothing is due waits for nothing. `validate` returns scores, in every
        process; `snapshot` draws into a file and may score too, in the first. `save` writes the average as a model
        directory, with the scores it was given, and returns its sha256. Raises InterruptedRunError once all is saved of
        a run that was asked to stop, MachineError when training has diverged.
        """
        state, run, schedule = self.state, self.run, self.state.schedule
        last = state.step == schedule.steps
        self._num_steps += 1
        self._steps_in_lap += 1
        self._say_when_it_ends()

        if state.step % schedule.log_every == 0 or last:
            state.settle(update)
            loss, norm = float(update.loss), float(update.grad_norm)
            logged = values() | {"train/loss": loss, "train/grad_norm": norm, "train/lr": update.lr}
            self._record(logged | {"train/skipped": float(state.num_skipped)} | self._lap())
        newest = self.metrics.get("train/loss") if isinstance(update.loss, Tensor) else update.loss
        said = "" if newest is None else f"loss {newest:.4f}"
        self._task.advance(note=f"{said}{_psnr(self.metrics, '  val')}{_times(self.metrics)}")

        scores: dict[str, float] = {}
        if validate is not None and (state.step % schedule.val_every == 0 or last):
            scores = validate()
            self._record(scores)
            run.keep_if_best(lambda directory: save(directory, scores), scores)
        if state.step % schedule.snapshot_every == 0 or last:
            self._record(run.draw(state.step, snapshot))

        stopping = self.world.any(self.stop.requested)
        self._is_due = self._is_due or state.step % schedule.checkpoint_every == 0 or last or stopping
        if self._is_due and state.is_sound():  # after a step that was skipped, the next good one is saved
            of_all = "" if last else f" of {schedule.steps:,}"
            summary = f"{label(run.artefact.details)}, step {state.step:,}{of_all}{_psnr(scores, ',')}"
            run.publish(lambda directory: save(directory, scores), step=state.step, summary=summary, **scores)
            run.save_checkpoint(state)
            self._is_due = False
            if stopping and not last:
                raise run.interrupted(state)
        elif last:
            raise state.diverged("the last losses or weights are not finite")

    def result(self, *, data: str, num_failed: int = 0) -> TrainResult:
        """What the job returns."""
        return TrainResult(self.run.path, data, self.state.step, self.metrics, num_failed)

    def _record(self, values: Mapping[str, float]) -> None:
        self.metrics |= values
        self.run.log(self.state.step, values)

    def _lap(self) -> dict[str, float]:
        """Images per second, the shares of time since the last log line, which sum to 1, that time in seconds, and the
        threads that compute on the CPU; starts the next lap."""
        now = time.perf_counter()
        seconds = now - self._lap_started
        waiting, compute = (self.times.seconds.pop(name, 0.0) / seconds for name in ("waiting", "compute"))
        img_per_s = self._steps_in_lap * self.state.schedule.batch_size / seconds
        self._lap_started, self._steps_in_lap = now, 0
        shares = {"img_per_s": img_per_s, "waiting": waiting, "compute": compute, "rest": 1.0 - waiting - compute}
        shares |= {"lap_s": seconds, "threads": float(torch.get_num_threads())}
        return {f"time/{name}": value for name, value in shares.items()}

    def _say_when_it_ends(self) -> None:
        """Once, within 10 s of the first step, unless the run ends before: how long the others take, and when that is.

        The first step is slower than the others, and counts where there is no other yet.
        """
        now, others = time.perf_counter(), self._num_steps - 1
        if others == 0:
            self._first_ended = now
        waited, steps_left = now - self._first_ended, self.state.schedule.steps - self.state.step
        per_step = waited / others if others else now - self._started
        if self._end_is_said or steps_left == 0 or max(waited, per_step) < SAID_AFTER_S:
            return
        self._end_is_said = True
        seconds, device = per_step * steps_left, self.world.device.type.upper()
        end = datetime.now() + timedelta(seconds=seconds)
        said = (
            f"about {duration(seconds)} to go on this {device}, until {end:%a %d %b %Y, %H:%M}: {per_step:.3g} s for "
            f"each of {steps_left:,} steps"
        )
        if seconds <= DAY_S:
            self._reporter.message(said)
            return
        small = "; --recipe tiny takes minutes" if device == "CPU" and self.run.recipe.name != "tiny" else ""
        self._reporter.warning(
            f"this run takes more than a day: {said}. Ctrl-C saves and --resume goes on; --dry-run says what a GPU "
            f"would take{small}"
        )


def _psnr(scores: Mapping[str, float], before: str) -> str:
    return f"{before} {scores['val/psnr']:.2f} dB" if "val/psnr" in scores else ""


def _times(metrics: Mapping[str, float]) -> str:
    """Images per second and where the time went; empty before the first log line."""
    if "time/img_per_s" not in metrics:
        return ""
    shares = "  ".join(f"{name} {metrics[f'time/{name}']:.0%}" for name in ("waiting", "compute", "rest"))
    return f"  {metrics['time/img_per_s']:,.0f} img/s  {shares}"
