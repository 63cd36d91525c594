"""Rows of `brics bench bottlenecks`: kept in a file of JSON lines, averaged over seeds, plotted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from brics_cli.bench.bottleneck_scores import Scores
from brics_cli.bench.timing import Table
from brics_cli.config import AutoencoderRecipe
from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json
from brics_cli.workspace.outputs import save_figure


@dataclass(frozen=True)
class Job:
    """One variant to train. `noise` is the training noise on the codes; None where a bottleneck takes none."""

    variant: str
    noise: float | None
    seed: int


@dataclass(frozen=True)
class Trained:
    """One variant, trained and scored. GFLOP and parameters are those from codes to pixels."""

    job: Job
    data: str
    num_train: int
    num_val: int
    recipe: dict[str, Any]
    gflop: float
    params_m: float
    bits_per_pixel: float
    img_per_s: float
    device: str
    scores: Scores

    def is_of(self, job: Job, recipe: AutoencoderRecipe, *, data: str) -> bool:
        """Whether this row is what training `job` by `recipe` on `data` gave."""
        return (self.job, self.recipe, self.data) == (job, recipe.model_dump(mode="json"), data)


def append_result(path: Path, row: Trained) -> None:
    """Add a row to the file, one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_results(path: Path) -> list[Trained]:
    """The rows of a file, none if it is not there. A last line that a kill cut short is dropped.

    Raises ArtefactError for a line that is no row of this benchmark.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = parse_json(line)
            rows.append(Trained(**{**values, "job": Job(**values["job"]), "scores": Scores(**values["scores"])}))
        except (ValueError, TypeError, KeyError):
            raise ArtefactError(
                f"{path} line {number} is no row of brics bench bottlenecks", next="Give another --out file."
            ) from None
    if lines[-1]:
        path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
    return rows


class Summary(NamedTuple):
    """The rows of a variant, one per seed, and (mean, standard deviation; None for one seed) of every score."""

    rows: list[Trained]
    figures: dict[str, tuple[float, float | None]]


def summarise(rows: Sequence[Trained]) -> list[Summary]:
    """One summary per variant and training noise, in the order in which they first appear in `rows`."""
    groups: dict[tuple[str, float | None], list[Trained]] = {}
    for row in rows:
        groups.setdefault((row.job.variant, row.job.noise), []).append(row)
    summaries = []
    for members in groups.values():
        by_seed = [_figures(row.scores) for row in members]
        figures = {
            name: (mean(values), stdev(values) if len(values) > 1 else None)
            for name in by_seed[0]
            if (values := [figures[name] for figures in by_seed if name in figures])
        }
        summaries.append(Summary(members, figures))
    return summaries


def _figures(scores: Scores) -> dict[str, float]:
    """Every score as one flat name: `psnr`, `psnr noise 0.1`, `psnr 5 bit`, `usage` ..."""
    flat = {"psnr": scores.psnr, "ssim": scores.ssim}
    if scores.lpips is not None:
        flat["lpips"] = scores.lpips
    flat |= {f"psnr noise {level}": value for level, value in scores.psnr_noise.items()}
    flat |= {f"psnr {bits} bit": value for bits, value in scores.psnr_bits.items()}
    flat |= {"path length": scores.path_length, "largest step": scores.largest_step}
    return flat | scores.usage


def table(summaries: Sequence[Summary], *, title: str) -> Table:
    """One line per summary; scores as mean, and standard deviation over seeds where there are several."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.figures if "/" not in name))
    shown = Table(title, ["bottleneck", "noise", "MFLOP", "M", "bpp", "img/s", *map(_short, names)])
    for members, figures in summaries:
        first = members[0]
        cells = [
            first.job.variant,
            "-" if first.job.noise is None else f"{first.job.noise:g}",
            f"{1000 * first.gflop:.4g}",
            f"{first.params_m:.3g}",
            f"{first.bits_per_pixel:.3g}",
            f"{mean(row.img_per_s for row in members):,.0f}",
        ]
        for name in names:
            value, deviation = figures.get(name, (None, None))
            digits = 2 if name.startswith("psnr") else 3
            cell = "-" if value is None else f"{value:.{digits}f}"
            cells.append(cell if deviation is None else f"{cell} ±{deviation:.{digits}f}".replace("±0", "±"))
        shown.rows.append(cells)
    return shown


def _short(name: str) -> str:
    """`psnr noise 0.05` -> `at .05`, `psnr 8 bit` -> `8 bit`, `path length` -> `path`, `largest step` -> `jump`."""
    if name.startswith("psnr noise "):
        return "at " + name.removeprefix("psnr noise ").lstrip("0")
    return {"path length": "path", "largest step": "jump", "perplexity": "perpl."}.get(name, name.removeprefix("psnr "))


def plot(summaries: Sequence[Summary], path: Path, *, title: str) -> None:
    """PSNR of every variant against the noise on its codes, as the ending of `path` says: png, svg or pdf."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    prefix = "psnr noise "
    for members, figures in summaries:
        job = members[0].job
        disturbed = {float(name.removeprefix(prefix)): name for name in figures if name.startswith(prefix)}
        values = [figures[name] for name in ("psnr", *disturbed.values())]
        label = f"{job.variant}, trained with noise {job.noise:g}" if job.noise else job.variant
        errors = [deviation or 0.0 for _, deviation in values]
        axes.errorbar(
            [0.0, *disturbed], [value for value, _ in values], yerr=errors, marker="o", capsize=3, label=label
        )
    axes.set_xlabel("noise on the codes (in standard deviations of the codes)")
    axes.set_ylabel("PSNR of held-out images (dB)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, path, dpi=120)
