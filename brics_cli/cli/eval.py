"""`brics eval`: the figures of reconstructions and samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from brics_cli.metrics.report import EvaluationReport, MetricResult

app = options.command_app()
NUM_FAILURES_SHOWN = 10
NO_FIGURE = "-"


@app.command()
def eval(
    metric: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--metric",
            help="psnr, ssim, lpips, lpips-vgg (pairs of images); fid, clip-fid (sets of images). Repeatable. "
            "Default: psnr, ssim, and every other one whose weights are there.",
        ),
    ] = None,
    real: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--real", metavar="PATH", help="The originals: a folder, tars, a tar pattern, or a key-code store."
        ),
    ] = None,
    fake: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--fake", metavar="PATH", help="What is measured: the same kinds; a store is decoded on the fly."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Also write the report, with its provenance, as JSON."),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", min=1, help="Measure only the first so many pairs, or images of each side."),
    ] = None,
    batch_size: options.BatchSize = 32,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Use weights of unknown sha256 that were imported so. Their figures are marked not comparable.",
        ),
    ] = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Measure reconstructions against their originals, or samples against a collection.

    **Pairs** (psnr, ssim, lpips): left out, `--fake` is the newest key-code store, decoded on the fly, and `--real`
    the collection it was encoded from. Images are paired by key: equal keys, or one with directories in front.

    **Sets** (fid, clip-fid): left out, `--fake` is the newest samples, and `--real` the collection that the
    autoencoder behind them was trained on.

    The transform and size of the store or autoencoder behind one side apply to the collection on the other.
    """
    from brics_cli.jobs.evaluate import evaluate

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    report = evaluate(
        metric,
        real=real,
        fake=fake,
        workspace=session.workspace,
        reporter=session.reporter,
        device=device,
        batch_size=batch_size,
        limit=limit,
        allow_unverified=allow_unverified,
        out=out,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if dry_run:
        lines = [
            f"would measure {', '.join(each['metrics'])} of {each['fake']} against {each['real']}"
            for each in report.planned
        ]
        session.result({"planned": report.planned, "left_out": report.left_out}, lines)
        return ExitCode.DONE
    session.result(report.to_json(), [results_table(report), *footnotes(report)])
    _say_what_was_not_measured(session, report, out)
    store = next((source.path for source in report.sources if source.kind == "store"), None)
    if store is not None and "fid" not in {result.metric for result in report.results}:
        session.next_step("brics", "train-diffusion", store)
    else:
        session.next_step("brics", "status")
    return ExitCode.SOME_FAILED if report.failures else ExitCode.DONE


def results_table(report: EvaluationReport) -> Table:
    """Metric, value, standard error, N, definition."""
    table = plain_table("metric", "value", "± s.e.", "N", "definition")
    table.columns[-1].justify = "left"
    for result in report.results:
        arrow = "↑" if result.better == "higher" else "↓"
        num = f"{result.num_real:,}"
        if result.num_real != result.num_fake:
            num = f"{result.num_real:,} real, {result.num_fake:,} fake"
        error = NO_FIGURE if result.standard_error is None else _figure(result, result.standard_error)
        table.add_row(f"{result.title} {arrow}", _figure(result, result.value), error, num, result.definition)
    return table


def footnotes(report: EvaluationReport) -> list[str]:
    """What a reader of the table must know besides."""
    notes = [f"{result.title}: {result.note}" for result in report.results if result.note]
    if any(result.standard_error is None and result.resize is not None for result in report.results):
        notes.append(f"{NO_FIGURE}  a figure of two sets as a whole has no standard error over images")
    notes += [
        f"{result.title}: not comparable with published figures, its weights are not the published file"
        for result in report.results
        if not result.comparable
    ]
    return notes


def _figure(result: MetricResult, value: float) -> str:
    if math.isinf(value):
        return "∞"
    digits = 2 if result.unit == "dB" else 4
    return f"{value:.{digits}f} {result.unit}".strip()


def _images(num: int) -> str:
    return f"{num:,} image{'' if num == 1 else 's'}"


def _say_what_was_not_measured(session: Session, report: EvaluationReport, out: Path | None) -> None:
    """Left-out metrics, images without a partner, images that failed: on stderr."""
    reporter = session.reporter
    for name, reason in report.left_out.items():
        reporter.message(f"left out: {name}: {reason}")
    if report.num_pairs is not None:
        for side, keys in (("real", report.unmatched_real), ("fake", report.unmatched_fake)):
            if keys:
                reporter.warning(f"{side}: {_images(len(keys))} without a partner of the same key, first {keys[0]}")
    if report.failures:
        total = len(report.failures)
        first = f"first {min(total, NUM_FAILURES_SHOWN)}" if total > 1 else "namely"
        listed = f"listed in {out}" if out is not None else f"{first}:"
        reporter.warning(f"{_images(total)} failed, left out of every figure, {listed}")
        for failure in report.failures[:NUM_FAILURES_SHOWN] if out is None else []:
            reporter.warning(f"{failure.side} {failure.key}: {failure.reason}")
    if out is not None:
        reporter.message(f"report: {out}")
