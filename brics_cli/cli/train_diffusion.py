"""`brics train-diffusion`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.cli.training import one_voice, show_plan, show_result

app = options.command_app()


@app.command()
def train_diffusion(
    codes: Annotated[
        str | None,
        typer.Argument(metavar="CODES", help="A key-code store. Default: the newest one in the workspace."),
    ] = None,
    recipe: options.Recipe = None,
    steps: options.Steps = None,
    batch_size: options.TrainBatchSize = None,
    lr: options.LearningRate = None,
    dtype: options.TrainDtype = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    out: options.RunOut = None,
    resume: options.Resume = None,
    init_from: options.InitFrom = None,
    print_config: options.PrintConfig = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Train a diffusion model on a key-code store.

    The model learns the distribution of the codes; `brics sample` decodes what it draws with the store's own
    autoencoder. Class-conditional when the store has labels. Without --recipe it is brics-dit-s, on a CPU tiny. Ctrl-C
    finishes the step, saves, and prints the command that goes on.

    Example: brics train-diffusion codes.h5 --recipe tiny --steps 2000
    """
    from brics_cli.api import train_diffusion
    from brics_cli.runtime.distributed import of_first_process
    from brics_cli.training.plan import TrainOptions, plan_diffusion

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    asked: dict[str, Any] = {
        "recipe": recipe,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "precision": dtype,
        "seed": seed,
        "overrides": overrides or (),
        "out": out,
        "resume": resume,
        "init_from": init_from,
        "overwrite": overwrite,
        "device": device,
    }
    with one_voice():
        if print_config or dry_run:
            reporter = of_first_process(session.reporter)
            plan = plan_diffusion(TrainOptions(codes, **asked), workspace=session.workspace, reporter=reporter)
            show_plan(session, plan, None if print_config else plan.estimate())
            return
        trained = train_diffusion(codes, **asked, workspace=session.workspace.root, reporter=session.reporter)
        show_result(session, trained, "brics", "sample", "--n", "1000", "--model", trained.run)
