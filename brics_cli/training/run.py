"""A run directory: config, environment, metrics, images, checkpoints, model (DESIGN section 7)."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter

import brics_cli
from brics_cli.config import Recipe, dump_yaml
from brics_cli.core.model_files import read_model_config
from brics_cli.data.outputs import output_lock
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.reporting import Reporter
from brics_cli.training.state import TrainingState
from brics_cli.workspace import (
    Artefact,
    atomic_path,
    check_output,
    read_provenance,
    write_json_atomically,
    write_provenance,
    write_text_atomically,
)

CONFIG_FILE = "config.yaml"


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
    """One training run on disk, open for writing."""

    def __init__(self, artefact: Artefact, *, keep_checkpoints: int, first_step: int = 0) -> None:
        self.artefact = artefact
        self.path = artefact.path
        self.keep_checkpoints = keep_checkpoints
        self.writer = SummaryWriter(str(self.path), purge_step=first_step)

    @classmethod
    def create(cls, artefact: Artefact, *, recipe: Recipe, device: torch.device, overwrite: bool) -> Run:
        """Make the directory and write what is known before the first step."""
        inputs = [parent.path for parent in artefact.parents]
        check_output(artefact.path, overwrite=overwrite, what="the run", kind=artefact.kind, inputs=inputs)
        artefact.path.mkdir(parents=True, exist_ok=True)
        write_text_atomically(artefact.path / CONFIG_FILE, dump_yaml(recipe))
        write_json_atomically(artefact.path / "environment.json", environment(device, seed=recipe.training.seed))
        write_provenance(artefact)
        return cls(artefact, keep_checkpoints=recipe.training.keep_checkpoints)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append `values` of `step` to metrics.jsonl and TensorBoard."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run is about to repeat."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text_atomically(path, "".join(kept))

    def image_path(self, step: int) -> Path:
        """Where the snapshot of `step` belongs."""
        return self.path / "images" / f"step-{step:08d}.png"

    def save_checkpoint(self, state: TrainingState[Any]) -> None:
        """Write a checkpoint atomically, then remove the oldest ones beyond `keep_checkpoints`."""
        with atomic_path(self.path / "checkpoints" / f"step-{state.step:08d}") as temporary:
            temporary.mkdir()
            state.save(temporary)
        for old in checkpoints(self.path)[: -self.keep_checkpoints]:
            shutil.rmtree(old)

    def publish(self, *, complete: bool, **details: Any) -> None:
        """Write the run's provenance with `details` added."""
        self.artefact = replace(self.artefact, complete=complete, details={**self.artefact.details, **details})
        write_provenance(self.artefact)

    def interrupted(self, state: TrainingState[Any], *, command: str) -> InterruptedRunError:
        """The error that ends a run that was asked to stop, and has been saved."""
        return InterruptedRunError(
            f"stopped at step {state.step:,} of {state.schedule.steps:,}, saved",
            next=f"Go on with: brics {command} --resume {shlex.quote(str(self.path))}",
        )


@contextmanager
def open_run(
    plan: Plan, state: TrainingState[Any], *, device: torch.device, overwrite: bool, reporter: Reporter
) -> Iterator[Run]:
    """The run directory of `plan`, locked while the block runs: made new, or resumed with its state restored.

    Raises MachineError when another process trains it, WouldOverwriteError, and ArtefactError when what it should
    continue or start from cannot be read.
    """
    artefact = plan.artefact
    with output_lock(artefact.path):
        if plan.resume:
            remove_half_written(artefact.path)
            state.load(latest_checkpoint(artefact.path))
            if state.step > plan.recipe.training.steps:
                raise UsageError(
                    f"{artefact.path} is at step {state.step:,} already, beyond --steps {plan.recipe.training.steps:,}",
                    next="Give more --steps.",
                )
            write_text_atomically(artefact.path / CONFIG_FILE, dump_yaml(plan.recipe))  # --steps may be new
            run = Run(artefact, keep_checkpoints=plan.recipe.training.keep_checkpoints, first_step=state.step + 1)
            run.forget_after(state.step)
            reporter.message(f"resuming {artefact.path} at step {state.step:,}")
        else:
            if plan.init_from is not None:
                state.start_from(read_model_config(plan.init_from, kind=artefact.kind)[1])
            run = Run.create(artefact, recipe=plan.recipe, device=device, overwrite=overwrite)
            reporter.message(f"run: {artefact.path}")
        try:
            yield run
        finally:
            run.writer.close()


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*/state.json"))


def remove_half_written(run: Path) -> None:
    """Remove what a kill left of a checkpoint or model in the making; call it under the run's lock."""
    for folder in (run, run / "checkpoints"):
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint. Raises ArtefactError when there is none."""
    found = checkpoints(run)
    if not found:
        raise ArtefactError(f"{run} has no checkpoint to resume from", next="Start it again without --resume.")
    return found[-1]


def open_for_resume(path: Path, *, kind: str) -> Artefact:
    """The artefact of a run to resume. Raises ArtefactError when `path` is not a run of `kind`."""
    artefact = read_provenance(path)
    if artefact is None or artefact.kind != kind or not (path / CONFIG_FILE).is_file():
        raise ArtefactError(f"{path} is not a run of kind {kind!r}", next="`brics status` lists the runs.")
    return artefact


def environment(device: torch.device, *, seed: int) -> dict[str, Any]:
    """What a run was made with: versions, device, seed, command line."""
    packages = ("torch", "torchvision", "numpy", "pillow", "h5py", "safetensors")
    return {
        "brics": brics_cli.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "seed": seed,
        "command": ["brics", *sys.argv[1:]],
    }


def _git_commit() -> str | None:
    """The commit of the checkout that brics runs from, `+` for uncommitted changes; None for an installed brics."""
    checkout = Path(brics_cli.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=40", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class TrainResult:
    """What a training command returns: the run, how far it came, its last metrics by name, images left out."""

    run: Path
    step: int
    metrics: dict[str, float]
    num_failed: int = 0
