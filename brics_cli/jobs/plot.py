"""`brics plot`: metrics.jsonl of one or more runs -> loss, learning-rate and validation curves, overlaid.

Raw values are drawn faint, their running average on top; validation scores are the points that they are, joined by a
thin line. Curves that are equal share one line, dashed in the colours of their runs. A loss that spans more than a
decade gets a logarithmic axis.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from brics_cli.config.changes import label, run_name
from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.runtime.reporting import Reporter, SilentReporter, printable
from brics_cli.workspace import Workspace, check_output, provenance_at, save_figure
from brics_cli.workspace.artefacts import TRAINED
from brics_cli.workspace.naming import CURVES, form_of_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Curve(NamedTuple):
    """A metric in a panel, and what its own legend calls it."""

    metric: str
    name: str = ""

    @property
    def is_validation(self) -> bool:
        return self.metric.startswith("val/")


class Panel(NamedTuple):
    """Curves in one pair of axes; `smoothed`: with running averages; `logarithmic`: its axis may be.

    `by_curve`: it shows one run, and a colour is a curve's; otherwise a colour is a run's.
    """

    title: str
    curves: tuple[Curve, ...]
    smoothed: bool = False
    logarithmic: bool = False
    by_curve: bool = False


PANELS = (
    Panel("loss", (Curve("train/loss", "training"), Curve("val/loss", "validation")), smoothed=True, logarithmic=True),
    Panel("validation PSNR, dB", (Curve("val/psnr"),)),
    Panel("Fréchet distance of random features", (Curve("val/fd-random"),), logarithmic=True),
    Panel("learning rate", (Curve("train/lr"),)),
    Panel("validation SSIM", (Curve("val/ssim"),)),
    Panel("share of table entries in use", (Curve("val/usage"),)),
    Panel("weight of the adversarial loss", (Curve("train/gan_weight"),), logarithmic=True),
    Panel("discriminator loss", (Curve("train/d_loss"),), smoothed=True),
    Panel("gradient norm before clipping", (Curve("train/grad_norm"),), smoothed=True, logarithmic=True),
)
"""What is drawn, where a run has it; after the first, the losses by noise level."""
LEVEL = "loss/logsnr"
"""What the metrics of a range of noise levels begin with; those of validation have `val/` in front."""
SMOOTHING_POINTS = 15
"""The running average is over about this many points, or a tenth of the curve if that is less."""
DASH = 5.0
"""Line widths that each of several equal curves is drawn for, in turn."""
PANEL_INCHES = (6.0, 3.2)
LETTERS_PER_INCH, LINE_INCHES = 11, 0.2
"""Of the legend above all panels."""
DECADE = 10.0
MOST_METRICS_BYTES = 1 << 30
MOST_NAMED = 8
OUT = Path("curves.png")

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
"""The metrics of a run: by name, steps (N,) and values (N,)."""


@dataclass(frozen=True)
class Plot:
    """The picture that was written, and what is in it: by run, the last step and the last value of each metric.

    `not_drawn`: by run that has no curves, why.
    """

    path: Path
    runs: dict[str, dict[str, float]]
    not_drawn: dict[str, str] = field(default_factory=dict)


def plot_runs(
    runs: Sequence[Path] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> Plot:
    """Draw the curves of `runs` (None: the newest one of either kind in the workspace) into `out` (.png, .svg, .pdf).

    `reporter` hears what of them cannot be drawn. Raises UsageError for another format, WouldOverwriteError, and
    ArtefactError when none of `runs` is a run with metrics.
    """
    runs, out = runs or [_newest_run(workspace, reporter)], out or OUT
    form_of_output(out, CURVES)
    check_output(out, overwrite=overwrite, what="the picture", inputs=runs)
    curves: dict[Path, Curves] = {}
    failures: dict[Path, ArtefactError] = {}
    for run in runs:
        try:
            curves[run] = read_curves(run, reporter=reporter)
        except ArtefactError as error:
            failures[run] = error
    if not curves:
        raise next(iter(failures.values()))
    for failure in failures.values():
        reporter.warning(f"not drawn: {failure.what}")
    panels = choose_panels(list(curves.values()))
    shown = {curve.metric for panel in panels for curve in panel.curves}
    names = dict.fromkeys(name for each in curves.values() for name in each if not name.startswith("time/"))
    others = [name for name in names if name not in shown]
    if others:
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        reporter.message(f"without a panel (--json has them): {', '.join(others[:MOST_NAMED])}{more}")
    draw(dict(zip(_labels(list(curves)), curves.values(), strict=True)), panels, out)
    last = {
        str(run): {"step": float(max(steps[-1] for steps, _ in metrics.values()))}
        | {name: float(values[-1]) for name, (_, values) in metrics.items()}
        for run, metrics in curves.items()
    }
    return Plot(out, last, {str(run): failure.what for run, failure in failures.items()})


def _newest_run(workspace: Workspace, reporter: Reporter) -> Path:
    newest = next((run for run in workspace.artefacts() if run.kind in TRAINED), None)
    if newest is None:
        return workspace.newest("autoencoder").path  # which says how to make one
    reporter.message(f"RUN not given: using {newest.path}")
    return newest.path


def read_curves(run: Path, *, reporter: Reporter | None = None) -> Curves:
    """The metrics of a run. A last line that a kill cut short is passed over.

    `reporter` hears of other lines that are damaged, and of values that are not finite; without one the first is an
    error. Raises ArtefactError when `run` is not a training run, or has logged nothing.
    """
    artefact = provenance_at(run)
    if artefact is None or artefact.kind not in TRAINED:
        raise ArtefactError(f"{run} is not a training run", next="`brics runs` lists them.")
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ArtefactError(f"{run} has logged nothing yet ({path} is missing)")
    try:
        lines = read_bytes(path, most=MOST_METRICS_BYTES).decode("utf-8", "replace").splitlines()
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged ({error})") from None
    points: dict[str, list[tuple[int, float]]] = {}
    damaged: list[int] = []
    odd: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = parse_json(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number < len(lines):
                damaged.append(number)
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((step, float(value)))
            elif not isinstance(value, str):
                odd[name] = odd.get(name, 0) + 1
    if damaged and reporter is None:
        raise ArtefactError(f"{path} line {damaged[0]} is damaged")
    reporter = reporter or SilentReporter()
    if damaged:
        reporter.warning(f"{path}: {len(damaged):,} damaged lines are passed over, first line {damaged[0]:,}")
    for name, num in odd.items():
        reporter.warning(f"{path}: {num:,} values of {name} are not finite, and not drawn")
    curves: Curves = {name: tuple(np.array(rows, float).T) for name, rows in points.items()}
    if not choose_panels([curves]):
        raise ArtefactError(
            f"{run} has logged nothing yet", next="The first line comes after training.log_every steps."
        )
    return curves


def _labels(runs: Sequence[Path]) -> list[str]:
    """What each run's recipe and settings are; where several are the same, also as much of the path as tells them
    apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(set(parts)):
            break
    made = [provenance_at(run) for run in runs]
    details = [{} if each is None else each.details for each in made]
    labels = [label(each) for each in details]
    dates = [name.removesuffix(f"-{run_name(each)}") for name, each in zip(short, details, strict=True)]
    return [
        name if not said else said if labels.count(said) == 1 else f"{said} ({date})"
        for said, name, date in zip(labels, short, dates, strict=True)
    ]


