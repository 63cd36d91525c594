"""`brics train-ae`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.cli.training import one_voice, show_plan, show_result
from brics_cli.errors import ExitCode

app = options.command_app()


@app.command()
def train_ae(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Images: a folder, WebDataset tars or a pattern of them, a zip, an LMDB, parquet, or a URL. Default: "
            "the newest packed shards.",
        ),
    ] = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    recipe: options.Recipe = None,
    steps: options.Steps = None,
    batch_size: options.TrainBatchSize = None,
    lr: options.LearningRate = None,
    dtype: options.TrainDtype = None,
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
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Train an autoencoder: images -> key codes -> images.

    Without --recipe it is, on a GPU, the largest general recipe that is not above the median image side; on a CPU tiny.
    Ctrl-C finishes the step, saves, and prints the command that goes on.

    Example: brics train-ae ./shards --recipe tiny --set optimiser.lr=1e-3
    """
    from brics_cli.api import train_autoencoder
    from brics_cli.runtime.distributed import of_first_process
    from brics_cli.training.plan import TrainOptions, plan_autoencoder

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    asked: dict[str, Any] = {
        "subset": subset,
        "image_field": image_field,
        "recipe": recipe,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "precision": dtype,
        "seed": seed,
        "overrides": overrides or (),
        "val": val,
        "out": out,
        "resume": resume,
        "init_from": init_from,
        "overwrite": overwrite,
        "device": device,
    }
    with one_voice():
        if print_config or dry_run:
            reporter = of_first_process(session.reporter)
            plan = plan_autoencoder(TrainOptions(data, **asked), workspace=session.workspace, reporter=reporter)
            show_plan(session, plan, None if print_config else plan.estimate())
            return ExitCode.DONE
        trained = train_autoencoder(
            data,
            **asked,
            num_workers=num_workers,
            workspace=session.workspace.root,
            reporter=session.reporter,
        )
        codes = session.workspace.unused("codes.h5")
        show_result(session, trained, "brics", "encode-dataset", trained.data, "--out", codes, "--ae", trained.run)
    return ExitCode.SOME_FAILED if trained.num_failed else ExitCode.DONE
