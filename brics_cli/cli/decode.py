"""`brics decode`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli import api
from brics_cli.cli import options
from brics_cli.cli.batch import executor_of, same_command_goes_on, say_if_complete
from brics_cli.cli.output import Session
from brics_cli.workspace.naming import IMAGE_FORMATS, IMAGE_TITLES, ImageFormat, metavar_of
from brics_cli.workspace.remote import named

app = options.command_app()


@app.command()
def decode(
    codes: Annotated[
        Path | None, typer.Argument(metavar="CODES", help="A key-code store. Default: the newest in the workspace.")
    ] = None,
    out: Annotated[
        Path | None,
        options.out_option(
            metavar_of(IMAGE_FORMATS), "Where the images go. Default: reconstructions in the workspace."
        ),
    ] = None,
    ae: options.AutoencoderRun = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option("--format", help=f"{', '.join(IMAGE_TITLES.values())}. Default: by --out; png for a DIR."),
    ] = None,
    codec: options.ShardCodec = None,
    nested: Annotated[
        bool, typer.Option("--nested", help="PNG files in folders, as keys have slashes. Default: all in one folder.")
    ] = False,
    dtype: options.Dtype = None,
    num_workers: options.NumWriters = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per batch; fewer above 256 px. Default: 64.")
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    executor: options.Executor = "local",
    ray_address: options.RayAddress = None,
    cpus_per_worker: options.CpusPerWorker = None,
    max_retries: options.MaxRetries = None,
    workspace: options.Workspace = None,
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Decode a key-code store back into images.

    Images keep the keys of the collection: PNG files are in one folder, as pytorch-fid and torch-fidelity take them,
    where `shard/cat` is the file `shard%2Fcat.png`. The autoencoder is the one that made the store. Run the same
    command again after an interruption and it goes on.

    Example: brics decode codes.h5 --out reconstructions
    """
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    how: dict[str, Any] = {
        "autoencoder": ae, "out": out, "format": image_format, "codec": codec, "nested": nested, "device": device,
        "precision": dtype, "num_workers": num_workers, "overwrite": overwrite, "reporter": session.reporter,
        "executor": executor_of(
            executor, ray_address=ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries
        ),
    }  # fmt: skip
    if dry_run:
        from brics_cli.jobs.decode import plan_decoding

        plan = plan_decoding(codes, **how, workspace=session.workspace)
        store, format, path = plan.store, plan.sink.format, plan.sink.path
        left_out = [f"not written as {format}: {what}" for what in plan.left_out]
        size = store.image_size
        session.result(
            {"images": len(store), "image_size": size, "format": format, "left_out": plan.left_out, "out": named(path)},
            [f"would decode {len(store):,} images of {size} px as {format} into {named(path)}", *left_out],
        )
        return
    with same_command_goes_on():
        decoded = api.decode(codes, **how, batch_size=batch_size, workspace=session.workspace.root)
    say_if_complete(session, decoded.path, decoded.already_complete)
    speed = ""
    if decoded.img_per_s is not None and decoded.num_now:
        waiting = decoded.seconds["write"] / max(sum(decoded.seconds.values()), 1e-9)
        speed = f" ({decoded.img_per_s:,.1f} img/s, {waiting:.0%} of the time waiting for writing)"
    session.result(asdict(decoded), f"{decoded.num_images:,} images{speed}: {decoded.path}")
    session.next_step("brics", "eval", "--metric", "psnr", "--fake", decoded.path)
