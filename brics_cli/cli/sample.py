"""`brics sample`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brics_cli import api
from brics_cli.cli import options
from brics_cli.cli.output import Session, human_bytes
from brics_cli.config.names import ClassBalance
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLER_NAMES
from brics_cli.errors import InterruptedRunError, UsageError
from brics_cli.runtime.reporting import command_line
from brics_cli.sampling.tasks import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_FRAMES,
    DEFAULT_NUM,
    DEFAULT_SHARD_SIZE,
    FORMATS,
    TITLES,
    SampleFormat,
)
from brics_cli.workspace.naming import metavar_of

if TYPE_CHECKING:
    from brics_cli.sampling.plan import Plan

app = options.command_app()

PICTURES = "Pictures"


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
        typer.Option("--out", metavar=metavar_of(FORMATS), help="Default: runs/samples/DATE-RECIPE."),
    ] = None,
    sample_format: Annotated[
        SampleFormat | None,
        typer.Option(
            "--format",
            help=f"{', '.join(TITLES.values())}. Default: by --out; wds for a DIR.",
        ),
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="Keep the key codes, as a store: --format h5.")] = False,
    sampler: Annotated[str, typer.Option("--sampler", metavar="NAME", help=f"{SAMPLER_NAMES}.")] = DEFAULT_SAMPLER,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help=f"Sampler steps. Default: {DEFAULT_STEPS}."),
    ] = None,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Scale of guidance, by classes or by --guide; 1 means no guidance.")
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
    batch_size: options.BatchSize = DEFAULT_BATCH_SIZE,
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
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    how: dict[str, Any] = {
        "model": model, "seed": seed, "out": out, "sampler": sampler, "steps": steps, "guidance": guidance,
        "clip": clip, "guide": guide, "class_": class_, "ema": ema, "autoencoder": ae, "batch_size": batch_size,
        "device": device, "reporter": session.reporter,
    }  # fmt: skip
    if grid is not None or interpolate is not None:
        _check_alone(
            grid=grid, interpolate=interpolate, n=num, seeds=seeds, format=sample_format, codes=codes,
            shard_size=shard_size, seed=seed if interpolate is not None else None, class_balance=class_balance,
        )  # fmt: skip
        how |= {"grid": grid, "interpolate": interpolate, "num_frames": frames}
        _draw_picture(session, how, dry_run=dry_run, overwrite=overwrite)
        return
    if frames is not None:
        raise UsageError("--frames goes with --interpolate", next="Example: --interpolate 3 7 --frames 12")
    if codes and sample_format not in (None, "h5"):
        raise UsageError(
            f"--codes and --format {sample_format} disagree", next="A key-code store is --codes or --format h5."
        )
    how |= {
        "num": num, "seeds": seeds, "format": "h5" if codes else sample_format, "class_balance": class_balance,
        "shard_size": shard_size,
    }  # fmt: skip
    if dry_run:
        from brics_cli.sampling.plan import plan_sampling

        _say_plan(session, plan_sampling(**how, workspace=session.workspace))
        return
    try:
        sampled = api.sample(**how, workspace=session.workspace.root, overwrite=overwrite)
    except InterruptedRunError as error:
        from brics_cli.jobs.sample import SamplingInterrupted

        assert isinstance(error, SamplingInterrupted)
        # what was left out is said now: the newest model may be another one by then
        said = [] if model is not None else ["--model", str(error.plan.models.denoiser.path)]
        said += [] if out is not None else ["--out", str(error.plan.out)]
        command = command_line("brics", *sys.argv[1:], *said)
        raise InterruptedRunError(error.what, next=f"Go on with: {command}") from None
    speed = f" ({sampled.img_per_s:,.1f} img/s)" if sampled.img_per_s is not None and sampled.num_now else ""
    session.result(
        asdict(sampled), [f"{sampled.num_images:,} images{speed}: {sampled.path}", f"contact sheet: {sampled.sheet}"]
    )
    session.next_step("brics", "eval", "--metric", "fid", "--fake", sampled.path)


def _say_plan(session: Session, plan: Plan) -> None:
    from brics_cli.sampling.engine import estimate_seconds

    seconds, models, num = estimate_seconds(plan), plan.models, len(plan.seeds)
    shape, size, settings = models.denoiser.code_shape, models.autoencoder.config.image_size, models.settings
    num_bytes = num * (shape[0] * shape[1] * shape[2] if plan.format == "h5" else 3 * size**2)
    session.result(
        {
            "images": num,
            "seeds": [plan.seeds.start, plan.seeds.stop - 1],
            "code_shape": list(shape),
            "image_size": size,
            "format": plan.format,
            "out": plan.out,
            "settings": plan.settings,
            "num_evaluations": settings.num_evaluations,
            "max_bytes": num_bytes,
            "seconds": seconds,
        },
        f"would sample {num:,} images of {size} px (seeds {plan.seeds.start} to {plan.seeds.stop - 1}; codes "
        f"{' x '.join(map(str, shape))}, {settings.sampler}, {settings.num_evaluations} evaluations each) as "
        f"{plan.format} into {plan.out}: at most {human_bytes(num_bytes)}, about {seconds:,.0f} s",
    )


def _check_alone(*, grid: str | None, interpolate: tuple[int, int] | None, **others: object) -> None:
    """Raise UsageError when a picture was asked for together with options of whole runs; `others` by their names."""
    if grid is not None and interpolate is not None:
        raise UsageError("--grid and --interpolate were both given", next="They are two pictures: run it twice.")
    picture, hint = "--interpolate", "It goes from seed A to seed B in --frames images."
    if interpolate is None:
        picture, hint = "--grid", "It shows ROWS x COLS seeds, from --seed A on."
    for name, value in others.items():
        if value not in (None, False):
            raise UsageError(f"{picture} takes no --{name.replace('_', '-')}", next=hint)


def _draw_picture(session: Session, how: dict[str, Any], *, dry_run: bool, overwrite: bool) -> None:
    from brics_cli.jobs.sample_picture import draw, plan_picture

    picture, out = plan_picture(**how, workspace=session.workspace)
    models = picture.models
    if dry_run:
        evaluations = models.settings.num_evaluations
        value = {
            "images": picture.num_images,
            "image_size": models.autoencoder.config.image_size,
            "num_evaluations": evaluations,
            "out": out,
            "settings": {**models.record(batch_size=picture.batch_size), **picture.settings},
        }
        session.result(value, f"would draw {picture.summary}, {evaluations} evaluations each, into {out}")
        return
    drawn = draw(picture, out=out, overwrite=overwrite, reporter=session.reporter)
    lines = [f"{picture.summary}: {drawn.path}"]
    if drawn.frames:
        lines.append(f"frames: {drawn.frames[0]} to {drawn.frames[-1].name}")
    session.result(asdict(drawn), lines)
    session.next_step("brics", "sample", "--model", models.denoiser.path, "--n", "1000")
