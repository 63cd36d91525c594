"""`brics bench eval`: one FID beside the peers."""

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
    parity: Annotated[
        bool, typer.Option("--parity", help="Compare values instead: each metric beside the peer that defines it.")
    ] = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """FID beside clean-fid and torch-fidelity on the same images and weights; the Fréchet step; memory; all metrics.

    Each row is one timed run: measure on a machine that has nothing else to do. `--parity` shows values, not times.
    """
    from brics_cli.bench.evaluate import bench_evaluate, bench_parity
    from brics_cli.core.device import resolve_device

    session = Session(quiet=quiet, as_json=as_json)
    on = resolve_device(device)
    if parity:
        name, compared = bench_parity(num_images=num_images, device=on, reporter=session.reporter)
        table = plain_table(
            "metric", "brics", "peer", "is", "relative difference", title=f"brics bench eval, on {name}"
        )
        for each in compared:
            theirs = "not installed" if each.peer is None else f"{each.peer:.9g}"
            apart = "-" if each.difference is None else f"{each.difference:.1e}"
            table.add_row(each.metric, f"{each.ours:.9g}", theirs, each.peer_name, apart)
        value = [asdict(each) | {"difference": each.difference} for each in compared]
        session.result({"device": name, "num_images": num_images, "parity": value}, table)
        return
    name, rows = bench_evaluate(
        num_images=num_images, memory_images=memory_images, device=on, reporter=session.reporter
    )
    table = plain_table("measured", "brics", "peer", "is", "ratio", "bar", title=f"brics bench eval, on {name}")
    for row in rows:
        peer = "not installed" if row.peer is None else f"{row.peer:,.2f} {row.unit}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
        table.add_row(row.what, f"{row.ours:,.2f} {row.unit}", peer, row.peer_name, ratio, row.bar)
    session.result({"device": name, "rows": [asdict(row) for row in rows]}, table)
