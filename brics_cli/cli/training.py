"""What `train-ae` and `train-diffusion` say: the plan when only that is asked for, and the trained run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session, human_bytes

if TYPE_CHECKING:
    from brics_cli.training.estimate import Estimate
    from brics_cli.training.plan import AutoencoderPlan, DiffusionPlan
    from brics_cli.training.run import TrainResult


def show_config(session: Session, plan: AutoencoderPlan | DiffusionPlan) -> None:
    """Print the complete recipe of a plan."""
    from brics_cli.config import dump_yaml

    session.result(plan.recipe.model_dump(mode="json"), dump_yaml(plan.recipe).rstrip())


def show_plan(session: Session, plan: AutoencoderPlan | DiffusionPlan, cost: Estimate) -> None:
    """Print what a run would do, and what it would cost."""
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
    session.result({"run": result.run, "step": result.step, "metrics": result.metrics}, str(result.run))
    session.next_step(*next_step)
