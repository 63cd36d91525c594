"""A run directory: config, environment, metrics, images, checkpoints, model (DESIGN section 7)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter

from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.config import Recipe, dump_yaml
from brics_cli.errors import THEN_AGAIN, ArtefactError, InterruptedRunError, MachineError, UsageError, machine_error
from brics_cli.images.outputs import output_lock
from brics_cli.parsing import parse_json
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import Reporter, command_line
from brics_cli.training.environment import environment
from brics_cli.training.resuming import CONFIG_FILE, checkpoints, newest_checkpoint, settings_of, step_of
from brics_cli.training.state import DivergedError, TrainingState
from brics_cli.workspace import (
    Artefact,
    atomic_path,
    check_output,
    write_json_atomically,
    write_provenance,
    write_text_atomically,
)

BEST = "best"
ENVIRONMENT_FILE = "environment.json"


class Plan(Protocol):
    """What a run needs to know of the plan it carries out."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def artefact(self) -> Artefact: ...
    @property
    def resume(self) -> bool: ...
    @property
    def init_from(self) -> Path | None: ...


class Run:
    """One training run on disk. In a world of several processes the first one writes, and the others write nothing."""

    def __init__(self, artefact: Artefact, *, recipe: Recipe, world: World, first_step: int = 0) -> None:
        self.artefact = artefact
        self.path = artefact.path
        self.recipe = recipe
        self.world = world
        self.writer = SummaryWriter(str(self.path), purge_step=first_step) if world.is_leader else None
        self.best_score = _best_score(self.path, metric=recipe.training.keep_best)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append `values` of `step` to metrics.jsonl and TensorBoard; what the first process has of them counts."""
        self.world.lead(lambda: self._append(step, values))

    def _append(self, step: int, values: Mapping[str, float]) -> None:
        assert self.writer is not None
        if not values:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def snapshot(self, save: Callable[[Path], None], *, step: int) -> None:
        """Let `save` write the picture of `step`."""
        self.world.lead(lambda: save(self.path / "images" / f"step-{step:08d}.png"))

    def save_checkpoint(self, state: TrainingState[Any]) -> None:
        """Write a checkpoint atomically, then remove the oldest ones beyond `training.keep_checkpoints`."""
        self.world.lead(lambda: self._write_checkpoint(state))

    def _write_checkpoint(self, state: TrainingState[Any]) -> None:
        with atomic_path(self.path / "checkpoints" / f"step-{state.step:08d}") as temporary:
            temporary.mkdir()
            state.save(temporary, settings=settings_of(self.recipe))
        for old in checkpoints(self.path)[: -self.recipe.training.keep_checkpoints]:
            shutil.rmtree(old)

    def publish(self, save: Callable[[Path], str], *, step: int, summary: str, **details: Any) -> None:
        """Let `save` write the run's model directory and return its sha256; then write the run's provenance.

        `details` are added to it; the run is complete when `step` is the recipe's last.
        """
        self.world.lead(lambda: self._write_model(save, step=step, summary=summary, details=details))

    def _write_model(self, save: Callable[[Path], str], *, step: int, summary: str, details: dict[str, Any]) -> None:
        sha256 = save(self.path / "model")
        details = {**self.artefact.details, **details, "sha256": sha256, "step": step, "summary": summary}
        self.artefact = replace(self.artefact, complete=step == self.recipe.training.steps, details=details)
        write_provenance(self.artefact)

    def keep_if_best(self, save: Callable[[Path], str], scores: Mapping[str, float]) -> None:
        """Let `save` write `best/`, a model directory, when the score that the recipe goes by is the best so far."""
        score = scores.get(f"val/{self.recipe.training.keep_best}")
        if score is None or (self.best_score is not None and score <= self.best_score):
            return
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
        command = "train-ae" if self.artefact.kind == "autoencoder" else "train-diffusion"
        return f"brics {command} --resume {command_line(self.path)}"

    @contextmanager
    def going_on_explained(self) -> Iterator[None]:
        """What the machine ends the block with (a full disk, no memory, losses that are no numbers) says what is
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
            return "".join(f" --set training.accumulate={num}" for num in islice(finer, 1))
        return ""


