"""`brics bench bottlenecks`: every bottleneck under the same encoder, decoder, losses and budget (DESIGN section 3.3).

The fair comparison is at equal cost: what a variant saves against the recipe's own from codes to pixels goes into the
hidden width of its feature MLP, so `none` gets an MLP that costs what retrieval and the grid's wider input cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.flops import count
from brics_cli.autoencoder.losses import perceptual_distance
from brics_cli.bench.bottleneck_results import Job, Trained, append_result, plot, read_results, summarise, table
from brics_cli.bench.bottleneck_scores import score
from brics_cli.bench.choices import DEFAULT_VARIANTS, VARIANTS
from brics_cli.bench.timing import Report, device_name
from brics_cli.config import DEFAULT_TRANSFORM, AutoencoderRecipe, load_recipe
from brics_cli.errors import UsageError
from brics_cli.images import apply_transform, open_collection
from brics_cli.images.photographs import photograph_crops, photograph_squares
from brics_cli.networks.perceptual import load_lpips
from brics_cli.networks.weights import find
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import Reporter
from brics_cli.training.holdout import hold_out_look_alikes
from brics_cli.training.images import Batch
from brics_cli.training.order import SampleOrder
from brics_cli.training.plan import open_images
from brics_cli.training.state import TrainingState
from brics_cli.training.step import autoencoder_loss, batches_on_device, compiled
from brics_cli.training.terms import build_code_terms
from brics_cli.workspace.naming import CURVES, form_of_output
from brics_cli.workspace.outputs import check_output

COST_TOLERANCE = 0.01
HOLD_OUT = 0.1
SQUARES_PER_BLOCK = 64
"""Training images of each block of the photographs."""


def jobs_of(
    variants: Sequence[str], *, noise: Sequence[float], seeds: Sequence[int], recipe: str, overrides: Sequence[str]
) -> list[Job]:
    """Every variant at every training noise, seed after seed. Without `noise`, the recipe's own.

    Raises UsageError for a name that is none of VARIANTS, or a setting that does not validate.
    """
    own = _load(recipe, overrides)
    levels = list(dict.fromkeys(noise)) or [getattr(own.model.bottleneck, "noise", 0.0)]
    jobs = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(variants):
            if name not in VARIANTS:
                raise UsageError(f"no bottleneck variant {name!r}", next=f"There are: {', '.join(VARIANTS)}.")
            takes_noise = hasattr(_load(recipe, [*overrides, *VARIANTS[name]]).model.bottleneck, "noise")
            jobs += [Job(name, level, seed) for level in (levels if takes_noise else [None])]
    return jobs


def recipe_of(job: Job, *, recipe: str, overrides: Sequence[str], steps: int | None) -> AutoencoderRecipe:
    """The recipe that `job` trains by, at its own cost. Raises UsageError for a setting that does not validate."""
    noise = [] if job.noise is None else [f"model.bottleneck.noise={job.noise}"]
    return _load(recipe, [*overrides, *VARIANTS[job.variant], *noise], training__steps=steps, training__seed=job.seed)


def _load(recipe: str, overrides: Sequence[str], **flags: int | None) -> AutoencoderRecipe:
    loaded = load_recipe(recipe, kind="autoencoder", overrides=overrides, **flags)
    assert isinstance(loaded, AutoencoderRecipe)
    return loaded


def at_cost(recipe: AutoencoderRecipe, gflop: float) -> AutoencoderRecipe:
    """`recipe` with the hidden width of its feature MLP chosen so that codes to pixels cost `gflop`, within 1%.

    Raises UsageError when no width does: a variant may cost more than that with the narrowest MLP.
    """

    def with_width(hidden_dim: int) -> AutoencoderRecipe:
        features = recipe.model.features.model_copy(update={"hidden_dim": hidden_dim})
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"features": features})})

    low, high = (count(with_width(width))[-1].gflop for width in (16, 1040))
    hidden_dim = max(8, round(16 + 1024 * (gflop - low) / (high - low)))
    matched = with_width(hidden_dim)
    cost = count(matched)[-1].gflop
    if abs(cost / gflop - 1) > COST_TOLERANCE:
        raise UsageError(
            f"bottleneck {recipe.model.bottleneck.kind} costs {cost:.4g} GFLOP from codes to pixels with a feature MLP "
            f"of {hidden_dim}, not {gflop:.4g}",
            next="Compare at each recipe's own cost: --own-cost.",
        )
    return matched


class HeldOut(NamedTuple):
    """A collection in memory, (N, S, S, 3) uint8, split into training and held-out images."""

    name: str
    train: np.ndarray
    val: np.ndarray


def load_split(
    data: str | None, val: str | None, *, recipe: AutoencoderRecipe, num_workers: int | None, reporter: Reporter
) -> HeldOut:
    """Decode `data`; without `val`, hold a tenth of it out: whole clusters of look-alikes.

    `data` None is `images.photographs`: squares of its training blocks, and crops of its held-out ones. Raises
    UsageError when a collection cannot be opened, or is larger than the recipe's `data.cache_gib`.
    """
    if data is None:
        if val is not None:
            raise UsageError("--val is for --data: the photographs have held-out images of their own")
        size = recipe.model.image_size
        train = np.stack(list(photograph_squares(size, num_per_block=SQUARES_PER_BLOCK)))  # (N, S, S, 3)
        crops = (Image.fromarray(crop.pixels) for crop in photograph_crops() if crop.held_out)
        return HeldOut(
            "photographs", train, np.stack([apply_transform(crop, DEFAULT_TRANSFORM, size) for crop in crops])
        )
    train, keys = _decode(data, recipe=recipe, num_workers=num_workers, reporter=reporter)
    if val is not None:
        held_out = _decode(val, recipe=recipe, num_workers=num_workers, reporter=reporter)[0]
        return HeldOut(data, train, held_out)
    chosen = hold_out_look_alikes(train, keys, fraction=HOLD_OUT)
    return HeldOut(data, np.delete(train, chosen, axis=0), train[chosen])


def _decode(
    data: str, *, recipe: AutoencoderRecipe, num_workers: int | None, reporter: Reporter
) -> tuple[np.ndarray, list[str]]:
    collection = open_collection(data, labels="none", reporter=reporter)
    images = open_images(recipe, collection, num_workers=num_workers, reporter=reporter)
    if images.cached is None:
        raise UsageError(
            f"{data} does not fit in {recipe.data.cache_gib:g} GiB, and every variant trains on it in turn",
            next="Give a smaller collection, or more memory: --set data.cache_gib=...",
        )
    usable = [sample for sample in range(len(images)) if sample not in images.failures]
    return images.cached[usable], [images.key(sample) for sample in usable]


def train(
    recipe: AutoencoderRecipe, images: np.ndarray, *, device: torch.device, reporter: Reporter, title: str
) -> tuple[Autoencoder, float]:
    """The averaged model after the recipe's steps on (N, S, S, 3) uint8 images, and images per second of training."""
    schedule = recipe.training
    torch.manual_seed(schedule.seed)
    model = build_autoencoder(recipe.model).to(device).to(memory_format=torch.channels_last)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule)
    order = SampleOrder([np.arange(len(images))], seed=schedule.seed)
    distance = perceptual_distance(recipe.loss, device=device)
    forward = compiled(model, enabled=schedule.compile)
    world = World(device=device)
    code_terms = build_code_terms(recipe, model, world=world)

    def batches() -> Iterator[Batch]:
        for step in range(schedule.steps + 1):  # one may be prepared ahead
            samples = order.batch(step * schedule.batch_size, schedule.batch_size)
            yield Batch(samples, images[samples])

    inputs = batches_on_device(batches(), recipe, first_step=0, world=world)
    start = time.perf_counter()
    with reporter.task(title, total=schedule.steps, unit="step") as task:
        while state.step < schedule.steps:
            pixels, noise = next(inputs)
            if code_terms is not None:
                code_terms.prepare(pixels, step=state.step)
            loss, *_ = autoencoder_loss(
                recipe,
                forward,
                pixels,
                noise,
                distance=distance,
                adversary=None,
                step=state.step,
                code_terms=code_terms,
            )
            loss.backward()
            update = state.update(loss.detach())
            task.advance(note=None if isinstance(update.loss, torch.Tensor) else f"loss {update.loss:.4f}")
    inputs.close()
    state.settle(update)
    return state.ema.model, schedule.steps * schedule.batch_size / (time.perf_counter() - start)


