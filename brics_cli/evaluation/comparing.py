"""Reports of `brics eval --out` side by side: which may be compared, and how a figure moves with training. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.evaluation.registry import NEIGHBOUR_NETWORKS, REGISTRY, Settings, weights_of
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.workspace import save_figure
from brics_cli.workspace.naming import CURVES, form_of_output

AGAIN = "Write one: brics eval --out report.json"


@dataclass(frozen=True)
class LoadedReport:
    """One report: `results` by metric, and the training step of the model that was measured (None: unknown)."""

    path: str
    results: dict[str, dict[str, Any]]
    steps: dict[str, int | None]
    """Metric -> step of the model behind its fake side."""


@dataclass(frozen=True)
class ComparedMetric:
    """One row: the figure of every report (None: not measured), the best of them, and what forbids comparing them."""

    metric: str
    title: str
    unit: str
    better: str
    values: list[float | None]
    errors: list[float | None]
    best: int | None
    differences: list[str]


def load_report(path: Path) -> LoadedReport:
    """The report in `path`. Raises ArtefactError when it is not one that `brics eval --out` wrote."""
    try:
        record = parse_json(read_bytes(path))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}", next=AGAIN) from None
    except (ValueError, IsADirectoryError) as error:
        raise ArtefactError(f"{path} is not a report of brics eval ({error})", next=AGAIN) from None
    return read_report(record, path=path)


def read_report(record: Any, *, path: Path) -> LoadedReport:
    """The report that `record` is, as JSON has it, named by `path`. Raises ArtefactError when it is none."""
    if not isinstance(record, dict) or record.get("brics_report") != 1:
        raise ArtefactError(f"{path} is not a report of brics eval", next=AGAIN)
    try:
        results = {str(result["metric"]): dict(result) for result in record["results"]}
        sides = {side: {source["path"]: source for source in record["sources"] if source["side"] == side}
                 for side in ("real", "fake")}  # fmt: skip
        models = {path: source.get("model") or {} for path, source in sides["fake"].items()}
        for name, result in results.items():
            reference = sides["real"].get(result["real"], {})
            result["reference"] = reference.get("sha256") or result["real"]
            result["reading"] = reference.get("transform"), reference.get("image_size")
            result["weights"] = _weights(name, record.get("provenance") or {})
            _ = result["definition"], result["real"], result["num_real"], result["num_fake"]
            _check_number(result["value"])
            _check_number(result.get("standard_error"))
        steps = {name: models.get(result["fake"], {}).get("step") for name, result in results.items()}
        for step in steps.values():
            _check_number(step)
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise ArtefactError(f"the report {path} is damaged ({error!r})", next=AGAIN) from None
    return LoadedReport(str(path), results, steps)


def _weights(name: str, provenance: dict[str, Any]) -> dict[str, str] | None:
    """The weights that the metric `name` was measured with: id -> sha256; None where the report does not say."""
    if name not in REGISTRY or "weights" not in provenance:
        return None
    mode, preset = provenance.get("mode", Settings.mode), provenance.get("preset", Settings.preset)
    settings = Settings(mode, preset, neighbours_by=NEIGHBOUR_NETWORKS[0])
    needed = weights_of(REGISTRY[name], settings)
    return {found["id"]: found["sha256"] for found in provenance["weights"] if found["id"] == needed}


def _check_number(value: object) -> None:
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")


def compare(reports: Sequence[LoadedReport]) -> list[ComparedMetric]:
    """One row per metric that any report has, in the order they are met."""
    names = dict.fromkeys(name for report in reports for name in report.results)
    return [_row(name, [report.results.get(name) for report in reports]) for name in names]


def _row(name: str, results: list[dict[str, Any] | None]) -> ComparedMetric:
    known = [result for result in results if result is not None]
    values = [None if result is None else result["value"] for result in results]
    differences = [
        said
        for field, said in (
            ("definition", "defined differently"),
            ("reference", "another reference"),
            ("reading", "the reference read in another way"),
            ("weights", "other weights"),
            ("num_real", "another number of real images"),
            ("num_fake", "another number of fake images"),
        )
        if len({str(result.get(field)) for result in known}) > 1
    ]
    if len({bool(result.get("comparable", True)) for result in known}) > 1:
        differences.append("comparable with published figures on one side alone")
    better = str(known[0].get("better", ""))
    measured = [index for index, value in enumerate(values) if value is not None]
    best = None
    if better and len(measured) > 1 and not differences:
        best = (min if better == "lower" else max)(measured, key=lambda index: values[index] or 0.0)
        if [values[index] for index in measured].count(values[best]) > 1:
            best = None
    return ComparedMetric(
        metric=name,
        title=str(known[0].get("title", name)),
        unit=str(known[0].get("unit", "")),
        better=better,
        values=values,
        errors=[None if result is None else result.get("standard_error") for result in results],
        best=best,
        differences=differences,
    )


def points_by_step(
    reports: Sequence[LoadedReport], metric: str
) -> dict[tuple[str, str], list[tuple[int, float, float]]]:
    """The figures of `metric` by definition and reference: (training step, value, error; 0 for none), in order."""
    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for report in reports:
        result, step = report.results.get(metric), report.steps.get(metric)
        if result is not None and step is not None and result["value"] is not None:
            point = (int(step), float(result["value"]), float(result.get("standard_error") or 0.0))
            lines.setdefault((result["definition"], result["real"]), []).append(point)
    return {key: sorted(points) for key, points in lines.items()}


def plot_against_steps(reports: Sequence[LoadedReport], metric: str, *, path: Path) -> int:
    """Draw `metric` against the training step of the model as a PNG, PDF or SVG; returns the number of points.

    Reports of one definition and one reference make a line. Raises UsageError when fewer than two reports have the
    metric and a step.
    """
    lines = points_by_step(reports, metric)
    num_points = sum(len(points) for points in lines.values())
    if num_points < 2:
        raise UsageError(
            f"{num_points} of {len(reports)} reports have {metric} of a model whose training step is known, "
            "and a plot needs 2",
            next="Measure samples that brics made: their lineage leads to the step.",
        )
    form_of_output(path, CURVES, option="--plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (_, real), points in lines.items():
        steps, values, errors = zip(*points, strict=True)
        axes.errorbar(steps, values, yerr=errors, marker="o", capsize=3, label=f"against {Path(real).name}")
    axes.set_xlabel("training step")
    axes.set_ylabel(next(report.results[metric]["title"] for report in reports if metric in report.results))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, dpi=150)
    return num_points
