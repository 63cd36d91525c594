"""Scores: every figure of the reports of `brics eval`, with what it may be compared with; several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.evaluation.comparing import LoadedReport, compare, points_by_step
from brics_cli.images.pixels import decode_image
from brics_cli.report.blocks import (
    Block,
    Chapter,
    Facts,
    Gallery,
    Link,
    Note,
    Plots,
    Section,
    Table,
    Tile,
    newest_note,
    number,
)
from brics_cli.report.context import Context, Measured
from brics_cli.report.pictures import Picture
from brics_cli.report.plots import Series, line_plot
from brics_cli.wording import count

DETAILED = 12
NUM_COMPARED = 12
NUM_LISTED = 10
ARROWS = {"higher": "higher is better", "lower": "lower is better"}


def chapter(context: Context) -> Chapter:
    """All reports."""
    made = Chapter("scores", "Scores")
    reports = context.reports
    if not reports:
        return made
    made.lead = "Figures with their error bars, and what each may be compared with."
    if len(reports) > 1:
        made.blocks += context.attempt("the comparison of reports", [], _compared, reports)
        made.blocks += context.attempt("scores against steps", [], _against_steps, reports)
    made.blocks += newest_note(reports, DETAILED, "reports")
    for node, loaded, record in reports[:DETAILED]:
        section = Section(node.id, node.name, node.summary)
        section.blocks += context.attempt(str(node.path), [], _blocks, loaded, record, context)
        made.sections.append(section)
    return made


def figure(result: dict[str, Any]) -> str:
    """The value of a result with its error bar and unit."""
    value = number(result.get("value"), ".5g") or "infinite"
    error = number(result.get("standard_error"), ".2g")
    unit = f" {result['unit']}" if result.get("unit") else ""
    return f"{value} ± {error}{unit}" if error else f"{value}{unit}"


def _blocks(loaded: LoadedReport, record: dict[str, Any], context: Context) -> list[Block]:
    provenance = record.get("provenance") or {}
    rows = []
    for result in loaded.results.values():
        sides = {name: result.get(f"num_{name}") for name in ("real", "fake")}
        num = " / ".join(f"{each:,}" if isinstance(each, int) else "-" for each in sides.values())
        weights = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in (result.get("weights") or {}).items())
        comparable = "with published figures" if result.get("comparable") else result.get("not_comparable")
        rows.append(
            [
                f"{result.get('title', '')}",
                figure(result),
                ARROWS.get(str(result.get("better")), ""),
                str(result.get("error_kind") or ""),
                num,
                weights or "none",
                str(comparable or "within brics, at equal N and settings"),
                str(result.get("definition", "")) + (f"; {result['note']}" if result.get("note") else ""),
            ]
        )
    head = ["metric", "value", "", "error bar", "N real / fake", "weights, sha256", "comparable", "definition"]
    blocks: list[Block] = [Table(head, rows)]
    sources = [(str(each.get("side")), f"{each.get('path')}: {each.get('description')}") for each in record["sources"]]
    versions = {"brics": provenance.get("brics_version", ""), **(provenance.get("packages") or {})}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks += [Facts([*sources, ("device", provenance.get("device", ""))]), Note(f"Measured with {listed}.")]
    left_out = {
        "failed": [f"{each['key']}: {each['reason']}" for each in record.get("failures") or []],
        "not measured": [f"{name}: {why}" for name, why in (record.get("left_out") or {}).items()],
        "without a partner": [*(record.get("unmatched_real") or []), *(record.get("unmatched_fake") or [])],
    }
    for title, names in left_out.items():
        if names:
            more = f", the first {NUM_LISTED}" if len(names) > NUM_LISTED else ""
            rows = [[str(number_), name] for number_, name in enumerate(names[:NUM_LISTED], start=1)]
            said = f"{count(len(names), 'entry', 'entries')} {title}{more}"
            blocks.append(Table(["", title], rows, said, folded=True))
    for sheet in record.get("sheets") or []:
        blocks += context.attempt(f"the sheet {sheet}", [], _sheet, Path(sheet), Path(loaded.path).parent)
    return blocks


def _sheet(path: Path, folder: Path) -> list[Block]:
    """A sheet that a report names, where it was or beside the report in `folder`."""
    path = path if path.exists() else folder / path.name
    picture = Picture(np.array(decode_image(path.read_bytes())))
    alt = f"sheet {path.name}: each fake image, then the real ones nearest to it"
    return [Gallery([Tile(picture, alt, str(path))], "", "maps")]


def _compared(reports: Sequence[Measured]) -> list[Block]:
    """Metrics by reports: the best figure is marked where they may be compared, and why not where they may not."""
    shown = reports[:NUM_COMPARED]
    rows = []
    for row in compare([loaded for _, loaded, _ in shown]):
        figures = []
        for at, value in enumerate(row.values):
            error = number(row.errors[at], ".2g")
            text = number(value, ".5g") + (f" ± {error}" if error and value is not None else "")
            figures.append(text + (" (best)" if row.best == at else ""))
        rows.append([f"{row.title} {row.unit}".strip(), *figures, "; ".join(row.differences)])
    links = [Link(node.name, node.id) for node, _, _ in shown[:DETAILED]]
    more = f", the {NUM_COMPARED} newest of {len(reports)}" if len(reports) > NUM_COMPARED else ""
    head = ["metric", *links, "not to be compared, because"]
    return [Table(head, rows, f"{count(len(shown), 'report')} side by side{more}")]


def _against_steps(reports: Sequence[Measured]) -> list[Block]:
    """Each metric of sets against the training step of the model, where at least two reports know it."""
    plots, known = [], [loaded for _, loaded, _ in reports]
    titles = {name: result["title"] for loaded in reversed(known) for name, result in loaded.results.items()}
    for name, title in titles.items():
        series = list[Series]()
        for (_, real), points in points_by_step(known, name).items():
            if len({step for step, _, _ in points}) > 1:
                x, y, errors = np.array(points).T
                said = f"against {Path(real).name}"
                series.append(Series(said, x, y, len(series), errors=errors if errors.any() else None))
        if series:
            plots.append(line_plot(f"{title} against training steps", series, x_label="training step", log_y=False))
    return [Plots(plots)] if plots else []
