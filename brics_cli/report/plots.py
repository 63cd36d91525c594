"""Plots of the page: matplotlib's SVG, in the colours of the page, with its text as text.

matplotlib writes colours and fonts into style attributes, which the page's policy forbids: they become presentation
attributes, and stand-in colours the variables of the style sheet, so that a plot is dark where the page is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brics_cli.images.selection import spread
from brics_cli.jobs.plot import DECADE
from brics_cli.report.blocks import Plot, anchor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_PX = (400, 230)
MARGINS_PX = (48, 8, 36, 8)
"""Left, right, bottom, top of the axes."""
NUM_COLOURS = 10
MOST_POINTS = 400
"""Of a line: more are not seen at this size."""
MOST_CELLS = 1600
"""Of the table behind a plot."""
_INK, _FAINT = "#010101", "#020202"
_STAND_INS = {_INK: "var(--ink)", _FAINT: "var(--rule)"} | {
    f"#0400{number:02x}": f"var(--line-{number})" for number in range(NUM_COLOURS)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "lines.solid_capstyle": "round",
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
}


def colour(number: int) -> str:
    """The stand-in of the page's line colour `number`; they come again after NUM_COLOURS."""
    return f"#0400{number % NUM_COLOURS:02x}"


class Series(NamedTuple):
    """A line: x and y (N,), and its colour's number; `raw` (N,) is drawn faintly below it, `errors` (N,) as bars."""

    name: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    colour: int
    raw: NDArray[np.floating] | None = None
    errors: NDArray[np.floating] | None = None


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    log_y: bool | None = None,
    shows: str = "",
    key: bool = False,
    note: str = "",
) -> Plot:
    """Lines in one plot. `log_y` None: where the values are positive and span more than a decade.

    `shows` is the alternative text; `key`: names beside the line ends, for a few short names of ours (matplotlib
    would read formulas into those of files).
    """
    everything = np.concatenate([line.y for line in series])
    if log_y is None:
        log_y = bool(everything.min() > 0 and everything.max() / everything.min() > DECADE)

    def draw(axes: Axes) -> None:
        for line in series:
            at = spread(len(line.x), MOST_POINTS)
            marker = "." if len(at) < 15 else None
            if line.raw is not None:
                axes.plot(line.x[at], line.raw[at], color=colour(line.colour), linewidth=0.8, alpha=0.3)
            if line.errors is not None:
                axes.errorbar(line.x, line.y, yerr=line.errors, color=colour(line.colour), capsize=2, linewidth=1.0)
            axes.plot(line.x[at], line.y[at], color=colour(line.colour), marker=marker, linewidth=1.5)
            if key:
                axes.plot([], [], color=colour(line.colour), label=line.name)
        axes.set_yscale("log" if log_y else "linear")
        axes.margins(x=0.02)
        axes.grid(alpha=0.7)
        axes.set_xlabel(x_label)
        if key:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)

    svg, frame = _render(draw, salt=title)
    rows = _table(series)
    ends = "; ".join(f"{line.name} {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in series[:4])
    more = f"; and {len(series) - 4} more" if len(series) > 4 else ""
    alt = f"{shows or title} against {x_label}: {ends}{more}."
    return Plot(title, svg, alt, [x_label, *(line.name for line in series)], rows, frame, note)


def map_plot(
    title: str,
    values: NDArray[np.floating],
    *,
    extent: tuple[float, float],
    x_label: str,
    y_label: str,
    alt: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
) -> Plot:
    """(rows, bins) as a map: a row each, the first on top, bins from extent[0] to extent[1]."""

    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        num = len(values)
        box = (extent[0], extent[1], num - 0.5, -0.5)
        axes.imshow(values, aspect="auto", cmap="magma", interpolation="nearest", extent=box)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    svg, _ = _render(draw, salt=title)
    return Plot(title, svg, alt, head, rows, "", note)


def _render(draw: Callable[[Axes], None], *, salt: str) -> tuple[str, str]:
    """What `draw` draws, as the text of an SVG for the page, and where its axes are (JSON)."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(SIZE_PX[0] / 72, SIZE_PX[1] / 72))
        left, right, bottom, top = MARGINS_PX  # a layout of matplotlib's own would draw everything twice
        width, height = SIZE_PX
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
        draw(axes)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        box, (low_x, high_x), (low_y, high_y) = axes.get_position(), axes.get_xlim(), axes.get_ylim()
    frame: dict[str, Any] = {
        "left": round(box.x0 * width, 1), "right": round(box.x1 * width, 1),
        "top": round((1 - box.y1) * height, 1), "bottom": round((1 - box.y0) * height, 1),
        "x": [low_x, high_x], "y": [low_y, high_y],
        "logX": axes.get_xscale() == "log", "logY": axes.get_yscale() == "log",
    }  # fmt: skip
    return _for_page(file.getvalue(), prefix=f"{anchor(salt)}-"), json.dumps(frame)


def _for_page(svg: str, *, prefix: str) -> str:
    """An SVG file of matplotlib's -> an element for the page: no style, colours by variables, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), svg)
    svg = re.sub(r'\bid="([^"]+)"', lambda found: f'id="{prefix}{found[1]}"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', lambda found: found[1] + prefix, svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _STAND_INS.get(found[0], found[0]), svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), svg)  # hundredths of a px
    svg = re.sub(r"\n\s*", "\n", svg)
    head = f'<svg viewBox="0 0 {SIZE_PX[0]} {SIZE_PX[1]}" aria-hidden="true" focusable="false">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1)


def _attributes(style: str) -> str:
    """`fill: none; font: 9px 'X'` -> presentation attributes. The family of the font is the page's."""
    found = []
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if name == "font":
            size = re.search(r"[\d.]+px", value)
            found.append(f'font-size="{size[0]}"' if size else "")
        elif name and name != "font-family":
            found.append(f'{name}="{value}"')
    return " ".join(found)


def _table(series: Sequence[Series]) -> list[list[str]]:
    """A row per x that any line has, thinned to a table that can be read; what a line has not is empty."""
    places = np.unique(np.concatenate([line.x for line in series]))
    places = places[spread(len(places), max(12, MOST_CELLS // (len(series) + 1) if len(series) > 7 else 200))]
    at = [dict(zip(line.x.tolist(), _texts(line), strict=True)) for line in series]
    return [[_short(x), *(texts.get(x, "") for texts in at)] for x in places.tolist()]


def _texts(line: Series) -> list[str]:
    """Each value of a line, with its error where it has one."""
    texts = [_short(value) for value in line.y.tolist()]
    if line.errors is None:
        return texts
    return [f"{text} ± {error:.2g}" for text, error in zip(texts, line.errors.tolist(), strict=True)]


def _short(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.5g}"
