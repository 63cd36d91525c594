"""`brics reconstruct`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.errors import ExitCode

app = options.command_app()


@app.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files.")],
    out: Annotated[Path | None, options.out_option("FILE.png", "The sheet. Default: sheet.png.")] = None,
    ae: options.AutoencoderRun = None,
    dtype: options.Dtype = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per batch. Default: 64.")
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show images beside their reconstructions.

    Each image becomes codes as a key-code store keeps them, then an image again; the sheet has both, and the PSNR of
    each. A fully convolutional autoencoder takes it at its own size and shape (large ones in tiles, without a seam),
    any other as the square that it was trained on.

    Example: brics reconstruct photos/a.jpg photos/b.jpg --out sheet.png
    """
    from brics_cli.jobs.reconstruct import reconstruct as run

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    made = run(
        images,
        autoencoder=ae,
        out=out,
        precision=dtype,
        batch_size=batch_size,
        overwrite=overwrite,
        device=device,
        workspace=session.workspace,
        reporter=session.reporter,
    )
    table = plain_table("image", "PSNR dB")
    for each in made.reconstructions:
        table.add_row(str(each.path), f"{each.psnr_db:.2f}")
    shapes = {"x".join(str(side) for side in each.code_shape) for each in made.reconstructions}
    shape = shapes.pop() if len(shapes) == 1 else f"of {len(shapes)} shapes"
    session.result(
        asdict(made),
        [
            table,
            f"{len(made.reconstructions)} images through codes {shape} {made.quantisation}, "
            f"{made.mean_psnr_db:.2f} dB on average: {made.path}",
        ],
    )
    for path, reason in made.failures:
        session.reporter.warning(f"{path}: {reason}")
    folder, codes = made.reconstructions[0].path.parent, session.workspace.unused("codes.h5")
    session.next_step("brics", "encode-dataset", folder, "--ae", made.autoencoder, "--out", codes)
    if made.failures:
        raise typer.Exit(ExitCode.SOME_FAILED)
