"""What `train-ae` and `train-diffusion` print: the plan when only that is asked for, and the trained run.

Under `torchrun` the first process speaks for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session, plain_table
from brics_cli.errors import BricsError
from brics_cli.wording import duration, human_bytes

if TYPE_CHECKING:
    from brics_cli.training.estimate import Estimate
    from brics_cli.training.loop import TrainResult
    from brics_cli.training.plan import AutoencoderPlan, DiffusionPlan


@contextmanager
def one_voice() -> Iterator[None]:
    """In all processes but the first, end with the exit code of an expected error and without its line.

    Expected errors are raised in every process; anything else is said by whoever meets it.
    """
    from brics_cli.runtime.distributed import is_first_process

    try:
        yield
    except BricsError as error:
        if is_first_process():
            raise
        raise SystemExit(int(error.exit_code)) from None


def show_plan(session: Session, plan: AutoencoderPlan | DiffusionPlan, cost: Estimate | None) -> None:
    """Print what a run would do and what it would cost; without `cost`, its complete recipe."""
    from brics_cli.config import dump_yaml
    from brics_cli.runtime.distributed import is_first_process

    if not is_first_process():
        return
    recipe, run, steps = plan.recipe, plan.artefact.path, plan.recipe.training.steps
    if cost is None:
        session.result(recipe.model_dump(mode="json"), dump_yaml(recipe).rstrip().split("\n"))
        return
    shape = " x ".join(str(side) for side in plan.code_shape)
    value = {
        "data": plan.data,
        "num_samples": plan.num_samples,
        "recipe": recipe.name,
        "code_shape": list(plan.code_shape),
        "batch_size": recipe.training.batch_size,
        "run": run,
        **asdict(cost),
    }
    table = plain_table("", "time", "model and activations")
    table.add_row(f"here, on the {plan.device.type.upper()}", duration(cost.seconds), human_bytes(cost.memory_bytes))
    for gpu in cost.gpus:
        memory = f"{human_bytes(gpu.memory_bytes)}{'' if gpu.fits else ', too much'}"
        table.add_row(gpu.name, duration(gpu.seconds), memory)
    how = "a part of a step" if cost.is_timed else "one convolution"
    left = "" if steps == cost.steps else f"{cost.steps:,} are left of "
    session.result(
        value,
        [
            f"would train {recipe.name} on {plan.num_samples:,} of {plan.data}, into {run}",
            f"  codes {shape}, {cost.num_parameters / 1e6:.2f} M parameters, {human_bytes(cost.checkpoint_bytes)} "
            "per checkpoint",
            f"  {left}{steps:,} steps of {recipe.training.batch_size}, {cost.gflop_per_step:,.4g} GFLOP each, "
            f"{cost.seconds_per_step:.2f} s here",
            table,
            f"rough: {cost.how_rough}; here {how} was timed. Validation, snapshots, waiting for data and images kept "
            "in memory come on top",
        ],
    )


def show_result(session: Session, result: TrainResult, *next_step: str | Path) -> None:
    """Print the run, and the command that comes next."""
    from brics_cli.runtime.distributed import is_first_process

    if is_first_process():
        session.result({"run": result.run, "step": result.step, "metrics": result.metrics}, str(result.run))
        session.next_step(*next_step)
