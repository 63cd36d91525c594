"""What the chapters of both kinds of training runs share: the table of runs, overlaid curves, the recipe of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from brics_cli.config import list_recipes, load_recipe
from brics_cli.config.loading import load_yaml
from brics_cli.errors import BricsError
from brics_cli.jobs.plot import SMOOTHING_POINTS, Curve, Panel, choose_panels, running_average
from brics_cli.report.blocks import Block, Facts, Link, Note, Plot, Plots, Recipe, Section, Table, newest_note, number
from brics_cli.report.context import Context
from brics_cli.report.gathering import Node
from brics_cli.report.plots import Series, line_plot
from brics_cli.wording import count, duration

DETAILED = 8
"""Runs that have a section of their own: the newest."""


def seconds_of(node: Node, context: Context) -> float | None:
    """Seconds of training steps: images between two lines of the log, over their speed. None where it logged none."""
    metrics = context.curves(node)
    batch_size = recipe_values(node).get("training", {}).get("batch_size")
    if "time/img_per_s" not in metrics or not isinstance(batch_size, int):
        return None
    steps, img_per_s = metrics["time/img_per_s"]
    return float((np.diff(steps, prepend=0.0) * batch_size / np.maximum(img_per_s, 1e-9)).sum())


def recipe_values(node: Node) -> dict[str, Any]:
    """The settings of a run as they were written; empty where the file is damaged or gone."""
    try:
        return load_yaml(node.path / "config.yaml")
    except (BricsError, OSError):
        return {}


def overview(runs: Sequence[Node], figures: Mapping[str, str], context: Context) -> list[Block]:
    """What is said of all runs together: a row for each of several, and their curves."""
    table = [_table(runs, figures, context), *newest_note(runs, DETAILED, "runs")] if len(runs) > 1 else []
    return [*table, *curves(runs, context)]


def section_of(run: Node, figures: Mapping[str, str]) -> Section:
    """The section of a run, begun: its path, state, `figures` (title -> name in its details), weights and recipe."""
    state = "finished" if run.artefact is None or run.artefact.complete else "unfinished"
    facts: list[tuple[str, Any]] = [("path", run.path), ("state", state)]
    facts += [(title, text) for title, name in figures.items() if (text := number(run.details.get(name)))]
    if run.sha256 or "sha256" in run.details:
        facts.append(("sha256 of weights", str(run.details.get("sha256", run.sha256))[:12]))
    return Section(run.id, run.name, run.summary, [Facts(facts), *recipe_block(run, run.stage)])


def _table(runs: Sequence[Node], figures: Mapping[str, str], context: Context) -> Table:
    """A row per run, with those `figures` that any of them has."""
    known = {title: name for title, name in figures.items() if any(name in run.details for run in runs)}
    rows = []
    for run in runs:
        steps = recipe_values(run).get("training", {}).get("steps")
        step = run.details.get("step")
        done = f"{step:,}" if isinstance(step, int) else "0"
        of = f" of {steps:,}" if isinstance(steps, int) and step != steps else ""
        seconds = seconds_of(run, context)
        rows.append(
            [
                Link(run.name, run.id) if run in runs[:DETAILED] else run.name,
                str(run.details.get("recipe", "")),
                done + of,
                *(number(run.details.get(name)) for name in known.values()),
                "" if seconds is None else duration(seconds),
            ]
        )
    head = ["run", "recipe", "step", *known, "time in steps"]
    return Table(head, rows, f"{count(len(runs), 'run')}, the newest first", swatches=True)


def curves(runs: Sequence[Node], context: Context) -> list[Block]:
    """The panels of `brics plot` that any run has: all runs overlaid, the noise levels of a single one in one plot."""
    metrics, plots = [context.curves(run) for run in runs], list[Plot]()
    for panel in choose_panels(metrics):
        lines: dict[str, list[Series]] = {}
        for curve in panel.curves:
            title = f"{curve.name} {panel.title}".strip()
            if panel.by_curve:
                title = "validation loss by noise level" if curve.is_validation else "loss by noise level"
            for number_, (run, logged) in enumerate(zip(runs, metrics, strict=True)):
                if curve.metric in logged:
                    series = lines.setdefault(title, [])
                    name, colour = (f"log-SNR {curve.name}", len(series)) if panel.by_curve else (run.name, number_)
                    series.append(_line(name, logged[curve.metric], colour, curve, panel))
        for title, series in lines.items():
            plots += context.attempt(title, [], _plot, title, series, panel)
    return [Plots(plots)] if plots else []


def _line(name: str, logged: tuple[np.ndarray, np.ndarray], colour: int, curve: Curve, panel: Panel) -> Series:
    steps, values = logged
    if panel.smoothed and not curve.is_validation and len(values) > SMOOTHING_POINTS:
        return Series(name, steps, running_average(values), colour, values)
    return Series(name, steps, values, colour)


def _plot(title: str, series: Sequence[Series], panel: Panel) -> list[Plot]:
    notes = ["the running average over the values"] if any(line.raw is not None for line in series) else []
    notes += ["log-SNR is that of the noisy codes: low is nearly noise, high nearly clean"] if panel.by_curve else []
    log_y = None if panel.logarithmic else False
    return [line_plot(title, series, x_label="step", log_y=log_y, key=panel.by_curve, note="; ".join(notes))]


def recipe_block(node: Node, kind: str) -> list[Block]:
    """The settings of a run, folded, with what differs from the shipped recipe of that name."""
    if not (node.path / "config.yaml").is_file():
        return [Note("It has no config.yaml: its recipe and its arithmetic are not known.")]
    values = recipe_values(node)
    if not values:
        return [Note(f"{node.path / 'config.yaml'} cannot be read.", warning=True)]
    name = str(values.get("name", ""))
    shipped: dict[str, Any] | None = None
    try:
        values = load_recipe(str(node.path / "config.yaml"), kind=kind).model_dump(mode="json")
        if name in list_recipes(kind):
            shipped = load_recipe(name, kind=kind).model_dump(mode="json")
    except BricsError:
        pass  # of another version of brics: as it is written
    settings = list(_settings(values, shipped))
    num = sum(was is not None for _, _, was in settings)
    if shipped is None:
        said = f"Recipe {name or 'without a name'}: none of that name ships with this brics"
    elif num:
        said = f"Recipe {name}, {count(num, 'setting')} changed from the shipped one"
    else:
        said = f"Recipe {name}, as it ships"
    changed = [(".".join(path), f"{value} ({was})") for path, value, was in settings if was]
    block = Recipe(_lines(settings), said)
    return [Facts(changed), block] if 0 < len(changed) <= 12 else [block]


_NOTHING = object()


def _settings(
    values: Mapping[str, Any], shipped: Mapping[str, Any] | None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """(path, value as YAML, what the shipped recipe says instead; None where it says the same) of every setting."""
    for key, value in values.items():
        ours = None if shipped is None else shipped.get(key, _NOTHING)
        place = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _settings(value, None if shipped is None else ours if isinstance(ours, Mapping) else {}, place)
        elif shipped is None or ours == value:
            yield place, _plain(value), None
        else:
            yield place, _plain(value), "not in the shipped one" if ours is _NOTHING else f"shipped: {_plain(ours)}"


def _lines(settings: Sequence[tuple[tuple[str, ...], str, str | None]]) -> list[tuple[str, str | None]]:
    """The settings as indented lines, a line for each block."""
    lines: list[tuple[str, str | None]] = []
    above: tuple[str, ...] = ()
    for path, value, was in settings:
        for depth, block in enumerate(path[:-1]):
            if path[: depth + 1] != above[: depth + 1]:
                lines.append((f"{'  ' * depth}{block}:", None))
        lines.append((f"{'  ' * (len(path) - 1)}{path[-1]}: {value}", was))
        above = path[:-1]
    return lines


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return text.removesuffix("...").strip()
