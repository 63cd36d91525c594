"""`brics bench eval`: evaluation beside the arithmetic that it cannot do without."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table


def evaluation(
    num_images: Annotated[int, typer.Option("--num-images", min=32, help="Images of 256 px to score.")] = 1000,
    memory_images: Annotated[
        int, typer.Option("--memory-images", min=5000, help="Images whose features are gathered for the peak memory.")
    ] = 50_000,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """FID and all metrics beside the networks' forwards alone; the Fréchet step beside scipy's; memory.

    Each row is one timed run: measure on a machine that has nothing else to do.
    """
    from brics_cli.bench.evaluate import bench_evaluate
    from brics_cli.runtime.device import resolve_device

    session = Session(quiet=quiet, as_json=as_json)
    on = resolve_device(device)
    name, rows = bench_evaluate(
        num_images=num_images, memory_images=memory_images, device=on, reporter=session.reporter
    )
    table = plain_table("measured", "brics", "beside", "is", "ratio", "bar", title=f"brics bench eval, on {name}")
    for row in rows:
        ours, beside = (f"{value:,.2f} {row.unit}" for value in (row.ours, row.beside))
        table.add_row(row.what, ours, beside, row.beside_name, f"{row.ratio:.2f}x", row.bar)
    session.result({"device": name, "rows": [asdict(row) for row in rows]}, table)
