"""`brics bench sample`: what a sampled image costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.diffusion.samplers import SAMPLER_NAMES, SAMPLERS, SamplerSettings
from brics_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType

    from brics_cli.autoencoder.autoencoder import Autoencoder
    from brics_cli.bench.sample import SampleCosts
    from brics_cli.diffusion.denoisers import Denoiser

DEFAULT_AE_RECIPE = "brics-256"
CUDA_BATCH_SIZE, OTHER_BATCH_SIZE = 64, 4


def sample(
    model: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A diffusion run. Default: the newest in the workspace.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|PATH", help="A diffusion recipe with random weights instead of a run."),
    ] = None,
    ae_recipe: Annotated[
        str | None,
        typer.Option(
            "--ae-recipe",
            metavar="NAME|PATH",
            help=f"Its autoencoder, random too. Default: the recipe of the same name, or {DEFAULT_AE_RECIPE}.",
        ),
    ] = None,
    overrides: options.Set = None,
    samplers: Annotated[
        list[str] | None,
        typer.Option("--sampler", metavar="NAME", help=f"{SAMPLER_NAMES}. Repeatable. Default: all."),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="Repeatable. Default: each sampler's own, and a figure beside it."),
    ] = None,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Scale of guidance, by classes or by --guide; 1 is none.")
    ] = 1.0,
    guide: Annotated[
        str | None,
        typer.Option("--guide", metavar="RUN|RECIPE", help="Autoguidance: a weaker run or, with --recipe, a recipe."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help=f"Images per batch. Default: {CUDA_BATCH_SIZE} on CUDA, else {OTHER_BATCH_SIZE}.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; the median is reported.")] = 3,
    budget: Annotated[
        float,
        typer.Option("--budget", min=0, help="Seconds per figure, after which it is scaled from a shorter walk (~)."),
    ] = 20.0,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """What an image costs: seconds and GFLOP of each sampler and step count, the decoder's share, img/s by batch size.

    GFLOP are counted, 2 per multiply-add, and stand beside the 301 TFLOP counted for the authors' release. Seconds are
    those of `brics sample` without its writing.
    """
    from brics_cli.bench.sample import bench_sample
    from brics_cli.runtime.device import resolve_device

    SamplerSettings(guidance=guidance)
    for name in samplers or []:
        SamplerSettings(sampler=name)
    if recipe is None and (ae_recipe is not None or overrides):
        raise UsageError("--ae-recipe and --set go with --recipe", next="Example: --recipe brics-dit-b")
    if recipe is not None and model is not None:
        raise UsageError("a RUN and --recipe were both given", next="Give one of them.")
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    on = resolve_device(device)
    if recipe is not None:
        name, denoiser, autoencoder, weaker = _of_recipes(recipe, ae_recipe, guide, overrides or [], on)
    else:
        run = model if model is not None else session.resolve("diffusion", argument="RUN").path
        name, denoiser, autoencoder, weaker = _of_run(run, guide, guidance, session, on)
    found = bench_sample(
        denoiser,
        autoencoder,
        guide=weaker,
        guidance=guidance,
        samplers=list(dict.fromkeys(samplers or SAMPLERS)),
        steps=sorted(set(steps or ())),
        batch_size=batch_size or (CUDA_BATCH_SIZE if on.type == "cuda" else OTHER_BATCH_SIZE),
        repeats=repeats,
        budget_s=budget,
        reporter=session.reporter,
    )
    guided = "" if guidance == 1.0 else f", guidance {guidance:g}" + (f" by {guide}" if guide else " by classes")
    session.result({"model": name, "guidance": guidance, "guide": guide, **asdict(found)}, _text(found, name + guided))


def _of_recipes(
    recipe: str, ae_recipe: str | None, guide: str | None, overrides: list[str], device: torch.device
) -> tuple[str, Denoiser, Autoencoder, Denoiser | None]:
    from brics_cli.bench.sample_models import random_models
    from brics_cli.config import list_recipes

    ae_recipe = ae_recipe or (recipe if recipe in list_recipes("autoencoder") else DEFAULT_AE_RECIPE)
    models = random_models(recipe, ae_recipe=ae_recipe, guide_recipe=guide, overrides=overrides, device=device)
    return f"{recipe} and {ae_recipe}, random weights", models.denoiser, models.autoencoder, models.guide


def _of_run(
    run: Path, guide: str | None, guidance: float, session: Session, device: torch.device
) -> tuple[str, Denoiser, Autoencoder, Denoiser | None]:
    from brics_cli.sampling.models import load_models

    models = load_models(
        run,
        guidance=guidance,
        workspace=session.workspace,
        device=device,
        guide=None if guide is None else Path(guide),
    )
    return str(run), models.denoiser, models.autoencoder, models.guide


def _text(found: SampleCosts, name: str) -> list[RenderableType]:
    from brics_cli.bench.sample import RELEASE_GFLOP, RELEASE_STEPS, TARGET_GFLOP, TARGET_IMAGE_SIZE

    shape = " x ".join(str(side) for side in found.code_shape)
    title = (
        f"{name}, codes {shape}, {found.image_size} px, fp32, batch {found.batch_size}, on {found.device}: "
        f"{found.evaluation_gflop:,.4g} GFLOP per evaluation, {found.decoder_gflop:,.4g} to decode"
    )
    table = plain_table(
        "sampler", "steps", "evaluations", "GFLOP/img", "of the release", "decoder's GFLOP", "s/img", "decoder's time",
        title=title,
    )  # fmt: skip
    for cost in found.costs:
        table.add_row(
            cost.sampler,
            f"{cost.steps:,}",
            f"{cost.num_evaluations:,}",
            _figure(cost.gflop),
            f"1/{1 / cost.of_release:,.0f}" if cost.of_release < 0.5 else f"{cost.of_release:.2f}",
            f"{cost.decoder_share_of_gflop:.1%}",
            ("" if cost.timed_in_full else "~") + _figure(cost.s_per_img),
            f"{cost.decoder_share_of_time:.1%}",
        )
    table.add_row("the release", f"{RELEASE_STEPS:,}", f"{RELEASE_STEPS:,}", f"{RELEASE_GFLOP:,.0f}", "1", "", "", "")
    speeds = plain_table("images per batch", "img/s", title=f"{found.speeds_sampler}, {found.speeds_steps} steps")
    if any(speed.peak_memory_mib is not None for speed in found.speeds):
        speeds.add_column("peak MiB", justify="right")
    for speed in found.speeds:
        img_per_s = "out of memory" if speed.img_per_s is None else _figure(speed.img_per_s)
        peak = [] if speed.peak_memory_mib is None else [f"{speed.peak_memory_mib:,.0f}"]
        speeds.add_row(f"{speed.batch_size:,}", img_per_s, *peak)
    lines = [
        "the release: 301 GFLOP for each of 1000 ancestral steps at 64 x 64 x 4, a count for the authors' release, "
        "without its decoder"
    ]
    if found.image_size == TARGET_IMAGE_SIZE:
        within = [f"{cost.sampler} {cost.steps}" for cost in found.costs if cost.gflop <= TARGET_GFLOP]
        beyond = [f"{cost.sampler} {cost.steps}" for cost in found.costs if cost.gflop > TARGET_GFLOP]
        lines.append(f"at most 1 TFLOP per image: {', '.join(within) or 'none'}; more: {', '.join(beyond) or 'none'}")
    return [table, *lines, speeds]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
