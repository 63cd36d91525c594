"""`brics plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import completion, options
from brics_cli.cli.output import Session

app = options.command_app()


@app.command()
def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN ...",
            autocompletion=completion.runs,
            help="Training runs, overlaid. Default: the newest one in the workspace.",
        ),
    ] = None,
    out: Annotated[
        Path | None, options.out_option("FILE", "The figure: .png, .svg or .pdf. Default: curves.png.")
    ] = None,
    overwrite: options.Overwrite = False,
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Draw loss, learning-rate and validation curves of training runs.

    Runs that are still training can be drawn too. What cannot be drawn is said, and the rest is drawn. Points are
    validation scores; a line dashed in several colours is several curves that are equal.

    Example: brics plot runs/autoencoder/* --out curves.png
    """
    from brics_cli.jobs.plot import plot_runs

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    drawn = plot_runs(runs, out=out, overwrite=overwrite, workspace=session.workspace, reporter=session.reporter)
    session.result({"plot": drawn.path, "runs": drawn.runs, "not_drawn": drawn.not_drawn}, str(drawn.path))
