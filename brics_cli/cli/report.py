"""`brics report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from brics_cli import api
from brics_cli.cli import completion, options
from brics_cli.cli.output import Session
from brics_cli.wording import count

app = options.command_app()


@app.command()
def report(
    what: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|STORE|SAMPLES|report.json ...",
            autocompletion=completion.runs,
            help="What the page is of, together with what it was made from. Default: the whole workspace.",
        ),
    ] = None,
    out: Annotated[
        Path | None, options.out_option("x.html", "The page. Default: report.html in the workspace.")
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option("--max-mb", min=0.1, help="Megabytes at most: pictures are made smaller, then fewer. Default: 8."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            "--watts", min=0.0, help="Power of the machine, for the estimate of energy. Default: by its kind."
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    overwrite: options.Overwrite = False,
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write one HTML page of runs, stores, samples and scores, or of the whole workspace.

    Curves, reconstructions, codes, samples and scores, with what was made from what, the exact commands and what is
    not shown. One file that needs no network and no script to be read, to be mailed or printed. Nothing is trained,
    sampled or downloaded for it.

    Example: brics report --out report.html --open
    """
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    written = api.report(
        what, out=out, max_mb=max_mb, watts=watts, overwrite=overwrite,
        workspace=session.workspace.root, reporter=session.reporter,
    )  # fmt: skip
    lines = [f"{written.path}: {written.num_bytes / 1e6:.1f} MB in {written.seconds:.1f} s"]
    if written.left_out:
        lines.append(f"not shown: {count(len(written.left_out), 'thing')}; the page lists them")
    session.result(asdict(written), lines)
    if open_:
        import webbrowser

        if not webbrowser.open(written.path.resolve().as_uri()):
            session.reporter.warning(f"no browser was found: open {written.path} in one")
