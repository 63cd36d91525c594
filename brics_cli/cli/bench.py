"""`brics bench`: one subcommand per benchmark."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table

app = options.command_app(no_args_is_help=True)

Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; the median is reported.")]


@app.callback()
def bench() -> None:
    """Measure speed on the device at hand.

    Every figure is a median of repeats after a warm-up, with the device waited for, and comes with the device's name.
    """


@app.command()
def retrieval(
    batch_size: options.BatchSize = 8,
    repeats: Repeats = 10,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Feature-grid retrieval: milliseconds per image, forward and backward, of each backend."""
    from brics_cli.bench.retrieval import bench_retrieval
    from brics_cli.core.device import resolve_device

    name, timings = bench_retrieval(device=resolve_device(device), batch_size=batch_size, repeats=repeats)
    title = f"retrieval, float32, batch {batch_size}, on {name}"
    table = plain_table("scale", "backend", "forward ms/img", "forward + backward ms/img", title=title)
    for timing in timings:
        table.add_row(timing.scale, timing.backend, f"{timing.forward_ms:.3f}", f"{timing.forward_backward_ms:.3f}")
    session = Session(as_json=as_json)
    session.result({"device": name, "batch_size": batch_size, "timings": [asdict(each) for each in timings]}, table)


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", help="An autoencoder recipe: name or path.")] = "tiny",
    overrides: options.Set = None,
    repeats: Repeats = 10,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """A recipe's training step on random images: images per second, phase by phase, and peak memory."""
    from brics_cli.bench.train import bench_train
    from brics_cli.config import AutoencoderRecipe, load_recipe
    from brics_cli.core.device import resolve_device

    loaded = load_recipe(recipe, kind="autoencoder", overrides=overrides or ())
    assert isinstance(loaded, AutoencoderRecipe)
    name, rows, peak = bench_train(loaded, device=resolve_device(device), repeats=repeats)
    schedule = loaded.training
    title = f"{loaded.name}, batch {schedule.batch_size}, {schedule.precision}, on {name}"
    table = plain_table("up to", "ms/step", "img/s", title=title)
    for row in rows:
        table.add_row(row.phase, f"{row.ms_per_step:.1f}", f"{row.img_per_s:,.1f}")
    session = Session(as_json=as_json)
    value = {"device": name, "recipe": loaded.name, "phases": [asdict(row) for row in rows], "peak_memory_gib": peak}
    session.result(value, [table, f"peak memory {peak:.2f} GiB"] if peak is not None else table)
