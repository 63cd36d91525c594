"""One figure of the diffusability of one or several stores: spectra, VIV by noise level, histograms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brics_cli.workspace import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, Mapping[str, Any]]
"""Of one store: metric -> its result, with `value` and `details`, as a report has them."""
VIV_STYLES = {"viv": "-", "viv-local": "--", "viv-linear": ":"}


def draw(stores: Mapping[str, Results], *, path: Path) -> None:
    """Draw what the `details` of each store's results hold, by the store's name, as a PNG, PDF or SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    spectra, viv, histograms = figure.subplots(1, 3)
    for number, (name, results) in enumerate(stores.items()):
        colour = f"C{number}"
        _spectra(spectra, name, results, colour)
        _viv(viv, name, results, colour, alone=len(stores) == 1)
        _histograms(histograms, name, results, colour, alone=len(stores) == 1)
    spectra.set(title="spectrum by the 2D DCT", xlabel="zigzag frequency, of the highest", ylabel="share of energy")
    spectra.set_yscale("log")
    viv.set(title="velocity's irreducible variance", xlabel="t (1: noise)", ylabel="E Var(v | x_t) per value")
    viv.set_ylim(bottom=0)
    histograms.set(title="marginal distributions", xlabel="code", ylabel="density")
    for axes in (spectra, viv, histograms):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    save_figure(figure, path, dpi=150)


def _spectra(axes: Axes, name: str, results: Results, colour: str) -> None:
    if (curves := _details(results, "spectrum-excess")) is None:
        return
    frequencies = np.arange(1, len(curves["codes"]) + 1) / len(curves["codes"])
    excess = results["spectrum-excess"]["value"]
    axes.plot(frequencies, curves["codes"], color=colour, label=f"{name} ({excess:+.1f} dB in the upper half)")
    if not any(line.get_linestyle() == "--" and _equal(line.get_ydata(), curves["images"]) for line in axes.lines):
        axes.plot(frequencies, curves["images"], "--", color="0.3", label="images at the codes' size")


def _equal(a: Any, b: Any) -> bool:
    return len(a) == len(b) and np.allclose(a, b)


def _viv(axes: Axes, name: str, results: Results, colour: str, *, alone: bool) -> None:
    for metric, style in VIV_STYLES.items():
        if (curve := _details(results, metric)) is None:
            continue
        t, values, errors = (np.array(curve[key]) for key in ("t", "viv", "errors"))
        said = {"viv": "of the store itself", "viv-local": "of single positions", "viv-linear": "linear denoiser"}[
            metric
        ]
        axes.plot(t, values, style, color=colour, label=said if alone else f"{name}, {said}")
        axes.fill_between(t, values - errors, values + errors, color=colour, alpha=0.2, linewidth=0)


def _histograms(axes: Axes, name: str, results: Results, colour: str, *, alone: bool) -> None:
    if (details := _details(results, "codes-entropy")) is None:
        return
    found = details["histograms"]
    centres = (np.array(found["edges"][1:]) + np.array(found["edges"][:-1])) / 2
    for channel in found["channels"] if alone else ():
        axes.plot(centres, channel, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(centres, found["mean"], color=colour, linewidth=2, label=f"{name}, all channels")


def _details(results: Results, metric: str) -> Mapping[str, Any] | None:
    return results.get(metric, {}).get("details")