def choose_panels(runs: Sequence[Curves]) -> list[Panel]:
    """The panels for which any of `runs` has a curve. Losses by noise level stand in one for a single run, for several
    in one per level."""
    found = {name.removeprefix("val/") for metrics in runs for name in metrics if LEVEL in name}
    order = sorted(found, key=lambda name: (float((re.findall(r"-?\d+", name) or ["0"])[0]), "<" not in name))
    names = {
        name: name.removeprefix(LEVEL).replace("..", " to ").replace("<", "< ").replace(">", "> ") for name in order
    }
    if len(runs) == 1:
        curves = [Curve(prefix + name, names[name]) for name in order for prefix in ("", "val/")]
        levels = [Panel("loss by log SNR", tuple(curves), smoothed=True, logarithmic=True, by_curve=True)]
    else:
        levels = [
            Panel(
                f"loss at log SNR {names[name]}",
                (Curve(name, "training"), Curve(f"val/{name}", "validation")),
                smoothed=True,
                logarithmic=True,
            )
            for name in order
        ]
    there = {name for metrics in runs for name in metrics}
    panels = (PANELS[0], *levels, *PANELS[1:])
    kept = [panel._replace(curves=tuple(curve for curve in panel.curves if curve.metric in there)) for panel in panels]
    return [panel for panel in kept if panel.curves]