@contextmanager
def open_run(
    plan: Plan, state: TrainingState[Any], *, world: World, overwrite: bool, reporter: Reporter
) -> Iterator[Run]:
    """The run directory of `plan`, locked while the block runs: made new, or resumed with its state restored.

    Raises MachineError when another process trains it, WouldOverwriteError, and ArtefactError when what it should
    continue or start from cannot be read.
    """
    artefact, recipe = plan.artefact, plan.recipe
    with ExitStack() as stack:
        world.lead(lambda: stack.enter_context(output_lock(artefact.path)))
        if plan.resume:
            world.lead(lambda: remove_half_written(artefact.path))
            if checkpoints(artefact.path):
                _load_newest(artefact.path, state, reporter)
            elif plan.init_from is not None:
                state.start_from(read_model_config(plan.init_from, kind=artefact.kind)[1])
            if state.step > recipe.training.steps:
                raise UsageError(
                    f"{artefact.path} is at step {state.step:,} already, beyond --steps {recipe.training.steps:,}",
                    next="Give more --steps.",
                )
            world.lead(lambda: _take_up(artefact.path, recipe, step=state.step))
            before_any = "" if state.step else ", before its first checkpoint"
            reporter.message(f"resuming {artefact.path} at step {state.step:,}{before_any}")
        else:
            if plan.init_from is not None:
                state.start_from(read_model_config(plan.init_from, kind=artefact.kind)[1])
            world.lead(lambda: _create(artefact, recipe=recipe, device=world.device, overwrite=overwrite))
            reporter.message(f"run: {artefact.path}")
        run = Run(artefact, recipe=recipe, world=world, first_step=state.step + 1 if plan.resume else 0)
        try:
            with run.going_on_explained():
                yield run
        finally:
            if run.writer is not None:
                with suppress(OSError):  # of a full disk, which has been said; metrics.jsonl has the same values
                    run.writer.close()


def _load_newest(run: Path, state: TrainingState[Any], reporter: Reporter) -> None:
    with newest_checkpoint(run) as newest:
        new = state.load(newest)
    if new:
        reporter.warning(
            f"{newest} holds no average of width {', '.join(new)}: it starts from the plain average of step "
            f"{state.step:,}"
        )


def _create(artefact: Artefact, *, recipe: Recipe, device: torch.device, overwrite: bool) -> None:
    """Make the directory and write what is known before the first step."""
    _clear_beginning(artefact.path)
    inputs = [parent.path for parent in artefact.parents]
    check_output(artefact.path, overwrite=overwrite, what="the run", kind=artefact.kind, inputs=inputs)
    artefact.path.mkdir(parents=True, exist_ok=True)
    write_json_atomically(artefact.path / ENVIRONMENT_FILE, environment(device, seed=recipe.training.seed))
    write_text_atomically(artefact.path / CONFIG_FILE, dump_yaml(recipe))
    write_provenance(artefact)


def _clear_beginning(path: Path) -> None:
    """Remove what a kill within `_create` left: its first files, and not one other."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    others = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    if names and others <= {ENVIRONMENT_FILE, CONFIG_FILE} and (ENVIRONMENT_FILE in others or not others):
        shutil.rmtree(path)


def _take_up(path: Path, recipe: Recipe, *, step: int) -> None:
    """Write the settings that the run goes on with, and drop the metrics of steps after `step`: they come again."""
    write_text_atomically(path / CONFIG_FILE, dump_yaml(recipe))
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        write_text_atomically(metrics, "".join(line for line in lines if _is_of(line, until=step)))


def _is_of(line: str, *, until: int) -> bool:
    """Whether a line of metrics is whole, and of a step up to `until`. A crash can leave one that is damaged."""
    try:
        return line.endswith("\n") and parse_json(line)["step"] <= until
    except (ValueError, KeyError, TypeError):
        return False


def _best_score(run: Path, *, metric: str) -> float | None:
    """What the run's best model scored; None when it has none, or none by this metric."""
    try:
        score = read_model_config(run / BEST, kind="autoencoder")[0].get(f"val/{metric}")
    except ArtefactError:
        return None
    return score if isinstance(score, float) else None


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


@dataclass
class TrainResult:
    """What a training command returns: the run, how far it came, its last metrics by name, images left out."""

    run: Path
    step: int
    metrics: dict[str, float]
    num_failed: int = 0
