"""`brics plot`: metrics.jsonl of one or more runs -> loss, learning-rate and validation curves, overlaid.

Raw values are drawn faint, their running average on top. A loss that spans more than a decade gets a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace, atomic_path, check_output, provenance_at, signature
from brics_cli.workspace.naming import CURVES, form_of_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Panel(NamedTuple):
    """One metric; `smoothed`: with its running average; `logarithmic`: its axis may be."""

    metric: str
    title: str
    smoothed: bool = False
    logarithmic: bool = False


PANELS = (
    Panel("train/loss", "training loss", smoothed=True, logarithmic=True),
    Panel("val/psnr", "validation PSNR, dB"),
    Panel("train/lr", "learning rate"),
    Panel("val/ssim", "validation SSIM"),
    Panel("val/usage", "share of table entries in use"),
    Panel("train/gan_weight", "weight of the adversarial loss", logarithmic=True),
    Panel("train/d_loss", "discriminator loss", smoothed=True),
    Panel("train/grad_norm", "gradient norm before clipping", smoothed=True, logarithmic=True),
)
"""What is drawn, where a run has it."""
SMOOTHING_POINTS = 15
"""The running average is over about this many points, or a tenth of the curve if that is less."""
PANEL_INCHES = (6.0, 3.2)
DECADE = 10.0
MOST_METRICS_BYTES = 1 << 30
OUT = Path("curves.png")

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
"""The metrics of a run: by name, steps (N,) and values (N,)."""


@dataclass(frozen=True)
class Plot:
    """The picture that was written, and what is in it: by run, the last step and the last value of each metric."""

    path: Path
    runs: dict[str, dict[str, float]]


def plot_runs(
    runs: Sequence[Path] | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> Plot:
    """Draw the curves of `runs` (None: the newest one of either kind in the workspace) into `out` (.png, .svg, .pdf).

    Raises UsageError for another format, ArtefactError for a directory that is not a run or has no metrics yet,
    WouldOverwriteError.
    """
    runs, out = runs or [_newest_run(workspace, reporter)], out or OUT
    form_of_output(out, CURVES)
    check_output(out, overwrite=overwrite, what="the picture", inputs=runs)
    curves = [read_curves(run) for run in runs]
    with atomic_path(out) as temporary:
        draw(dict(zip(_labels(runs), curves, strict=True)), temporary, file_format=out.suffix.lower()[1:])
    last = {
        str(run): {"step": float(max(steps[-1] for steps, _ in metrics.values()))}
        | {name: float(values[-1]) for name, (_, values) in metrics.items()}
        for run, metrics in zip(runs, curves, strict=True)
    }
    return Plot(out, last)


def _newest_run(workspace: Workspace, reporter: Reporter) -> Path:
    newest = next((run for run in workspace.artefacts() if run.kind in ("autoencoder", "diffusion")), None)
    if newest is None:
        return workspace.newest("autoencoder").path  # which says how to make one
    reporter.message(f"RUN not given: using {newest.path}")
    return newest.path


def read_curves(run: Path) -> Curves:
    """The metrics of a run. A last line that a kill cut short is passed over, as are values that are not numbers.

    Raises ArtefactError when `run` is not a training run, or has logged nothing.
    """
    artefact = provenance_at(run)
    if artefact is None or artefact.kind not in ("autoencoder", "diffusion"):
        raise ArtefactError(f"{run} is not a training run", next="`brics status` lists the runs.")
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ArtefactError(f"{run} has logged nothing yet ({path} is missing)")
    try:
        lines = read_bytes(path, most=MOST_METRICS_BYTES).decode("utf-8", "replace").splitlines()
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged ({error})") from None
    points: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = parse_json(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):
                continue
            raise ArtefactError(f"{path} line {number} is damaged") from None
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((step, float(value)))
    if not any(panel.metric in points for panel in PANELS):
        raise ArtefactError(
            f"{run} has logged nothing yet", next="The first line comes after training.log_every steps."
        )
    return {name: tuple(np.array(rows, float).T) for name, rows in points.items()}


def _labels(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: its directory's, or as much of the path as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(set(parts)):
            break
    return short


def draw(curves: dict[str, Curves], path: Path, *, file_format: str) -> None:
    """Write the picture: one panel per metric that any run has, two to a row, one colour per run."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(panel.metric in metrics for metrics in curves.values())]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, list(curves.values()), panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = [axes[0].plot([], [], color=f"C{number % 10}")[0] for number in range(len(curves))]
    figure.legend(lines, list(curves), loc="outside upper center", ncols=min(len(curves), 3), frameon=False)
    figure.savefig(path, format=file_format, dpi=110, metadata=signature(file_format))


def _draw_panel(axis: Axes, runs: Sequence[Curves], panel: Panel) -> None:
    for number, metrics in enumerate(runs):
        if panel.metric not in metrics:
            continue
        (steps, values), colour = metrics[panel.metric], f"C{number % 10}"
        marker = "." if len(values) < SMOOTHING_POINTS else None
        if panel.smoothed and len(values) > SMOOTHING_POINTS:
            axis.plot(steps, values, color=colour, linewidth=1.0, alpha=0.3)
            axis.plot(steps, running_average(values), color=colour, linewidth=1.8)
        else:
            axis.plot(steps, values, color=colour, marker=marker, linewidth=1.5)
    together = np.concatenate([metrics[panel.metric][1] for metrics in runs if panel.metric in metrics])
    if panel.logarithmic and together.min() > 0 and together.max() / together.min() > DECADE:
        axis.set_yscale("log")
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.margins(x=0.02)


def running_average(values: np.ndarray) -> np.ndarray:
    """values (N,) -> the mean of those around each, narrower at the ends so that nothing is bent there; (N,)."""
    half = max(1, min(SMOOTHING_POINTS, len(values) // 10) // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
