"""`brics doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session
from brics_cli.errors import ExitCode

app = options.command_app()


@app.command()
def doctor(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Check the machine: versions, device, memory, disk, kernels, weights.

    Exits 6 when something is wrong, with what to do about it. Weights that are not there are no fault: only the
    metrics that need them are out of reach.

    Example: brics doctor --json
    """
    from rich.table import Table
    from rich.text import Text

    from brics_cli.jobs.doctor import Check, diagnose
    from brics_cli.networks.registry import WEIGHTS
    from brics_cli.networks.weights import find

    session = Session(workspace=workspace, as_json=as_json)
    with session.reporter.console.status("checking"):
        checks = diagnose(session.workspace.root)
    found = [weights_id for weights_id in WEIGHTS if find(weights_id) is not None]
    there = f"{len(found)} of {len(WEIGHTS)} files: {', '.join(found) or 'none'}"
    checks.append(Check("weights", True, f"{there} (`brics weights list`)"))
    table = Table.grid(padding=(0, 2))
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("FAILED", "red")
        table.add_row(mark, Text(check.name, "bold"), Text(check.found + (f"\n{check.advice}" if check.advice else "")))
    session.result([asdict(check) for check in checks], table)
    if not all(check.ok for check in checks):
        raise typer.Exit(ExitCode.MACHINE)
    session.next_step("brics", "demo")
