"""`brics bench bottlenecks`: the table of every bottleneck under the same budget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from brics_cli.bench.bottleneck_results import Summary

DEFAULT_VARIANTS = ["grid", "none", "kl", "fsq", "vq", "rq"]


def bottlenecks(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A collection of images: folder, shards, ... Default: squares of the photographs inside scikit-image.",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option("--val", help="Held-out images. Default: a tenth of DATA, whole clusters of look-alikes."),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="One of grid, grid-1d, grid-3d, grid-positions, grid-cell, hash, none, kl, fsq, vq, rq. Repeatable. "
            f"Default: {', '.join(DEFAULT_VARIANTS)}.",
        ),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            "--noise", min=0, max=0.5, help="Training noise on bounded codes. Repeatable. Default: the recipe's."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME|PATH", help="An autoencoder recipe.")] = "tiny",
    steps: options.Steps = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", min=0, help="Repeatable. Default: 0.")] = None,
    overrides: options.Set = None,
    own_cost: Annotated[
        bool,
        typer.Option("--own-cost", help="Leave the feature MLP as it is; else it is widened to the recipe's GFLOP."),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="Keep every finished row here; a second call does the rest."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Plot PSNR against the noise on the codes.")
    ] = None,
    num_workers: options.NumWorkers = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every bottleneck under the same encoder, decoder, losses, steps and cost, and score it on held-out images.

    Cost is counted from codes to pixels: what a variant saves against the recipe's own bottleneck goes into the hidden
    width of its feature MLP. PSNR in dB with clean codes, with noise on the codes (`at .1`: of a tenth of the codes'
    standard deviation) and with codes of 8 and 5 bits; `path` is the length of the decoded path between two images'
    codes over the distance of its ends (1: a cross-fade), `jump` its largest step over its mean step (1: even).
    """
    from brics_cli.bench.bottleneck_results import plot as write_plot
    from brics_cli.bench.bottleneck_results import summarise
    from brics_cli.bench.bottlenecks import bench_bottlenecks, jobs_of
    from brics_cli.images.loader import default_num_workers
    from brics_cli.runtime.device import resolve_device

    session = Session(as_json=as_json, quiet=quiet)
    jobs = jobs_of(
        variants or DEFAULT_VARIANTS, noise=noise or [], seeds=seeds or [0], recipe=recipe, overrides=overrides or []
    )
    rows = bench_bottlenecks(
        jobs,
        data=data,
        val=val,
        recipe=recipe,
        overrides=overrides or [],
        steps=steps,
        equal_cost=not own_cost,
        results=results,
        device=resolve_device(device),
        num_workers=num_workers or default_num_workers(),
        reporter=session.reporter,
    )
    summaries = summarise(rows)
    num_steps = rows[0].recipe["training"]["steps"]
    title = f"{recipe}, {num_steps:,} steps, {rows[0].num_val:,} held-out images of {rows[0].data}, on {rows[0].device}"
    if plot is not None:
        write_plot(summaries, plot, title=title)
        session.reporter.message(f"plot: {plot}")
    session.result({"rows": [asdict(row) for row in rows]}, [_table(summaries, title=title)])


def _table(summaries: list[Summary], *, title: str) -> Table:
    names = list(dict.fromkeys(name for summary in summaries for name in summary.figures if "/" not in name))
    table = plain_table(
        "bottleneck", "noise", "MFLOP", "M", "bpp", "img/s", *[_short(name) for name in names], title=title
    )
    for summary in summaries:
        cells = [_cell(summary.figures.get(name), digits=2 if name.startswith("psnr") else 3) for name in names]
        table.add_row(
            summary.variant,
            "-" if summary.noise is None else f"{summary.noise:g}",
            f"{1000 * summary.gflop:.4g}",
            f"{summary.params_m:.3g}",
            f"{summary.bits_per_pixel:.3g}",
            f"{summary.img_per_s:,.0f}",
            *cells,
        )
    return table


def _short(name: str) -> str:
    """`psnr noise 0.05` -> `at .05`, `psnr 8 bit` -> `8 bit`, `path length` -> `path`, `largest step` -> `jump`."""
    if name.startswith("psnr noise "):
        return "at " + name.removeprefix("psnr noise ").lstrip("0")
    return {"path length": "path", "largest step": "jump", "perplexity": "perpl."}.get(name, name.removeprefix("psnr "))


def _cell(figure: tuple[float, float | None] | None, *, digits: int) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    if figure is None:
        return "-"
    mean, deviation = figure
    return (
        f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ±{deviation:.{digits}f}".replace("±0", "±")
    )
