"""How `brics eval` shows figures: the table, what a reader must know besides, what was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from brics_cli.cli.output import Session, plain_table
from brics_cli.evaluation.registry import REGISTRY
from brics_cli.evaluation.report import OWN_WEIGHTS, UNKNOWN_STATISTICS

if TYPE_CHECKING:
    from rich.table import Table

    from brics_cli.evaluation.comparing import ComparedMetric, LoadedReport
    from brics_cli.evaluation.report import EvaluationReport, MetricResult
    from brics_cli.jobs.self_test import Check

NUM_FAILURES_SHOWN = 10
_NOT_COMPARABLE = {
    OWN_WEIGHTS: "the weights are not the published file",
    UNKNOWN_STATISTICS: "it is unknown which network made the saved statistics",
}
NO_FIGURE = "-"


def results_table(report: EvaluationReport) -> Table:
    """Metric, value, error bar, N, and what the figure is comparable with."""
    table = plain_table("metric", "value", "±", "N", "comparable with")
    table.columns[-1].justify = "left"
    for result in report.results:
        error = NO_FIGURE if result.standard_error is None else _figure(result, result.standard_error)
        with_ = result.definition
        if result.not_comparable is not None:
            with_ = f"nothing published ({result.not_comparable}): {with_}"
        title = f"{result.title} {_arrow(result.better)}".strip()
        table.add_row(title, _figure(result, result.value), error, _number(result), with_)
    return table


def footnotes(report: EvaluationReport) -> list[str]:
    """What a reader of the table must know besides."""
    notes = [f"{result.title}: {result.note}" for result in report.results if result.note]
    kinds: dict[str, list[str]] = {}
    for result in report.results:
        if result.error_kind is not None:
            kinds.setdefault(result.error_kind, []).append(result.title)
    notes += [f"± of {', '.join(titles)}: {kind}" for kind, titles in kinds.items()]
    for obstacle, why in _NOT_COMPARABLE.items():
        of = [result.title for result in report.results if obstacle in (result.not_comparable or "")]
        if of:
            notes.append(f"not comparable with published figures, since {why}: {', '.join(of)}")
    return notes


def comparison_table(reports: Sequence[LoadedReport], rows: Sequence[ComparedMetric]) -> Table:
    """One column per report, the best of each row marked."""
    table = plain_table("metric", *_short_names([report.path for report in reports]), "not ranked because of")
    table.columns[-1].justify = "left"
    for row in rows:
        cells: list[str | Text] = []
        for index, (value, error) in enumerate(zip(row.values, row.errors, strict=True)):
            text = NO_FIGURE if value is None else f"{value:.4f}"
            text += "" if error is None else f" ± {error:.4f}"
            cells.append(Text(f"{text} *", "bold green") if index == row.best else text)
        title = " ".join(filter(None, (row.title, row.unit, _arrow(row.better))))
        table.add_row(title, *cells, ", ".join(row.differences))
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """One line per check of the self-test."""
    table = plain_table("check", "result", "expected", "found")
    table.columns[-1].justify = "left"
    said = {True: Text("passed", "green"), False: Text("FAILED", "red"), None: Text("not run", "yellow")}
    for check in checks:
        table.add_row(check.name, said[check.passed], check.expected, check.found)
    return table


def say_what_was_not_measured(session: Session, report: EvaluationReport, out: Path | None) -> None:
    """Left-out metrics, images without a partner, images that failed: on stderr."""
    reporter = session.reporter
    for source in report.sources:
        if source.cached:
            reporter.message(f"{source.side}: features of {', '.join(source.cached)} from the cache")
    for name, reason in report.left_out.items():
        reporter.message(f"left out: {name}: {reason}")
    if report.num_pairs is not None:
        for side, keys in (("real", report.unmatched_real), ("fake", report.unmatched_fake)):
            if keys:
                listed = "first" if out is None else f"listed in {out}, first"
                reporter.warning(f"{side}: {_images(len(keys))} without a partner of the same key, {listed} {keys[0]}")
    if report.failures:
        total = len(report.failures)
        first = f"first {min(total, NUM_FAILURES_SHOWN)}" if total > 1 else "namely"
        listed = f"listed in {out}" if out is not None else f"{first}:"
        reporter.warning(f"{_images(total)} failed, left out of every figure, {listed}")
        for failure in report.failures[:NUM_FAILURES_SHOWN] if out is None else []:
            reporter.warning(f"{failure.side} {failure.key}: {failure.reason}")
    if out is not None:
        reporter.message(f"report: {out}")


def _number(result: MetricResult) -> str:
    real, fake = ("?" if num is None else f"{num:,}" for num in (result.num_real, result.num_fake))
    if result.num_real == result.num_fake:
        return real
    if REGISTRY[result.metric].one_sided:
        return fake
    return f"{real} real, {fake} fake"


def _figure(result: MetricResult, value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.{REGISTRY[result.metric].decimals}f} {result.unit}".strip()


def _arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(better, "")


def _images(num: int) -> str:
    return f"{num:,} image{'' if num == 1 else 's'}"


def _short_names(paths: Sequence[str]) -> list[str]:
    """File names where they tell the paths apart, else the paths."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
