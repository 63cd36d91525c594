"""A run directory: config, environment, metrics, images, checkpoints, model (DESIGN section 7)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import brics_cli
from brics_cli.autoencoder.model_files import TRAIN_COMMANDS, read_model_config
from brics_cli.config import Recipe, ScheduleConfig, dump_yaml
from brics_cli.errors import THEN_AGAIN, ArtefactError, InterruptedRunError, MachineError, UsageError, machine_error
from brics_cli.isolation import child_environment
from brics_cli.parsing import parse_json
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import training_precision
from brics_cli.runtime.reporting import Reporter, command_line
from brics_cli.training.loggers import open_loggers
from brics_cli.training.plan import Plan
from brics_cli.training.resuming import CONFIG_FILE, ENVIRONMENT_FILE, settings_of, was_killed_at_birth
from brics_cli.training.state import DivergedError, TrainingState, checkpoints, newest_checkpoint, step_of
from brics_cli.workspace import (
    Artefact,
    atomic_path,
    check_output,
    write_json_atomically,
    write_provenance,
    write_text_atomically,
)
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.outputs import output_lock

BEST = "best"
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "h5py", "safetensors")


class Run:
    """One training run on disk. In a world of several processes the first one writes, and the others write nothing."""

    def __init__(self, artefact: Artefact, *, recipe: Recipe, world: World, first_step: int = 0) -> None:
        self.artefact, self.path, self.recipe, self.world = artefact, artefact.path, recipe, world
        self.loggers = open_loggers(artefact, recipe, first_step=first_step) if world.is_leader else []
        self.best_score: float | None = None
        with suppress(ArtefactError):  # of a run that has no best model yet
            best = read_model_config(self.path / BEST, kind="autoencoder")[0]
            score = best.get(f"val/{recipe.training.keep_best}")
            self.best_score = score if isinstance(score, float) else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append `values` of `step` to metrics.jsonl, with the time (`time/utc`, ISO 8601), and tell the loggers; what
        the first process has of them counts."""

        def append() -> None:
            if not values:
                return
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time/utc": now(), **values}) + "\n")
            for logger in self.loggers:
                logger.scalars(step, values)

        self.world.lead(append)

    def draw(self, step: int, snapshot: Callable[[Path], dict[str, float]]) -> dict[str, float]:
        """Let the first process draw the sheet of `step` and tell the loggers; the scores that it found, there."""

        def write() -> dict[str, float]:
            path = self.path / "images" / f"step-{step:08d}.png"
            scores = snapshot(path)
            if path.is_file():
                for logger in self.loggers:
                    logger.sheet(step, "reconstructions" if self.artefact.kind == "autoencoder" else "samples", path)
            return scores

        return self.world.lead(write) or {}

    def save_checkpoint(self, state: TrainingState[Any]) -> None:
        """Write a checkpoint atomically, then remove the oldest ones beyond `training.keep_checkpoints`."""

        def write() -> None:
            with atomic_path(self.path / "checkpoints" / f"step-{state.step:08d}") as temporary:
                temporary.mkdir()
                state.save(temporary, settings=settings_of(self.recipe))
            for old in checkpoints(self.path)[: -self.recipe.training.keep_checkpoints]:
                shutil.rmtree(old)

        self.world.lead(write)

    def publish(self, save: Callable[[Path], str], *, step: int, summary: str, **details: Any) -> None:
        """Let `save` write the run's model directory and return its sha256; then write the run's provenance.

        `details` are added to it; the run is complete when `step` is the recipe's last.
        """

        def write() -> None:
            sha256 = save(self.path / "model")
            added = {**details, "sha256": sha256, "step": step, "summary": summary}
            complete = step == self.recipe.training.steps
            self.artefact = replace(self.artefact, complete=complete, details={**self.artefact.details, **added})
            write_provenance(self.artefact)

        self.world.lead(write)

    def keep_if_best(self, save: Callable[[Path], str], scores: Mapping[str, float]) -> None:
        """Let `save` write `best/`, a model directory, when the score that the recipe goes by is the best so far."""
        score = scores.get(f"val/{self.recipe.training.keep_best}")
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self.world.lead(lambda: save(self.path / BEST))

    def interrupted(self, state: TrainingState[Any]) -> InterruptedRunError:
        """The error that ends a run that was asked to stop, and has been saved."""
        return InterruptedRunError(
            f"stopped at step {state.step:,} of {state.schedule.steps:,}, saved",
            next=f"Go on with: {self.resume_command}",
        )

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"brics {TRAIN_COMMANDS[self.artefact.kind]} --resume {command_line(self.path)}"

    @contextmanager
    def going_on_explained(self) -> Iterator[None]:
        """What the machine ends the block with (a full disk, no memory, losses that are not finite) says what is
        intact, and the command that goes on. Raises MachineError."""
        try:
            yield
        except (OSError, RuntimeError, MemoryError, MachineError) as error:
            said = error if isinstance(error, MachineError) else machine_error(error, where=self.path)
            if said is None:
                raise
            found = checkpoints(self.path)
            state = f"the checkpoint of step {step_of(found[-1]):,} is intact" if found else "no checkpoint yet"
            first = (said.next or "See to it.").removesuffix(THEN_AGAIN).rstrip(". ")
            go_on = "go on with" if found else "start it again with"
            command = f"{self.resume_command}{self._other_settings(said)}"
            raise MachineError(f"{said.what}; {state}", next=f"{first}, then {go_on}: {command}") from None

    def _other_settings(self, error: MachineError) -> str:
        """Settings to go on with, where the same ones would end the same way."""
        schedule = self.recipe.training
        if isinstance(error, DivergedError):
            return f" --set optimiser.lr={self.recipe.optimiser.lr / 2:g}"
        if error.what.startswith("out of memory"):
            per_process = schedule.batch_size // self.world.size
            finer = (num for num in range(schedule.accumulate + 1, per_process + 1) if per_process % num == 0)
            if num := next(finer, None):
                return f" --set training.accumulate={num}"
        return ""


