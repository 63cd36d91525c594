"""`brics runs`: list, compare and remove training runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli.cli import completion, options
from brics_cli.cli.output import Session, plain_table, short_names
from brics_cli.cli.status import UNCUT
from brics_cli.config.changes import differences_said
from brics_cli.wording import human_bytes

app = options.command_app()

NOTHING = "-"
WHICH = "Runs: paths, or as much of their names as tells them apart."


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    sort: Annotated[
        str, typer.Option("--sort", metavar="COLUMN", help="created, recipe, steps, score, time or size.")
    ] = "created",
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """List training runs, show what some differ in, remove them.

    The table has the recipe of each run in the workspace, what differs from it, steps, best score (the highest val/psnr
    in dB, of a diffusion model the lowest val/fd-random or val/loss), time and size.

    Example: brics runs --sort score
    """
    if context.invoked_subcommand is not None:
        return
    from brics_cli.jobs.runs import list_runs

    session = Session(workspace=workspace, as_json=as_json)
    rows = list_runs(session.workspace, sort=sort)
    for path, reason in session.workspace.passed_over.items():
        session.reporter.warning(f"{path} is passed over: {reason}")
    if not rows and not as_json:
        session.result(rows, f"no training runs in {session.workspace.root.resolve()} yet")
        session.reporter.message("next: brics demo, or brics train-ae IMAGES")
        return
    table = plain_table("run", "recipe", "differs in", "steps", "best", "time", "size")
    for column in table.columns:
        column.no_wrap = column.header != "differs in"
    for column in table.columns[1:3]:
        column.justify = "left"
    for row in rows:
        steps = f"{row.step:,}" if row.steps in (None, row.step) else f"{row.step:,} of {row.steps:,}"
        best = NOTHING if row.best is None else f"{(row.score or '').removeprefix('val/')} {row.best:.4g}"
        took = NOTHING if row.seconds is None else str(timedelta(seconds=round(row.seconds)))
        differs = differences_said(row.changed) or NOTHING
        table.add_row(row.short_name, row.recipe, differs, steps, best, took, human_bytes(row.num_bytes))
    session.result([asdict(row) for row in rows], table, pipe_width=UNCUT)


@app.command("diff")
def diff(
    which: Annotated[list[str], typer.Argument(metavar="RUN ...", autocompletion=completion.runs, help=WHICH)],
    show_all: Annotated[bool, typer.Option("--all", help="Every setting, not only those that differ.")] = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Show runs side by side: the settings and the data in which they differ, and how far they came.

    Example: brics runs diff 20260101-120000-tiny 20260102-120000-tiny
    """
    from brics_cli.jobs.runs import diff_runs

    session = Session(workspace=workspace, as_json=as_json)
    found = diff_runs(which, show_all=show_all, workspace=session.workspace)
    table = plain_table("setting", *short_names(map(str, found.runs)))
    for column in table.columns[1:]:
        column.justify = "left"
    for key, values in found.rows.items():
        table.add_row(key, *map(_shown, values))
    same = [] if show_all else [f"{found.num_same:,} settings are the same (--all shows them)"]
    session.result(asdict(found), [table, *same], pipe_width=UNCUT)


@app.command("rm")
def remove_runs(
    which: Annotated[list[str], typer.Argument(metavar="RUN ...", autocompletion=completion.runs, help=WHICH)],
    with_children: Annotated[
        bool, typer.Option("--with-children", help="Also remove stores, models, samples and reports made from them.")
    ] = False,
    dry_run: options.DryRun = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Remove training runs.

    A run that something was made from stays, unless that goes too. Files that brics did not make are never removed.

    Example: brics runs rm 20260101-120000-tiny --dry-run
    """
    from brics_cli.jobs.runs import plan_removal, remove

    session = Session(workspace=workspace, as_json=as_json)
    removal = plan_removal(which, with_children=with_children, workspace=session.workspace)
    if not dry_run:
        remove(removal)
    value = {
        "removed": not dry_run,
        "artefacts": [{"kind": each.kind, "path": each.path} for each in removal.artefacts],
        "bytes": removal.num_bytes,
    }
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {each.kind} {each.path}" for each in removal.artefacts]
    session.result(value, [*lines, f"{human_bytes(removal.num_bytes)} in all"])


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
