"""What `train-ae` and `train-diffusion` say: the plan when only that is asked for, and the trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session

if TYPE_CHECKING:
    from brics_cli.training.plan import AutoencoderPlan, DiffusionPlan
    from brics_cli.training.run import TrainResult


def show_plan(session: Session, plan: AutoencoderPlan | DiffusionPlan, *, print_config: bool, dry_run: bool) -> bool:
    """Print the recipe or what would be done, when asked to; whether that was all that was asked for."""
    from brics_cli.config import dump_yaml

    recipe, run = plan.recipe, plan.artefact.path
    if print_config:
        session.result(recipe.model_dump(mode="json"), dump_yaml(recipe).rstrip())
    elif dry_run:
        shape = " x ".join(str(side) for side in plan.code_shape)
        value = {
            "data": plan.data,
            "num_samples": plan.num_samples,
            "recipe": recipe.name,
            "code_shape": list(plan.code_shape),
            "steps": recipe.training.steps,
            "batch_size": recipe.training.batch_size,
            "run": run,
        }
        session.result(
            value,
            f"would train {recipe.name} on {plan.num_samples:,} of {plan.data}: codes {shape}, "
            f"{recipe.training.steps:,} steps of {recipe.training.batch_size}, into {run}",
        )
    return print_config or dry_run


def show_result(session: Session, result: TrainResult, *next_step: str | Path) -> None:
    """Print the run, and the command that comes next."""
    session.result({"run": result.run, "step": result.step, "metrics": result.metrics}, str(result.run))
    session.next_step(*next_step)
