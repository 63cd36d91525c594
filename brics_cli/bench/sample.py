"""`brics bench sample`: seconds and GFLOP of an image by sampler and steps, and images per second by batch size.

GFLOP are torch's count (2 per multiply-add) on meta tensors: one estimate of the codes as samplers make it, with its
guidance, times the estimates of a sampler, and one decoding. Seconds are those of `brics sample` up to the pixels in
memory: noise drawn per image, codes decoded to uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.flops import gflop_of
from brics_cli.bench.timing import Report, Table, device_name, median_seconds, peak_bytes
from brics_cli.config import AutoencoderRecipe, DiffusionRecipe, list_recipes, load_recipe
from brics_cli.config.names import Precision
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.normalisation import NUM_LEVELS
from brics_cli.diffusion.samplers import SAMPLERS, SamplerSettings, estimate
from brics_cli.errors import UsageError
from brics_cli.runtime.device import place
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.engine import OutOfMemory, attempt
from brics_cli.sampling.models import Models, load_models
from brics_cli.workspace import Workspace

DEFAULT_AE_RECIPE = "brics-256"
RELEASE_GFLOP = 301_000.0
"""The authors' release as counted for it: 1000 ancestral steps of its U-Net at 64 x 64 x 4, 301 GFLOP each."""
RELEASE_STEPS = 1000
TARGET_GFLOP, TARGET_IMAGE_SIZE = 1000.0, 256
"""What an image of 256 px shall cost at most."""
EVEN = [[1] * NUM_LEVELS]
"""A channel whose codes are spread evenly."""
BATCH_SIZES = {"cuda": 64, "cpu": 4}
"""Images per batch on CUDA, and elsewhere, unless told otherwise."""
SHORT_STEPS = 2
"""Steps of the walk that tells how long an estimate takes."""


def bench_sample(
    run: Path | None = None,
    *,
    recipe: str | None = None,
    ae_recipe: str | None = None,
    overrides: Sequence[str] = (),
    samplers: Sequence[str] = (),
    steps: Sequence[int] = (),
    guidance: float = 1.0,
    guide: str | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    repeats: int = 3,
    budget_s: float = 20.0,
    device: torch.device,
    workspace: Workspace,
    reporter: Reporter,
) -> Report:
    """Time and count sampling from `run` (None: the newest in `workspace`), or from `recipe` with random weights.

    Raises UsageError for options that do not go together, an unknown sampler, or guidance that the model cannot have;
    ArtefactError for a guide that does not fit.
    """
    for name in samplers or SAMPLERS:
        SamplerSettings(sampler=name, guidance=guidance)
    if recipe is None and (ae_recipe is not None or overrides):
        raise UsageError("--ae-recipe and --set go with --recipe", next="Example: --recipe brics-dit-b")
    if recipe is not None and run is not None:
        raise UsageError("a RUN and --recipe were both given", next="Give one of them.")
    if recipe is not None:
        ae_recipe = ae_recipe or (recipe if recipe in list_recipes("autoencoder") else DEFAULT_AE_RECIPE)
        models = random_models(
            recipe, ae_recipe=ae_recipe, guide_recipe=guide, guidance=guidance, overrides=overrides, device=device
        )
        name = f"{recipe} and {ae_recipe}, random weights"
    else:
        path = workspace.resolve("diffusion", run, argument="RUN", reporter=reporter)
        weaker = None if guide is None else Path(guide)
        models = load_models(path, guidance=guidance, workspace=workspace, device=device, guide=weaker)
        name = str(path)
    models.precision = precision_on(device, precision)
    found = measure(
        models,
        samplers=list(dict.fromkeys(samplers or SAMPLERS)),
        steps=sorted(set(steps)),
        batch_size=batch_size or BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"]),
        repeats=repeats,
        budget_s=budget_s,
        reporter=reporter,
    )
    guided = "" if guidance == 1.0 else f", guidance {guidance:g}" + (f" by {guide}" if guide else " by classes")
    value = {"model": name, "guidance": guidance, "guide": guide, **found}
    return Report(value, _shown(found, name + guided))