def draw(curves: dict[str, Curves], panels: Sequence[Panel], path: Path) -> None:
    """Write the picture: the panels two to a row, one colour per run."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, height = PANEL_INCHES
    fitting = int(width * columns * LETTERS_PER_INCH)
    wrapped = [textwrap.fill(printable(name), fitting, subsequent_indent="  ") for name in curves]
    num_columns = max(1, min(columns, len(wrapped), fitting // max(map(len, wrapped))))
    num_lines = sum(name.count("\n") + 1 for name in wrapped) // num_columns + 1
    figure = Figure(figsize=(width * columns, height * rows + LINE_INCHES * num_lines), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, list(curves.values()), panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = [axes[0].plot([], [], color=f"C{number % 10}")[0] for number in range(len(curves))]
    figure.legend(lines, wrapped, loc="outside upper center", ncols=num_columns, frameon=False, fontsize=9)
    save_figure(figure, path, dpi=110)


def _draw_panel(axis: Axes, runs: Sequence[Curves], panel: Panel) -> None:
    shades = _shades(panel)
    for curve in panel.curves:
        with_it = [number for number, metrics in enumerate(runs) if curve.metric in metrics]
        lines = {number: runs[number][curve.metric] for number in with_it}
        for number, (steps, values) in lines.items():
            twins = [other for other in with_it if all(map(np.array_equal, lines[other], lines[number]))]
            how: dict[str, Any] = {"color": shades[curve.name] if panel.by_curve else f"C{number % 10}"}
            if len(twins) > 1:  # each has its turn
                how["linestyle"] = (DASH * twins.index(number), (DASH, DASH * (len(twins) - 1)))
            if curve.is_validation:
                axis.plot(steps, values, **{"linestyle": ":", **how}, linewidth=1.0)
                shifted = values[twins.index(number) :: len(twins)], steps[twins.index(number) :: len(twins)]
                axis.plot(*shifted[::-1], **how | {"linestyle": "none"}, marker="o", markersize=4)
            elif panel.smoothed and len(values) > SMOOTHING_POINTS:
                axis.plot(steps, values, color=how["color"], linewidth=1.0, alpha=0.3)
                axis.plot(steps, running_average(values), **how, linewidth=1.8)
            else:
                axis.plot(steps, values, **how, marker="." if len(values) == 1 else None, linewidth=1.5)
    together = np.concatenate([run[curve.metric][1] for run in runs for curve in panel.curves if curve.metric in run])
    if panel.logarithmic and together.min() > 0 and together.max() / together.min() > DECADE:
        axis.set_yscale("log")
    if len(panel.curves) > 1:
        _explain(axis, panel)
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.margins(x=0.02)


def _explain(axis: Axes, panel: Panel) -> None:
    """A legend of the panel's own: its curves by their colour, and what points are."""
    from matplotlib.lines import Line2D

    shades = _shades(panel)
    names = list(shades)
    has_points = any(curve.is_validation for curve in panel.curves)
    points = {"linestyle": ":", "marker": "o", "markersize": 4, "linewidth": 1.0}
    if panel.by_curve:
        lines = [Line2D([], [], color=shade) for shade in shades.values()]
        if has_points:
            names, lines = [*names, "validation"], [*lines, Line2D([], [], color="grey", **points)]  # type: ignore[arg-type]
    else:
        lines = [Line2D([], [], color="grey"), Line2D([], [], color="grey", **points)]  # type: ignore[arg-type]
    axis.legend(lines, names, fontsize=8, frameon=False)


def _shades(panel: Panel) -> dict[str, Any]:
    """A colour for each name of its curves, from dark to light."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(curve.name for curve in panel.curves))
    return {name: colormaps["plasma"](0.1 + 0.8 * number / max(len(names) - 1, 1)) for number, name in enumerate(names)}


def running_average(values: np.ndarray) -> np.ndarray:
    """values (N,) -> the mean of those around each, narrower at the ends so that nothing is bent there; (N,)."""
    half = max(1, min(SMOOTHING_POINTS, len(values) // 10) // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