@contextmanager
def open_run(
    plan: Plan, state: TrainingState[Any], *, world: World, overwrite: bool, reporter: Reporter
) -> Iterator[Run]:
    """The run directory of `plan`, locked while the block runs: made new, or resumed with its state restored.

    Raises MachineError when another process trains it, WouldOverwriteError, and ArtefactError when what it should
    continue or start from cannot be read.
    """
    artefact, recipe, path = plan.artefact, plan.recipe, plan.artefact.path
    with ExitStack() as stack:
        world.lead(lambda: stack.enter_context(output_lock(path)))
        if plan.resume:
            world.lead(lambda: remove_half_written(path))
        if plan.resume and checkpoints(path):
            with newest_checkpoint(path) as newest:
                new = state.load(newest)
            if new:
                reporter.warning(
                    f"{newest} holds no average of width {', '.join(new)}: it starts from the plain average of step "
                    f"{state.step:,}"
                )
        elif plan.init_from is not None:
            state.start_from(read_model_config(plan.init_from, kind=artefact.kind)[1])
        if state.step > recipe.training.steps:
            raise UsageError(
                f"{path} is at step {state.step:,} already, beyond --steps {recipe.training.steps:,}",
                next="Give more --steps.",
            )
        if plan.resume:
            world.lead(lambda: _take_up(path, recipe, step=state.step))
            before_any = "" if state.step else ", before its first checkpoint"
            reporter.message(f"resuming {path} at step {state.step:,}{before_any}")
        else:
            world.lead(lambda: _create(artefact, recipe, world.device, overwrite=overwrite))
            reporter.message(f"run: {path}")
        run = Run(artefact, recipe=recipe, world=world, first_step=state.step + 1 if plan.resume else 0)
        try:
            with run.going_on_explained():
                yield run
        finally:
            for logger in run.loggers:
                with suppress(OSError):  # of a full disk, which has been said; metrics.jsonl has the same values
                    logger.close()


def _create(artefact: Artefact, recipe: Recipe, device: torch.device, *, overwrite: bool) -> None:
    """Make the directory and write what is known before the first step."""
    path = artefact.path
    if was_killed_at_birth(path):
        shutil.rmtree(path)
    inputs = [parent.path for parent in artefact.parents]
    check_output(path, overwrite=overwrite, what="the run", kind=artefact.kind, inputs=inputs)
    path.mkdir(parents=True, exist_ok=True)
    write_json_atomically(path / ENVIRONMENT_FILE, environment(device, recipe.training))
    write_text_atomically(path / CONFIG_FILE, dump_yaml(recipe))
    write_provenance(artefact)


def _take_up(path: Path, recipe: Recipe, *, step: int) -> None:
    """Write the settings that the run goes on with, and drop the metrics of steps after `step`: they come again."""

    def is_kept(line: str) -> bool:  # whole and of a step up to then; a crash can leave one that is damaged
        try:
            return line.endswith("\n") and parse_json(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    write_text_atomically(path / CONFIG_FILE, dump_yaml(recipe))
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        write_text_atomically(metrics, "".join(filter(is_kept, lines)))


def remove_half_written(run: Path) -> None:
    """Remove what a kill left of a checkpoint or model in the making; call it under the run's lock.

    A model that was about to be replaced, with nothing in its place yet, is put back.
    """
    for folder in (run, run / "checkpoints"):
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
            final = path.with_name(path.name[1:].rsplit(".", 2)[0])
            if path.suffix == ".old" and not final.exists():
                path.rename(final)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def environment(device: torch.device, schedule: ScheduleConfig) -> dict[str, Any]:
    """What a run was made with: versions, device, what it computes in there, seed, command line."""
    return {
        "brics": brics_cli.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "computed_in": training_precision(schedule, device),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "seed": schedule.seed,
        "command": ["brics", *sys.argv[1:]],
    }


def _git_commit() -> str | None:
    """The commit of the checkout that brics runs from, `+` for uncommitted changes; None for an installed brics."""
    checkout = Path(brics_cli.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-c", "core.fsmonitor=", "-C", str(checkout)]
    describe = ["describe", "--always", "--dirty=+", "--abbrev=40", "--match="]
    try:
        return subprocess.run(
            git + describe, env=child_environment(), capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
