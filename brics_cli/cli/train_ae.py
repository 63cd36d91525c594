"""`brics train-ae`."""

from __future__ import annotations

from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.cli.training import one_voice, show_config, show_plan, show_result, training_reporter
from brics_cli.errors import ExitCode

app = options.command_app()


@app.command()
def train_ae(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Images: a folder, WebDataset tars or a pattern of them, a zip, an LMDB, or parquet. Default: the "
            "newest packed shards.",
        ),
    ] = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    recipe: options.Recipe = None,
    steps: options.Steps = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    val: Annotated[
        str | None,
        typer.Option("--val", metavar="DATA", help="Images to validate on. Default: 2% of DATA, by hash of the key."),
    ] = None,
    out: options.RunOut = None,
    resume: options.Resume = None,
    init_from: options.InitFrom = None,
    num_workers: options.NumWorkers = None,
    print_config: options.PrintConfig = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Train an autoencoder: images -> key codes -> images.

    Without --recipe the largest general recipe that is not above the median image side is taken. Ctrl-C finishes the
    step, saves, and prints the command that goes on.

    Example: brics train-ae ./shards --recipe tiny --set optimiser.lr=1e-3
    """
    from brics_cli.jobs.train_ae import estimate_training, train_autoencoder
    from brics_cli.training.plan import TrainOptions, plan_autoencoder

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    reporter = training_reporter(session)
    asked = TrainOptions(
        data=data,
        subset=subset,
        image_field=image_field,
        recipe=recipe,
        steps=steps,
        seed=seed,
        overrides=overrides or (),
        val=val,
        out=out,
        resume=resume,
        overwrite=overwrite,
        init_from=init_from,
    )
    with one_voice():
        plan = plan_autoencoder(asked, workspace=session.workspace, reporter=reporter)
        if print_config:
            show_config(session, plan)
            return ExitCode.DONE
        if dry_run:
            show_plan(session, plan, estimate_training(plan, device=device))
            return ExitCode.DONE
        trained = train_autoencoder(
            plan, device=device, num_workers=num_workers, overwrite=overwrite, reporter=reporter
        )
    show_result(session, trained, "brics", "encode-dataset", plan.data, "--out", "codes.h5", "--ae", trained.run)
    return ExitCode.SOME_FAILED if trained.num_failed else ExitCode.DONE