def measure(
    models: Models,
    *,
    samplers: Sequence[str],
    steps: Sequence[int],
    batch_size: int,
    repeats: int,
    budget_s: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Each of `samplers` with each number of `steps` (none: its default, and one for comparison).

    `costs`: an image from one sampler is `num_evaluations` estimates of its codes, and one decoding; `of_release` is
    the share of the release's GFLOP. A figure takes about `budget_s` seconds at most: where two walks take longer than
    that, it is scaled from a shorter one, and not `timed_in_full`. `speeds`: images per second of the first sampler in
    batches of 1, of a quarter of `batch_size`, of `batch_size`, and of four times as many, None where memory ran out;
    peak memory is of CUDA devices alone, above the models'.
    """
    denoiser, autoencoder = models.denoiser, models.autoencoder
    device = denoiser.mean.device

    def walk(sampler: str, num_steps: int, size: int) -> Callable[[], torch.Tensor]:
        """From seeds to the codes of `size` images."""
        settings = replace(models.settings, sampler=sampler, steps=num_steps)
        walking = replace(models, settings=settings)
        return lambda: walking.compute(range(size))[0]

    def seconds(work: Callable[[], object]) -> float:
        return median_seconds(work, device=device, repeats=repeats, warmup=1, budget_s=budget_s)

    def seconds_to_estimate(sampler: str, size: int) -> float:
        """One estimate of `size` images, as part of a walk of SHORT_STEPS."""
        evaluations = SamplerSettings(sampler=sampler, steps=SHORT_STEPS).num_evaluations
        return seconds(walk(sampler, SHORT_STEPS, size)) / evaluations

    def seconds_to_decode(size: int) -> float:
        """From codes to the pixels of `size` images, in the memory of the machine."""
        codes = torch.full((size, *denoiser.code_shape), 0.5, device=device)
        return seconds(lambda: models.pixels(codes))

    def speed(settings: SamplerSettings, size: int) -> dict[str, Any]:
        """Images per second in batches of `size`, scaled from a short walk."""
        batch_s = settings.num_evaluations * seconds_to_estimate(settings.sampler, size) + seconds_to_decode(size)
        compute = walk(settings.sampler, 1, size)
        peak = peak_bytes(lambda: models.pixels(compute()), device=device)
        peak_mib = None if peak is None else peak / 2**20
        return {"batch_size": size, "img_per_s": size / batch_s, "peak_memory_mib": peak_mib}

    evaluation_gflop = estimate_gflop(denoiser, guide=models.guide, guidance=models.settings.guidance)
    decoder_gflop = decoding_gflop(autoencoder)
    reporter.message(f"timing {', '.join(samplers)} in batches of {batch_size}")
    decoding_s = seconds_to_decode(batch_size)
    costs = []
    for name in samplers:
        estimate_s = seconds_to_estimate(name, batch_size)
        for number in sorted(steps or {SAMPLERS[name].default_steps, SAMPLERS[name].compared_steps}):
            evaluations = SamplerSettings(sampler=name, steps=number).num_evaluations
            walk_s = evaluations * estimate_s
            in_full = 2 * walk_s <= budget_s
            if in_full:
                walk_s = seconds(walk(name, number, batch_size))
            gflop = evaluations * evaluation_gflop + decoder_gflop
            costs.append({
                "sampler": name,
                "steps": number,
                "num_evaluations": evaluations,
                "gflop": gflop,
                "of_release": gflop / RELEASE_GFLOP,
                "decoder_share_of_gflop": decoder_gflop / gflop,
                "s_per_img": (walk_s + decoding_s) / batch_size,
                "decoder_share_of_time": decoding_s / (walk_s + decoding_s),
                "timed_in_full": in_full,
            })  # fmt: skip
    settings = SamplerSettings(sampler=samplers[0], steps=steps[0] if steps else None)
    speeds: list[dict[str, Any]] = []
    for size in sorted({1, max(1, batch_size // 4), batch_size, 4 * batch_size}):
        measured = attempt(partial(speed, settings, size), device=device)
        if isinstance(measured, OutOfMemory):
            speeds.append({"batch_size": size, "img_per_s": None, "peak_memory_mib": None})
            break
        speeds.append(measured)
    return {
        "device": device_name(device),
        "image_size": autoencoder.config.image_size,
        "code_shape": list(denoiser.code_shape),
        "batch_size": batch_size,
        "precision": models.precision,
        "evaluation_gflop": evaluation_gflop,
        "decoder_gflop": decoder_gflop,
        "costs": costs,
        "speeds_sampler": settings.sampler,
        "speeds_steps": settings.num_steps,
        "speeds": speeds,
    }


def _shown(found: dict[str, Any], name: str) -> list[Table | str]:
    shape = " x ".join(str(side) for side in found["code_shape"])
    title = (
        f"{name}, codes {shape}, {found['image_size']} px, {found['precision']}, batch {found['batch_size']}, "
        f"on {found['device']}: {found['evaluation_gflop']:,.4g} GFLOP per evaluation, "
        f"{found['decoder_gflop']:,.4g} to decode"
    )
    columns = ["sampler", "steps", "evaluations", "GFLOP/img", "of the release", "decoder's GFLOP", "s/img"]
    table = Table(title, [*columns, "decoder's time"])
    for cost in found["costs"]:
        share = cost["of_release"]
        table.rows.append([
            cost["sampler"],
            f"{cost['steps']:,}",
            f"{cost['num_evaluations']:,}",
            _figure(cost["gflop"]),
            f"1/{1 / share:,.0f}" if share < 0.5 else f"{share:.2f}",
            f"{cost['decoder_share_of_gflop']:.1%}",
            ("" if cost["timed_in_full"] else "~") + _figure(cost["s_per_img"]),
            f"{cost['decoder_share_of_time']:.1%}",
        ])  # fmt: skip
    release = ["the release", f"{RELEASE_STEPS:,}", f"{RELEASE_STEPS:,}", f"{RELEASE_GFLOP:,.0f}", "1", "", "", ""]
    table.rows.append(release)
    has_peak = any(speed["peak_memory_mib"] is not None for speed in found["speeds"])
    title = f"{found['speeds_sampler']}, {found['speeds_steps']} steps"
    speeds = Table(title, ["images per batch", "img/s", *(["peak MiB"] if has_peak else [])])
    for speed in found["speeds"]:
        img_per_s, peak = speed["img_per_s"], speed["peak_memory_mib"]
        cells = [f"{speed['batch_size']:,}", "out of memory" if img_per_s is None else _figure(img_per_s)]
        speeds.rows.append([*cells, *([] if peak is None else [f"{peak:,.0f}"])])
    lines = [
        "the release: 301 GFLOP for each of 1000 ancestral steps at 64 x 64 x 4, a count for the authors' release, "
        "without its decoder"
    ]
    if found["image_size"] == TARGET_IMAGE_SIZE:
        within, beyond = (
            [f"{cost['sampler']} {cost['steps']}" for cost in found["costs"] if (cost["gflop"] > TARGET_GFLOP) is above]
            for above in (False, True)
        )
        lines.append(f"at most 1 TFLOP per image: {', '.join(within) or 'none'}; more: {', '.join(beyond) or 'none'}")
    return [table, *lines, speeds]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def estimate_gflop(denoiser: Denoiser, *, guide: Denoiser | None = None, guidance: float = 1.0) -> float:
    """GFLOP of one estimate of one image's codes: of all the networks that guidance takes."""
    main, weaker = _on_meta(denoiser), None if guide is None else _on_meta(guide)
    x_t, log_snr = torch.empty(1, *denoiser.code_shape, device="meta"), torch.empty(1, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta") if denoiser.num_classes else None
    return gflop_of(lambda: estimate(main, x_t, log_snr, guidance=guidance, guide=weaker, labels=labels))


def decoding_gflop(autoencoder: Autoencoder) -> float:
    """GFLOP from the codes of one image to its pixels."""
    with torch.device("meta"):
        twin = build_autoencoder(autoencoder.config).eval()
        codes = torch.empty(1, *autoencoder.config.code_shape)
    return gflop_of(lambda: twin.decode(codes))


def _on_meta(denoiser: Denoiser) -> Denoiser:
    """A denoiser of the same shapes on the meta device, which computes shapes and no values."""
    num_channels = denoiser.code_shape[0]
    with torch.device("meta"):
        return build_denoiser(
            denoiser.config,
            denoiser.diffusion,
            code_shape=denoiser.code_shape,
            num_classes=denoiser.num_classes,
            store_mean=[0.5] * num_channels,
            store_std=[0.25] * num_channels,
            store_histogram=EVEN * num_channels,
            code_kind=denoiser.code_kind,
        ).eval()


def random_models(
    recipe: str,
    *,
    ae_recipe: str,
    guide_recipe: str | None = None,
    guidance: float = 1.0,
    overrides: Sequence[str] = (),
    device: torch.device,
) -> Models:
    """The denoiser of `recipe` (with `overrides`) for the codes of `ae_recipe`, that autoencoder, and a guide: random
    weights cost what trained ones cost.

    Raises UsageError for a recipe that does not exist, or a denoiser that does not fit the codes.
    """
    loaded = load_recipe(ae_recipe, kind="autoencoder")
    assert isinstance(loaded, AutoencoderRecipe)
    torch.manual_seed(0)
    autoencoder = place(build_autoencoder(loaded.model), device).eval().requires_grad_(False)
    denoiser = _random_denoiser(recipe, loaded, overrides=overrides)
    guide = None if guide_recipe is None else _random_denoiser(guide_recipe, loaded)
    return Models(denoiser, autoencoder, SamplerSettings(guidance=guidance), guide).to(device)


def _random_denoiser(recipe: str, of: AutoencoderRecipe, *, overrides: Sequence[str] = ()) -> Denoiser:
    loaded = load_recipe(recipe, kind="diffusion", overrides=overrides)
    assert isinstance(loaded, DiffusionRecipe)
    num_channels = of.model.code_channels
    denoiser = build_denoiser(
        loaded.denoiser,
        loaded.diffusion,
        code_shape=of.model.code_shape,
        store_mean=[0.5] * num_channels,
        store_std=[0.25] * num_channels,
        store_histogram=EVEN * num_channels,
        code_kind=of.model.code_kind,
    )
    denoiser.path = Path(loaded.name)
    return denoiser.eval().requires_grad_(False)
