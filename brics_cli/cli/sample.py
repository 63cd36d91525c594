"""`brics sample`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brics_cli import api
from brics_cli.cli import options
from brics_cli.cli.batch import executor_of
from brics_cli.cli.output import Session
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER
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
from brics_cli.wording import human_bytes
from brics_cli.workspace.naming import is_picture, metavar_of
from brics_cli.workspace.remote import is_remote, named

if TYPE_CHECKING:
    from brics_cli.sampling.plan import Plan

app = options.command_app()

PICTURES = "Pictures"


@app.command()
def sample(
    num: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help=f"How many images. Default: {DEFAULT_NUM}, or as many as --seeds says.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    seeds: options.Seeds = None,
    seed: options.FirstSeed = None,
    model: options.DiffusionRun = None,
    ema: options.Ema = None,
    ae: options.AutoencoderRun = None,
    sampler: options.Sampler = DEFAULT_SAMPLER,
    steps: options.SamplerSteps = None,
    guidance: options.Guidance = 1.0,
    guide: options.Guide = None,
    class_: options.Class = None,
    class_balance: options.Balance = None,
    clip: options.Clip = True,
    dtype: options.Dtype = None,
    out: Annotated[
        Path | None,
        options.out_option(
            f"{metavar_of(FORMATS)}|x.png",
            "Where the images go; all on one picture: x.png. Default: runs/samples/DATE-RECIPE.",
        ),
    ] = None,
    sample_format: Annotated[
        SampleFormat | None,
        typer.Option(
            "--format",
            help=f"{', '.join(TITLES.values())}. Default: by --out; wds for a DIR.",
        ),
    ] = None,
    codec: options.ShardCodec = None,
    codes: Annotated[bool, typer.Option("--codes", help="Keep the key codes, as a store: --format h5.")] = False,
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
    num_workers: options.NumWriters = None,
    shard_size: Annotated[
        int | None,
        typer.Option("--shard-size", min=1, help=f"Images per shard (wds, h5). Default: {DEFAULT_SHARD_SIZE:,}."),
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Devices = "auto",
    executor: options.Executor = "local",
    ray_address: options.RayAddress = None,
    cpus_per_worker: options.CpusPerWorker = None,
    max_retries: options.MaxRetries = None,
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
    cluster = executor_of(executor, ray_address=ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries)
    how: dict[str, Any] = {
        "model": model, "seed": seed, "out": out, "sampler": sampler, "steps": steps, "guidance": guidance,
        "clip": clip, "guide": guide, "class_": class_, "ema": ema, "autoencoder": ae, "batch_size": batch_size,
        "class_balance": class_balance, "precision": dtype,
        "device": device, "overwrite": overwrite, "reporter": session.reporter,
    }  # fmt: skip
    if grid is not None or interpolate is not None or is_picture(out):
        several = grid is not None or interpolate is not None
        _check_alone(
            grid=grid, interpolate=interpolate, n=num if several else None, seeds=seeds if several else None,
            format=sample_format, codes=codes, shard_size=shard_size, workers=num_workers, codec=codec,
            seed=seed if interpolate is not None else None, class_balance=class_balance if several else None,
            executor=None if cluster is None else executor,
        )  # fmt: skip
        how |= {"grid": grid, "interpolate": interpolate, "num_frames": frames, "num": num, "seeds": seeds}
        _draw_picture(session, how, dry_run=dry_run)
        return
    if frames is not None:
        raise UsageError("--frames goes with --interpolate", next="Example: --interpolate 3 7 --frames 12")
    if codes and sample_format not in (None, "h5"):
        raise UsageError(
            f"--codes and --format {sample_format} disagree", next="A key-code store is --codes or --format h5."
        )
    how |= {
        "num": num, "seeds": seeds, "format": "h5" if codes else sample_format, "shard_size": shard_size,
        "num_workers": num_workers, "codec": codec, "executor": cluster,
    }  # fmt: skip
    if dry_run:
        from brics_cli.sampling.plan import plan_sampling

        _say_plan(session, plan_sampling(**how, workspace=session.workspace))
        return
    try:
        sampled = api.sample(**how, workspace=session.workspace.root)
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
    from brics_cli.evaluation.selection import metric_of_samples

    session.next_step("brics", "eval", "--metric", metric_of_samples(), "--fake", sampled.path)


def _say_plan(session: Session, plan: Plan) -> None:
    from brics_cli.sampling.engine import estimate_seconds

    seconds, models, num = estimate_seconds(plan), plan.models, len(plan.seeds)
    shape, size, settings = models.denoiser.code_shape, models.image_size, models.settings
    num_bytes = num * (shape[0] * shape[1] * shape[2] if plan.format == "h5" else 3 * size**2)
    session.result(
        {
            "images": num,
            "seeds": [plan.seeds.start, plan.seeds.stop - 1],
            "code_shape": list(shape),
            "image_size": size,
            "format": plan.format,
            "out": named(plan.out),
            "settings": plan.settings,
            "num_evaluations": settings.num_evaluations,
            "max_bytes": num_bytes,
            "seconds": seconds,
        },
        f"would sample {num:,} images of {size} px (seeds {plan.seeds.start} to {plan.seeds.stop - 1}; codes "
        f"{' x '.join(map(str, shape))}, {settings.sampler}, {settings.num_evaluations} evaluations each) as "
        f"{plan.format} into {named(plan.out)}: at most {human_bytes(num_bytes)}, about {seconds:,.0f} s",
    )


def _check_alone(*, grid: str | None, interpolate: tuple[int, int] | None, **others: object) -> None:
    """Raise UsageError when a picture was asked for together with options of whole runs; `others` by their names."""
    if grid is not None and interpolate is not None:
        raise UsageError("--grid and --interpolate were both given", next="They are two pictures: run it twice.")
    picture, hint = "--out x.png", "It is one picture of all images."
    if interpolate is not None:
        picture, hint = "--interpolate", "It goes from seed A to seed B in --frames images."
    elif grid is not None:
        picture, hint = "--grid", "It shows ROWS x COLS seeds, from --seed A on."
    for name, value in others.items():
        if value not in (None, False):
            raise UsageError(f"{picture} takes no --{name.replace('_', '-')}", next=hint)


def _draw_picture(session: Session, how: dict[str, Any], *, dry_run: bool) -> None:
    from brics_cli.jobs.sample_picture import draw, plan_picture

    if how["out"] is not None and is_remote(how["out"]):
        raise UsageError("pictures are written to files of this machine", next="Write it here, and copy it.")
    picture, out = plan_picture(**how, workspace=session.workspace)
    models = picture.models
    if dry_run:
        evaluations = models.settings.num_evaluations
        value = {
            "images": picture.num_images,
            "image_size": models.image_size,
            "num_evaluations": evaluations,
            "out": out,
            "settings": {**models.record(batch_size=picture.batch_size), **picture.settings},
        }
        session.result(value, f"would draw {picture.summary}, {evaluations} evaluations each, into {out}")
        return
    drawn = draw(picture, out=out, overwrite=how["overwrite"], reporter=session.reporter)
    lines = [f"{picture.summary}: {drawn.path}"]
    if drawn.frames:
        lines.append(f"frames: {drawn.frames[0]} to {drawn.frames[-1].name}")
    session.result(asdict(drawn), lines)
    session.next_step("brics", "sample", "--model", models.denoiser.path, "--n", "1000")