def bench_bottlenecks(
    variants: Sequence[str] = (),
    *,
    data: str | None = None,
    val: str | None = None,
    noise: Sequence[float] = (),
    seeds: Sequence[int] = (),
    recipe: str = "tiny",
    overrides: Sequence[str] = (),
    steps: int | None = None,
    equal_cost: bool = True,
    results: Path | None = None,
    plot_to: Path | None = None,
    overwrite: bool = False,
    device: torch.device,
    num_workers: int | None = None,
    reporter: Reporter,
) -> Report:
    """Train and score every job of `jobs_of`, one after the other, on the same images.

    `results` is a file of JSON lines that every finished row is appended to; rows that it holds are not repeated.
    `plot_to` is a picture of PSNR against the noise on the codes. Raises UsageError for settings that do not fit and
    WouldOverwriteError, before anything is read or trained, ArtefactError for a damaged results file.
    """
    if plot_to is not None:
        form_of_output(plot_to, CURVES, option="--plot")
        check_output(plot_to, overwrite=overwrite, what="the plot", flag="--plot")
    jobs = jobs_of(variants or DEFAULT_VARIANTS, noise=noise, seeds=seeds or [0], recipe=recipe, overrides=overrides)
    done = read_results(results) if results is not None else []
    recipes = {}
    reference = _load(recipe, overrides)
    gflop = count(reference)[-1].gflop
    for job in jobs:
        own = recipe_of(job, recipe=recipe, overrides=overrides, steps=steps)
        recipes[job] = at_cost(own, gflop) if equal_cost else own
        build_autoencoder(recipes[job].model)  # a missing extra is said now, not hours later
    split = load_split(data, val, recipe=reference, num_workers=num_workers, reporter=reporter)
    reporter.message(f"{split.name}: {len(split.train):,} images to train on, {len(split.val):,} held out")
    backbone = find("alexnet")
    lpips = None if backbone is None else load_lpips(backbone.path, net="alex", device=device)
    rows = []
    for job, wanted in recipes.items():
        row = next((row for row in done if row.is_of(job, wanted, data=split.name)), None)
        if row is None:
            title = f"{job.variant}, seed {job.seed}"
            model, img_per_s = train(wanted, split.train, device=device, reporter=reporter, title=title)
            scores = score(model, split.val, device=device, lpips=lpips)
            cost = count(wanted)[-1]
            row = Trained(
                job=job,
                data=split.name,
                num_train=len(split.train),
                num_val=len(split.val),
                recipe=wanted.model_dump(mode="json"),
                gflop=cost.gflop,
                params_m=cost.params_m,
                bits_per_pixel=wanted.model.bits_per_pixel,
                img_per_s=img_per_s,
                device=device_name(device),
                scores=scores,
            )
            if results is not None:
                append_result(results, row)
        rows.append(row)
    summaries, first = summarise(rows), rows[0]
    num_steps = first.recipe["training"]["steps"]
    title = f"{recipe}, {num_steps:,} steps, {first.num_val:,} held-out images of {first.data}, on {first.device}"
    if plot_to is not None:
        plot(summaries, plot_to, title=title)
        reporter.message(f"plot: {plot_to}")
    return Report({"rows": [asdict(row) for row in rows]}, [table(summaries, title=title)])
