"""`brics plot`: metrics.jsonl of one or more runs -> loss, learning-rate and validation curves, overlaid.

Raw values are drawn faint, their running average on top. A loss that spans more than a decade gets a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.workspace import atomic_path, check_output, read_provenance, signature
from brics_cli.workspace.naming import CURVES, form_of_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS: tuple[tuple[str, str], ...] = (
    ("train/loss", "training loss"),
    ("val/psnr", "validation PSNR, dB"),
    ("train/lr", "learning rate"),
    ("val/ssim", "validation SSIM"),
    ("val/usage", "share of table entries in use"),
    ("train/gan_weight", "weight of the adversarial loss"),
    ("train/d_loss", "discriminator loss"),
    ("train/grad_norm", "gradient norm before clipping"),
)
"""What is drawn, where a run has it: metric, title."""
SMOOTHED = ("train/loss", "train/d_loss", "train/grad_norm")
LOGARITHMIC = ("train/loss", "train/grad_norm", "train/gan_weight")
SMOOTHING_POINTS = 15
"""The running average is over about this many points, or a tenth of the curve if that is less."""
PANEL_INCHES = (6.0, 3.2)
DECADE = 10.0


@dataclass(frozen=True)
class Curves:
    """The metrics of a run: by name, steps (N,) and values (N,)."""

    run: Path
    label: str
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]


MOST_METRICS_BYTES = 1 << 30


@dataclass(frozen=True)
class Plot:
    """The picture that was written, and what is in it: by run, the last step and the last value of each metric."""

    path: Path
    runs: dict[str, dict[str, float]]


def plot_runs(runs: Sequence[Path], *, out: Path, overwrite: bool = False) -> Plot:
    """Draw the curves of `runs` into `out` (.png, .svg or .pdf).

    Raises UsageError for another format, ArtefactError for a directory that is no run or has no metrics yet,
    WouldOverwriteError.
    """
    form_of_output(out, CURVES)
    check_output(out, overwrite=overwrite, what="the picture", inputs=runs)
    curves = [read_curves(run, label) for run, label in zip(runs, labels(runs), strict=True)]
    with atomic_path(out) as temporary:
        draw(curves, temporary, file_format=out.suffix.lower().removeprefix("."))
    last = {
        str(each.run): {"step": float(max(steps[-1] for steps, _ in each.metrics.values()))}
        | {name: float(values[-1]) for name, (_, values) in each.metrics.items()}
        for each in curves
    }
    return Plot(out, last)


def read_curves(run: Path, label: str) -> Curves:
    """The metrics of a run. A last line that a kill cut short is passed over, as are values that are no numbers.

    Raises ArtefactError when `run` is no training run, or has logged nothing.
    """
    artefact = read_provenance(run) if run.exists() else None
    if artefact is None or artefact.kind not in ("autoencoder", "diffusion"):
        raise ArtefactError(f"{run} is not a training run", next="`brics status` lists the runs.")
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ArtefactError(f"{run} has logged nothing yet ({path} is missing)")
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        lines = read_bytes(path, most=MOST_METRICS_BYTES).decode("utf-8", "replace").splitlines()
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged ({error})") from None
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
    if not any(metric in points for metric, _ in PANELS):
        raise ArtefactError(
            f"{run} has logged nothing yet", next="The first line comes after training.log_every steps."
        )
    arrays = {name: np.array(rows, float).T for name, rows in points.items()}
    return Curves(run, label, {name: (both[0], both[1]) for name, both in arrays.items()})


def labels(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: its directory's, or as much of the path as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(set(parts)):
            break
    return short


def draw(curves: Sequence[Curves], path: Path, *, file_format: str) -> None:
    """Write the picture: one panel per metric that any run has, two to a row, one colour per run."""
    from matplotlib.figure import Figure

    panels = [(metric, title) for metric, title in PANELS if any(metric in run.metrics for run in curves)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (metric, title) in zip(axes, panels, strict=False):
        _draw_panel(axis, curves, metric, title)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = [axes[0].plot([], [], color=f"C{number % 10}")[0] for number in range(len(curves))]
    names = [run.label for run in curves]
    figure.legend(lines, names, loc="outside upper center", ncols=min(len(curves), 3), frameon=False)
    figure.savefig(path, format=file_format, dpi=110, metadata=signature(file_format))


def _draw_panel(axis: Axes, curves: Sequence[Curves], metric: str, title: str) -> None:
    drawn = []
    for number, run in enumerate(curves):
        if metric not in run.metrics:
            continue
        steps, values = run.metrics[metric]
        colour = f"C{number % 10}"
        smooth = metric in SMOOTHED and len(values) > SMOOTHING_POINTS
        marker = "." if len(values) < SMOOTHING_POINTS else None
        axis.plot(
            steps, values, color=colour, marker=marker, linewidth=1.0 if smooth else 1.5, alpha=0.3 if smooth else 1
        )
        if smooth:
            axis.plot(steps, running_average(values), color=colour, linewidth=1.8)
        drawn.append(values)
    together = np.concatenate(drawn)
    if metric in LOGARITHMIC and together.min() > 0 and together.max() / together.min() > DECADE:
        axis.set_yscale("log")
    axis.set_title(title, fontsize=10, loc="left")
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
