"""`brics sample`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, human_bytes
from brics_cli.errors import InterruptedRunError, UsageError

app = options.command_app()

DEFAULT_NUM = 64


class SampleFormat(StrEnum):
    """How samples are stored."""

    wds = "wds"
    png = "png"
    zip = "zip"
    h5 = "h5"


@app.command()
def sample(
    num: Annotated[
        Optional[int],  # noqa: UP045 - typer reads it at run time
        typer.Option("--n", min=1, help=f"How many images. Default: {DEFAULT_NUM}, or as many as --seeds says."),
    ] = None,
    seeds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--seeds", metavar="A-B", help="The seeds, both ends included: one image each."),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seed", min=0, help="The first seed, with --n. Default: 0."),
    ] = None,
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--model", metavar="RUN", help="A diffusion run. Default: the newest in the workspace."),
    ] = None,
    ae: options.AutoencoderRun = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR|x.zip|x.tar|x.h5", help="Default: runs/samples/DATE-RECIPE."),
    ] = None,
    sample_format: Annotated[
        Optional[SampleFormat],  # noqa: UP045
        typer.Option(
            "--format",
            help="WebDataset shards, PNG files, EDM's zip, or a key-code store. Default: by --out; wds for a DIR.",
        ),
    ] = None,
    sampler: Annotated[str, typer.Option("--sampler", metavar="NAME", help="heun, dpmpp-2m, ddim or ddpm.")] = "heun",
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--steps", min=1, help="Sampler steps. Default: heun 18, dpmpp-2m 20, ddim 50, ddpm 250."),
    ] = None,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Classifier-free guidance; 1 is none. Needs a model with classes.")
    ] = 1.0,
    class_: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--class", min=0, help="The class of every image. Default: each draws its own from its seed."),
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip/--no-clip", help="Limit each estimate to the range that codes can have.")
    ] = True,
    batch_size: options.BatchSize = 32,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Images per shard (wds, h5).")] = 1000,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Sample images from a diffusion model, one seed per image.

    The image of a seed is the same in every run with the same model and settings, whatever else is sampled. Run the
    same command again after an interruption and it goes on.

    Example: brics sample --n 1000 --sampler heun --steps 18
    """
    from brics_cli.core.device import resolve_device
    from brics_cli.core.samplers import SamplerSettings
    from brics_cli.jobs.sample import estimate_seconds
    from brics_cli.jobs.sample import sample as run
    from brics_cli.streams.sample_plan import plan_sampling

    wanted = seed_range(num=num, seeds=seeds, seed=seed)
    settings = SamplerSettings(sampler=sampler, steps=steps, guidance=guidance, clip=clip)
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    plan = plan_sampling(
        model if model is not None else session.resolve("diffusion", argument="--model").path,
        seeds=wanted,
        settings=settings,
        batch_size=batch_size,
        workspace=session.workspace,
        device=resolve_device(device),
        out=out,
        format=sample_format.value if sample_format is not None else None,
        class_=class_,
        shard_size=shard_size,
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
        command = shlex.join(["brics", *sys.argv[1:], *said])
        raise InterruptedRunError(error.what, next=f"Go on with: {command}") from None
    if sampled.already_complete:
        session.reporter.message(f"{plan.out} is complete already, of the same model and settings: nothing to do")
    speed = f" ({sampled.img_per_s:,.1f} img/s)" if sampled.img_per_s is not None and sampled.num_now else ""
    session.result(
        asdict(sampled), [f"{sampled.num_images:,} images{speed}: {sampled.path}", f"contact sheet: {sampled.sheet}"]
    )
    session.next_step("brics", "eval", "--metric", "fid", "--fake", sampled.path)


def seed_range(*, num: int | None, seeds: str | None, seed: int | None) -> range:
    """The seeds that --n, --seeds and --seed ask for. Raises UsageError when they contradict each other."""
    if seeds is None:
        first = seed or 0
        return range(first, first + (num or DEFAULT_NUM))
    if seed is not None:
        raise UsageError("--seed and --seeds were both given", next="Give --seeds A-B, or --seed A with --n.")
    first_text, dash, last_text = seeds.partition("-")
    if not first_text.isdecimal() or (dash and not last_text.isdecimal()):
        raise UsageError(f"--seeds {seeds!r} is not a range", next="Example: --seeds 0-49999")
    wanted = range(int(first_text), int(last_text if dash else first_text) + 1)
    if not wanted:
        raise UsageError(f"--seeds {seeds} is empty: {wanted.start} is above {wanted.stop - 1}")
    if num is not None and num != len(wanted):
        raise UsageError(f"--n {num} and --seeds {seeds} ({len(wanted)} images) disagree", next="Give one of them.")
    return wanted
