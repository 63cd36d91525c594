"""`brics eval compare`: reports side by side; a key-code store among them is measured first, for its diffusability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from brics_cli.config.names import Precision
from brics_cli.errors import UsageError
from brics_cli.evaluation.comparing import LoadedReport, load_report, plot_against_steps, read_report
from brics_cli.evaluation.diffusability.figure import draw
from brics_cli.evaluation.registry import GROUPS, Settings, metric
from brics_cli.jobs.evaluate import evaluate
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace, check_output, check_writable
from brics_cli.workspace.naming import CURVES, form_of_output, is_store

if TYPE_CHECKING:
    from brics_cli.config.names import Normalise

DIFFUSABILITY = "diffusability"


def load_or_measure(
    paths: Sequence[Path],
    *,
    real: str | None,
    normalise: str,
    limit: int | None,
    device: str,
    precision: Precision | None,
    workspace: Workspace,
    reporter: Reporter,
) -> list[LoadedReport]:
    """The reports at `paths`, and the diffusability of the stores among them. Raises what `evaluate` and `load_report`
    do, and UsageError for a single path."""
    if len(paths) < 2:
        raise UsageError(
            "brics eval compare needs at least 2 reports or stores", next="brics eval compare A.json B.json"
        )
    settings = Settings(normalise=cast("Normalise", normalise))  # which checks the name
    if not any(map(is_store, paths)):
        given = {"--real": real, "--limit": limit, "--normalise": normalise != Settings.normalise}
        given |= {"--dtype": precision}
        if unused := [option for option, value in given.items() if value]:
            raise UsageError(f"{', '.join(unused)}: nothing is measured, since none of these is a key-code store")
    loaded = []
    for path in paths:
        if not is_store(path):
            loaded.append(load_report(path))
            continue
        report = evaluate(
            [DIFFUSABILITY], real=real, fake=path, limit=limit, settings=settings, device=device, precision=precision,
            workspace=workspace, reporter=reporter,
        )  # fmt: skip
        loaded.append(read_report(report.to_json(), path=path))
    return loaded


def check_plot(plot: Path, asked: str | None, paths: Sequence[Path], *, overwrite: bool) -> str:
    """The metric or group that `plot` is to show: what was `asked` for, else diffusability of stores, else FID.

    Raises UsageError and WouldOverwriteError, before anything is measured, when it cannot be drawn.
    """
    wanted = asked or (DIFFUSABILITY if any(map(is_store, paths)) else "fid")
    if wanted not in GROUPS:
        metric(wanted)
    form_of_output(plot, CURVES, option="--plot")
    check_output(plot, overwrite=overwrite, what="the plot", flag="--plot")
    check_writable(plot)
    return wanted


def plot_comparison(reports: Sequence[LoadedReport], wanted: str, *, path: Path) -> str:
    """Draw `wanted`: the figure of a group, or a metric against training steps; what was drawn, in words."""
    if wanted not in GROUPS:
        return f"{plot_against_steps(reports, metric(wanted).name, path=path)} points"
    shown = {report.path: report.results for report in reports if GROUPS[wanted][0] in report.results}
    if not shown:
        raise UsageError(
            f"no report has figures of {wanted}", next="Give stores, or reports of --metric diffusability."
        )
    names = [Path(each).stem for each in shown]
    unique = names if len(set(names)) == len(names) else list(shown)
    draw(dict(zip(unique, shown.values(), strict=True)), path=path)
    return f"{wanted} of {len(shown)} stores"
