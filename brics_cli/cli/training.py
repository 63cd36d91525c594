"""What `train-ae` and `train-diffusion` say: the plan when only that is asked for, and the trained run.

Under `torchrun` the first process speaks for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session, human_bytes
from brics_cli.errors import BricsError
from brics_cli.runtime.reporting import Reporter, SilentReporter

if TYPE_CHECKING:
    from brics_cli.training.estimate import Estimate
    from brics_cli.training.loop import TrainResult
    from brics_cli.training.plan import AutoencoderPlan, DiffusionPlan


def is_first_process() -> bool:
    """Whether this process is the one that speaks: the only one, or the first of those that `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """In all processes but the first, end with the exit code of an expected error and without its line.

    Expected errors are raised in every process; anything else is said by whoever meets it.
    """
    try:
        yield
    except BricsError as error:
        if is_first_process():
            raise
        raise SystemExit(int(error.exit_code)) from None


def training_reporter(session: Session) -> Reporter:
    """The session's reporter in the first process; in the others one that says nothing, not even warnings."""
    return session.reporter if is_first_process() else SilentReporter()


def show_config(session: Session, plan: AutoencoderPlan | DiffusionPlan) -> None:
    """Print the complete recipe of a plan."""
    if not is_first_process():
        return
    from brics_cli.config import dump_yaml

    session.result(plan.recipe.model_dump(mode="json"), dump_yaml(plan.recipe).rstrip().split("\n"))


def show_plan(session: Session, plan: AutoencoderPlan | DiffusionPlan, cost: Estimate) -> None:
    """Print what a run would do, and what it would cost."""
    if not is_first_process():
        return
    recipe, run = plan.recipe, plan.artefact.path
    shape = " x ".join(str(side) for side in plan.code_shape)
    value = {
        "data": plan.data,
        "num_samples": plan.num_samples,
        "recipe": recipe.name,
        "code_shape": list(plan.code_shape),
        "steps": recipe.training.steps,
        "batch_size": recipe.training.batch_size,
        "run": run,
        **asdict(cost),
    }
    session.result(
        value,
        [
            f"would train {recipe.name} on {plan.num_samples:,} of {plan.data}, into {run}",
            f"  codes {shape}, {cost.num_parameters / 1e6:.2f} M parameters, {human_bytes(cost.checkpoint_bytes)} "
            "per checkpoint",
            f"  {recipe.training.steps:,} steps of {recipe.training.batch_size}, {cost.seconds_per_step:.2f} s each on "
            f"this machine: about {timedelta(seconds=round(cost.seconds))}",
        ],
    )


def show_result(session: Session, result: TrainResult, *next_step: str | Path) -> None:
    """Print the run, and the command that comes next."""
    if not is_first_process():
        return
    session.result({"run": result.run, "step": result.step, "metrics": result.metrics}, str(result.run))
    session.next_step(*next_step)
