"""`brics bench retrieval`: speed of feature-grid retrieval."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table

if TYPE_CHECKING:
    from brics_cli.bench.retrieval import Timing, Work


class ScaleOption(StrEnum):
    """What `--scale` takes: brics_cli.bench.retrieval.SCALES, which needs torch."""

    CODE = "code"
    PAPER = "paper"
    PAPER_16 = "paper-16"


class TablesDtype(StrEnum):
    """What `--tables-dtype` takes."""

    FP32 = "fp32"
    BF16 = "bf16"


def retrieval(
    scale: Annotated[
        list[ScaleOption] | None,
        typer.Option("--scale", help="Which scale to measure; may be repeated. All, when left out."),
    ] = None,
    tables_dtype: Annotated[
        TablesDtype, typer.Option("--tables-dtype", help="Numbers in the grids.")
    ] = TablesDtype.FP32,
    batch_size: options.BatchSize = 8,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; the median is reported.")] = 10,
    budget: Annotated[
        float, typer.Option("--budget", min=0, help="Seconds per figure after which it makes do with fewer repeats.")
    ] = 10.0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Feature-grid retrieval: milliseconds per image of each backend, and how near the memory's floors that is.

    The floors are bytes over the bandwidth of a copy on the same device: `unique` moves every byte once, `corners`
    reads every corner of every look-up. 50% means twice the floor's time; caches can go beyond 100% of `corners`. Peak
    memory (CUDA only) is that of a forward and backward pass, above keys, tables and gradient.
    """
    import torch

    from brics_cli.bench.retrieval import SCALES, bench_retrieval
    from brics_cli.runtime.device import resolve_device

    dtypes = {TablesDtype.FP32: torch.float32, TablesDtype.BF16: torch.bfloat16}
    found = bench_retrieval(
        device=resolve_device(device),
        batch_size=batch_size,
        repeats=repeats,
        scales=[each.value for each in scale or ScaleOption],
        tables_dtype=dtypes[tables_dtype],
        budget_s=budget,
    )
    title = (
        f"retrieval, tables {tables_dtype}, batch {batch_size}, on {found.device}, copy {found.copy_gb_per_s:.1f} GB/s"
    )
    table = plain_table(
        "scale", "backend", "forward ms/img", "of unique / corners", "fwd + bwd ms/img", "of unique / corners",
        "peak MiB", title=title,
    )  # fmt: skip
    for timing in found.timings:
        table.add_row(*_cells(timing))
    measured = {timing.scale for timing in found.timings}
    legend = [f"{name}: {each.title}" for name, each in SCALES.items() if name in measured]
    value = {**asdict(found), "batch_size": batch_size, "tables_dtype": tables_dtype.value}
    Session(as_json=as_json).result(value, [table, *legend])


def _cells(timing: Timing) -> list[str]:
    if timing.forward is None or timing.forward_backward is None:
        return [timing.scale, timing.backend, timing.not_measured or "", "", "", "", ""]
    peak = "" if timing.peak_memory_mib is None else f"{timing.peak_memory_mib:,.0f}"
    return [timing.scale, timing.backend, *_work(timing.forward), *_work(timing.forward_backward), peak]


def _work(work: Work) -> tuple[str, str]:
    return f"{work.ms_per_img:.3f}", f"{work.of_unique_floor:.1%} / {work.of_corner_floor:.1%}"
