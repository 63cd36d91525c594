"""`brics bench encode` and `brics bench store`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.cli.waiting import wait_passively

CODE_SHAPE = (16, 16, 16)


class FileFormat(StrEnum):
    """How the benchmark's images are stored."""

    jpg = "jpg"
    png = "png"


def encode(
    num_images: Annotated[int, typer.Option("--num-images", min=100, help="Images to encode.")] = 4000,
    image_format: Annotated[FileFormat, typer.Option("--format", help="Of the image files.")] = FileFormat.jpg,
    width: Annotated[int, typer.Option("--width", min=16, help="Of the image files, px; they are 3/4 as high.")] = 341,
    size: Annotated[int, typer.Option("--size", min=16, help="Of the square that is encoded, px.")] = 256,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Encode with this recipe's network too. Default: brics-256 on CUDA, else none."),
    ] = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 3,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """encode-dataset without its network against decoding and cropping alone, and peak memory."""
    wait_passively()
    from brics_cli.bench.encode import bench_encode
    from brics_cli.runtime.device import resolve_device

    target = resolve_device(device)
    measured = bench_encode(
        num_images=num_images,
        width=width,
        height=width * 3 // 4,
        file_format=image_format.value,
        size=size,
        repeats=repeats,
        recipe=recipe or ("brics-256" if target.type == "cuda" else None),
        device=target,
        num_workers=num_workers,
        batch_size=batch_size,
    )
    title = (
        f"{num_images:,} {image_format.value} images of {width} x {width * 3 // 4} px at {measured.size} px, "
        f"{measured.num_workers} decoding {'threads' if measured.processes_img_per_s is None else 'processes'}, "
        f"on {measured.device}"
    )
    table = plain_table(
        "", "img/s", "of decode + crop", "CPU µs/img", "time", "merge s", "peak MiB", "at 10%", title=title
    )
    alone = f"{measured.alone_img_per_s:,.0f}", "1.00", f"{measured.alone_cpu_us_per_img:,.0f}"
    table.add_row("decode + crop alone, threads", *alone, "", "", "", "")
    if measured.processes_img_per_s is not None:
        share = measured.processes_img_per_s / measured.alone_img_per_s
        rate = f"{measured.processes_img_per_s:,.0f}"
        table.add_row("decode + crop alone, processes", rate, f"{share:.2f}", "", "", "", "", "")
    for each in measured.encodings:
        is_none = each.network == "none"
        table.add_row(
            "encode-dataset, no network" if is_none else f"encode-dataset, {each.network}",
            f"{measured.pipeline_img_per_s if is_none else each.img_per_s:,.0f}",
            f"{measured.ratio:.2f}" if is_none else "",
            f"{each.cpu_us_per_img:,.0f}",
            each.split,
            f"{each.merge_s:.2f}",
            f"{each.peak_mib:,.0f}",
            f"{each.early_peak_mib:,.0f}",
        )
    Session(as_json=as_json).result(asdict(measured), table)


def store(
    num_rows: Annotated[
        int, typer.Option("--num-rows", min=1000, help="Rows of 16 x 16 x 16 uint8, 4 KiB each.")
    ] = 50000,
    batch_size: options.BatchSize = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 5,
    as_json: options.Json = False,
) -> None:
    """Writing a key-code store, and reading random batches of it against numpy.memmap."""
    from brics_cli.bench.store import bench_store

    measured = bench_store(num_rows=num_rows, code_shape=CODE_SHAPE, batch_size=batch_size, repeats=repeats)
    title = (
        f"{num_rows:,} rows of 16 x 16 x 16 uint8, random batches of {batch_size}, warm, on {measured.device}; "
        f"written at {measured.write_rows_per_s:,.0f} rows/s"
    )
    table = plain_table("read by", "rows/s", "of numpy.memmap", title=title)
    for reading in measured.readings:
        table.add_row(reading.how, f"{reading.rows_per_s:,.0f}", f"{reading.ratio:.2f}")
    Session(as_json=as_json).result(asdict(measured), table)
