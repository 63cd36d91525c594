"""`brics encode-dataset`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, human_bytes
from brics_cli.cli.resuming import same_command_goes_on, warn_about_failures
from brics_cli.errors import ArtefactError, ExitCode
from brics_cli.workspace import read_provenance

app = options.command_app()


class Quantisation(StrEnum):
    """How codes are stored."""

    uint8 = "uint8"
    uint16 = "uint16"
    float16 = "float16"


def trained_on(run: Path) -> str:
    """The collection that the autoencoder of `run` was trained on."""
    artefact = read_provenance(run)
    collection = artefact.parent("collection") if artefact is not None else None
    if collection is None:
        raise ArtefactError(f"{run} does not say what it was trained on", next="Give DATA: brics encode-dataset IMAGES")
    return collection.path


@app.command()
def encode_dataset(
    data: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            metavar="[DATA]",
            help="Images: a folder, WebDataset tars, or a pattern. Default: what the autoencoder was trained on.",
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--out", metavar="FILE.h5", help="The store. Default: codes.h5 in the workspace."),
    ] = None,
    ae: options.AutoencoderRun = None,
    quantisation: Annotated[
        Quantisation, typer.Option("--quantisation", help="uint8 is enough for bounded codes.")
    ] = Quantisation.uint8,
    dtype: Annotated[
        Optional[options.Precision],  # noqa: UP045
        typer.Option("--dtype", help="Arithmetic of the encoder. Default: bf16 on CUDA, fp32 elsewhere."),
    ] = None,
    transform: Annotated[
        Optional[options.Transform],  # noqa: UP045
        typer.Option("--transform", help="How an image becomes a square. Default: as in the autoencoder's training."),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Also store the codes of the mirrored images.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", min=1, help="Encode only the first so many images."),
    ] = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Encode a collection into a key-code store.

    Each finished shard is kept: run the same command again after an interruption and it goes on. Images that cannot
    be read are listed in the store (`brics info codes.h5`), and the exit code is 5.

    Example: brics encode-dataset ./lsun --out codes.h5 --flips
    """
    from brics_cli.core.autoencoder import load_autoencoder
    from brics_cli.core.device import resolve_device
    from brics_cli.jobs.encode_dataset import encode_dataset as run
    from brics_cli.jobs.encode_dataset import estimate_seconds, plan_encoding

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    target = resolve_device(device)
    run_path = ae if ae is not None else session.resolve("autoencoder", argument="--ae").path
    if data is None:
        data = trained_on(run_path)
        session.reporter.message(f"DATA not given: using {data}, which {run_path} was trained on")
    plan = plan_encoding(
        data,
        load_autoencoder(run_path, device=target),
        out=out if out is not None else session.workspace.root / "codes.h5",
        device=target,
        quantisation=quantisation.value,
        precision=dtype.value if dtype is not None else None,
        transform=transform.value if transform is not None else None,
        flips=flips,
        limit=limit,
    )
    shape = "x".join(str(side) for side in plan.header.code_shape)
    if dry_run:
        seconds = estimate_seconds(plan, batch_size=batch_size, num_workers=num_workers)
        value = {
            "images": plan.header.num_images,
            "shards": len(plan.shards),
            "code_shape": list(plan.header.code_shape),
            "bytes": plan.store_bytes,
            "bytes_needed": 2 * plan.store_bytes,
            "seconds": seconds,
            "out": plan.out,
        }
        session.result(
            value,
            f"would encode {plan.collection.describe()} into {plan.out}: codes {shape} {quantisation.value}, "
            f"{human_bytes(plan.store_bytes)} (twice that while parts are merged), "
            f"about {seconds:,.0f} s on {target} by its first batch",
        )
        return
    with same_command_goes_on():
        encoded = run(
            plan,
            batch_size=batch_size,
            num_workers=num_workers,
            overwrite=overwrite,
            max_failures=max_failures,
            reporter=session.reporter,
        )
    if encoded.already_complete:
        session.reporter.message(f"{plan.out} is complete already, made from the same inputs: nothing to do")
    value = {**asdict(encoded), "num_failed": encoded.num_failed}
    speed = f", {encoded.img_per_s:,.1f} img/s" if encoded.img_per_s is not None and encoded.num_now else ""
    cost = ""
    if encoded.psnr_exact_db is not None and encoded.psnr_db is not None:
        loss_db = encoded.psnr_exact_db - encoded.psnr_db
        value["quantisation_cost_db"] = loss_db
        shown = round(loss_db, 3) + 0.0  # a gain below the last digit is no "-0.000"
        cost = f"; {quantisation.value} costs {shown:.3f} dB of {encoded.psnr_exact_db:.2f} dB PSNR (first batch)"
    session.result(
        value,
        f"{encoded.num_images:,} codes {shape} {quantisation.value}{speed}, {encoded.bytes_per_image:,} bytes per "
        f"image (1/{encoded.ratio_to_pixels:.3g} of its pixels){cost}: {encoded.path}",
    )
    if encoded.failures:
        warn_about_failures(
            session, encoded.num_failed, of=plan.header.num_images, listed_in=f"{plan.out} (brics info {plan.out})"
        )
    session.next_step("brics", "train-diffusion", plan.out)
    if encoded.failures:
        raise typer.Exit(ExitCode.SOME_FAILED)
