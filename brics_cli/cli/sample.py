"""`brics sample`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, human_bytes
from brics_cli.cli.sample_options import (
    DEFAULT_NUM,
    ClassBalance,
    SampleFormat,
    check_picture,
    chosen_format,
    grid_sides,
    seed_range,
)
from brics_cli.cli.sample_picture import PictureRequest, draw_picture
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLER_NAMES, SamplerSettings
from brics_cli.errors import InterruptedRunError, UsageError
from brics_cli.runtime.reporting import command_line

app = options.command_app()

PICTURES = "Pictures"
DEFAULT_FRAMES, DEFAULT_SHARD_SIZE = 12, 1000


@app.command()
def sample(
    num: Annotated[
        int | None,
        typer.Option("--n", min=1, help=f"How many images. Default: {DEFAULT_NUM}, or as many as --seeds says."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="A-B", help="The seeds, both ends included: one image each.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The first seed, with --n or --grid. Default: 0.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="RUN", help="A diffusion run. Default: the newest in the workspace."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option("--ema", metavar="WIDTH", help="Which average of the weights, 0.05 say. Default: the plain one."),
    ] = None,
    ae: options.AutoencoderRun = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|x.zip|x.npz|x.tar|x.h5", help="Default: runs/samples/DATE-RECIPE."),
    ] = None,
    sample_format: Annotated[
        SampleFormat | None,
        typer.Option(
            "--format",
            help="WebDataset shards, PNG files, EDM's zip, ADM's npz, or a key-code store. Default: by --out; wds for "
            "a DIR.",
        ),
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="Keep the key codes, as a store: --format h5.")] = False,
    sampler: Annotated[str, typer.Option("--sampler", metavar="NAME", help=f"{SAMPLER_NAMES}.")] = DEFAULT_SAMPLER,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help=f"Sampler steps. Default: {DEFAULT_STEPS}."),
    ] = None,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Scale of guidance, by classes or by --guide; 1 is none.")
    ] = 1.0,
    guide: Annotated[
        Path | None,
        typer.Option(
            "--guide",
            metavar="RUN",
            help="Autoguidance: a weaker model of the same codes, to be led away from. With --guidance.",
        ),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="NAME|N", help="The class of every image. Default: each draws its own from its seed."
        ),
    ] = None,
    class_balance: Annotated[
        ClassBalance | None,
        typer.Option(
            "--class-balance",
            help="Classes as often as in training, or each alike; never one without images. Default: proportional.",
        ),
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip/--no-clip", help="Limit each estimate to the range that codes can have.")
    ] = True,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="ROWSxCOLS",
            help="One picture of many seeds; with classes, a row for each.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    interpolate: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--interpolate",
            metavar="A B",
            help="The way from seed A to seed B: frames, and a strip of them.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=2,
            help=f"How many, both ends included. Default: {DEFAULT_FRAMES}.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    shard_size: Annotated[
        int | None,
        typer.Option("--shard-size", min=1, help=f"Images per shard (wds, h5). Default: {DEFAULT_SHARD_SIZE:,}."),
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Devices = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Sample images from a diffusion model, one seed per image.

    The image of a seed is the same in every run with the same model and settings, whatever else is sampled. Run the
    same command again after an interruption and it goes on. When memory runs out batches are halved, which is said
    and recorded.

    Example: brics sample --n 1000 --sampler dpmpp-2m --steps 32
    """
    settings = SamplerSettings(sampler=sampler, steps=steps, guidance=guidance, clip=clip)
    check_picture(
        grid=grid, interpolate=interpolate, frames=frames, n=num, seeds=seeds, format=sample_format, codes=codes,
        shard_size=shard_size, seed=seed if interpolate is not None else None,
    )  # fmt: skip
    sides = grid_sides(grid) if grid is not None else None
    wanted = seed_range(num=num, seeds=seeds, seed=seed)
    format = chosen_format(sample_format, codes=codes)
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)

    from brics_cli.jobs.sample import sample as run
    from brics_cli.runtime.device import resolve_devices
    from brics_cli.sampling.sample_cost import estimate_seconds
    from brics_cli.sampling.sample_plan import plan_sampling, sampled_format

    devices = resolve_devices(device)
    if sides is not None or interpolate is not None:
        if class_balance is not None:
            raise UsageError("--class-balance goes with --n or --seeds, not with a picture")
        if len(devices) > 1:
            raise UsageError(f"--device {device}: a picture is drawn on one device", next="Name one.")
        draw_picture(
            session,
            PictureRequest(
                model=model if model is not None else session.resolve("diffusion", argument="--model").path,
                ema=ema,
                guide=guide,
                ae=ae,
                settings=settings,
                batch_size=batch_size,
                class_=class_,
                device=devices[0],
                grid=sides,
                first_seed=wanted.start,
                interpolate=interpolate,
                num_frames=frames or DEFAULT_FRAMES,
            ),
            out=out,
            dry_run=dry_run,
            overwrite=overwrite,
        )
        return
    if out is not None:
        session.say_format(out, sampled_format(out, asked=format), asked=format)  # before any work
    plan = plan_sampling(
        model if model is not None else session.resolve("diffusion", argument="--model").path,
        seeds=wanted,
        settings=settings,
        batch_size=batch_size,
        workspace=session.workspace,
        device=devices,
        out=out,
        format=format.value if format is not None else None,
        class_=class_,
        balance=class_balance.value if class_balance is not None else None,
        shard_size=shard_size or DEFAULT_SHARD_SIZE,
        ema=ema,
        guide=guide,
        ae_path=ae,
        reporter=session.reporter,
    )
    if dry_run:
        seconds = estimate_seconds(plan)
        shape = plan.stream.denoiser.code_shape
        size = plan.autoencoder.config.image_size
        num_bytes = len(wanted) * (shape[0] * shape[1] * shape[2] if plan.format == "h5" else 3 * size**2)
        session.result(
            {
                "images": len(wanted),
                "seeds": [wanted.start, wanted.stop - 1],
                "code_shape": list(shape),
                "image_size": size,
                "format": plan.format,
                "out": plan.out,
                "settings": plan.settings,
                "num_evaluations": settings.num_evaluations,
                "max_bytes": num_bytes,
                "seconds": seconds,
            },
            f"would sample {len(wanted):,} images of {size} px (seeds {wanted.start} to {wanted.stop - 1}; codes "
            f"{' x '.join(map(str, shape))}, {sampler}, {settings.num_evaluations} evaluations each) as {plan.format} "
            f"into {plan.out}: at most {human_bytes(num_bytes)}, about {seconds:,.0f} s",
        )
        return
    try:
        sampled = run(plan, overwrite=overwrite, reporter=session.reporter)
    except InterruptedRunError as error:
        # what was left out is said now: the newest model may be another one by then
        said = [] if model is not None else ["--model", str(plan.stream.denoiser.path)]
        said += [] if out is not None else ["--out", str(plan.out)]
        command = command_line("brics", *sys.argv[1:], *said)
        raise InterruptedRunError(error.what, next=f"Go on with: {command}") from None
    if sampled.already_complete:
        session.reporter.message(f"{plan.out} is complete already, of the same model and settings: nothing to do")
    speed = f" ({sampled.img_per_s:,.1f} img/s)" if sampled.img_per_s is not None and sampled.num_now else ""
    session.result(
        asdict(sampled), [f"{sampled.num_images:,} images{speed}: {sampled.path}", f"contact sheet: {sampled.sheet}"]
    )
    session.next_step("brics", "eval", "--metric", "fid", "--fake", sampled.path)
