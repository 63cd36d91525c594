"""`brics decode`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.batch import same_command_goes_on
from brics_cli.cli.output import Session
from brics_cli.workspace.naming import FOLDER

app = options.command_app()


class ImageFormat(StrEnum):
    """How decoded images are stored."""

    png = "png"
    wds = "wds"
    zip = "zip"
    npz = "npz"


@app.command()
def decode(
    codes: Annotated[
        Path | None, typer.Argument(metavar="[CODES]", help="A key-code store. Default: the newest in the workspace.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|x.zip|x.npz|x.tar", help="Default: reconstructions in the workspace."),
    ] = None,
    ae: options.AutoencoderRun = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option(
            "--format", help="PNG files, WebDataset shards, EDM's zip, or ADM's npz. Default: by --out; png for a DIR."
        ),
    ] = None,
    nested: Annotated[
        bool, typer.Option("--nested", help="PNG files in folders, as keys have slashes. Default: all in one folder.")
    ] = False,
    batch_size: options.BatchSize = 64,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Decode a key-code store back into images.

    Images keep the keys of the collection: PNG files stand in one folder, as pytorch-fid and torch-fidelity take them,
    where `shard/cat` is the file `shard%2Fcat.png`. The autoencoder is the one that made the store. Run the same
    command again after an interruption and it goes on.

    Example: brics decode codes.h5 --out reconstructions
    """
    from brics_cli.codes import KeyCodeStore
    from brics_cli.codes.lineage import load_store_autoencoder
    from brics_cli.images.sinks import FORMS
    from brics_cli.jobs.decode import decode as run
    from brics_cli.jobs.decode import decoded_format, plan_decoding
    from brics_cli.runtime.device import resolve_device

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    if out is None:
        out = session.workspace.root / f"reconstructions{FORMS[image_format.value][0] if image_format else FOLDER}"
    format = decoded_format(out, asked=image_format, nested=nested)  # before any work
    session.say_format(out, format, asked=image_format)
    store = KeyCodeStore(codes if codes is not None else session.resolve("store", argument="CODES").path)
    target = resolve_device(device)
    plan = plan_decoding(
        store,
        load_store_autoencoder(store, workspace=session.workspace, ae_path=ae, device=target),
        out=out,
        device=target,
        format=format,
        nested=nested,
    )
    if dry_run:
        session.result(
            {
                "images": len(store),
                "image_size": store.image_size,
                "format": plan.format,
                "left_out": plan.left_out,
                "out": plan.out,
            },
            [
                f"would decode {len(store):,} images of {store.image_size} px as {plan.format} into {plan.out}",
                *(f"not written as {plan.format}: {what}" for what in plan.left_out),
            ],
        )
        return
    with same_command_goes_on():
        decoded = run(plan, batch_size=batch_size, overwrite=overwrite, reporter=session.reporter)
    if decoded.already_complete:
        session.reporter.message(f"{plan.out} is complete already, made from the same inputs: nothing to do")
    speed = f" ({decoded.img_per_s:,.1f} img/s)" if decoded.img_per_s is not None and decoded.num_now else ""
    session.result(asdict(decoded), f"{decoded.num_images:,} images{speed}: {decoded.path}")
    session.next_step("brics", "eval", "--metric", "psnr", "--fake", plan.out)
