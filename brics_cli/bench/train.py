"""`brics bench train`: what a step of `train-ae` costs on the device at hand, and where its time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from functools import partial

import numpy as np
import torch

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.losses import perceptual_distance
from brics_cli.bench.timing import Report, Table, device_name, peak_process_mib
from brics_cli.config import AutoencoderRecipe
from brics_cli.images import open_collection
from brics_cli.runtime.distributed import World, check_batch
from brics_cli.runtime.precision import training_arithmetic, training_precision
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.training.adversary import build_adversary
from brics_cli.training.images import Batch
from brics_cli.training.plan import open_images, order_of
from brics_cli.training.state import TrainingState
from brics_cli.training.step import Means, autoencoder_loss, batches_on_device, compiled, micro_batches
from brics_cli.training.terms import build_code_terms

WARMUP_STEPS = 3
RANDOM_BATCHES = 4


def bench_train(
    recipe: AutoencoderRecipe, *, device: torch.device, repeats: int, reporter: Reporter, data: str | None = None
) -> Report:
    """Time `repeats` steps of `recipe` on images of the collection `data`, or on random ones kept in memory.

    With the discriminator when the recipe has one, compiled when the recipe says so. The value holds the median over
    the steps, and the mean milliseconds of each of the phases, timed in further steps that wait for the device after
    each. `memory_gib` is the peak, of the device's memory on CUDA, of this process elsewhere.
    """
    check_batch(recipe.training.batch_size, accumulate=recipe.training.accumulate)
    torch.manual_seed(0)
    schedule, world = recipe.training, World(device=device)
    model = build_autoencoder(recipe.model).to(device).to(memory_format=torch.channels_last)
    adversary = build_adversary(recipe, model, world=world)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, adversary=adversary)
    distance = perceptual_distance(recipe.loss, device=device)
    forward = compiled(model, enabled=schedule.compile, adversary=adversary)
    code_terms = build_code_terms(recipe, model, world=world)
    losses = partial(autoencoder_loss, recipe, forward, distance=distance, adversary=adversary, code_terms=code_terms)
    batches = _random_batches(recipe) if data is None else _batches_of(data, recipe, reporter=reporter)
    prepared = batches_on_device(batches, recipe, first_step=0, world=world)

    precision = training_precision(schedule, device)

    def step(split: TimeSplit, *, wait: bool) -> None:
        with training_arithmetic(precision):
            computed_step(split, wait=wait)

    def computed_step(split: TimeSplit, *, wait: bool) -> None:
        def phase_ends() -> None:
            if wait and device.type == "cuda":
                torch.cuda.synchronize(device)

        terms = Means()
        with split.phase("data wait"):
            inputs, noise = next(prepared)
            phase_ends()
        if code_terms is not None:
            with split.phase("forward"):
                code_terms.prepare(inputs, step=state.step)
                phase_ends()
        for pixels, code_noise, _ in micro_batches(inputs, noise, num=schedule.accumulate):
            with split.phase("forward"):
                loss, _, reconstructions = losses(pixels, code_noise, step=state.step)
                phase_ends()
            with split.phase("backward"):
                (loss / schedule.accumulate).backward()
                phase_ends()
            terms.add({"loss": loss})
            if adversary is not None:
                with split.phase("discriminator"):
                    adversary.learn(pixels, reconstructions, step=state.step)
                    phase_ends()
        with split.phase("optimiser"):
            state.update(terms.mean("loss", world))
            if adversary is not None:
                adversary.update(step=state.step - 1)
            phase_ends()

    for _ in range(WARMUP_STEPS):
        step(TimeSplit(), wait=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [_seconds(lambda: step(TimeSplit(), wait=False), device) for _ in range(repeats)]
    split = TimeSplit()
    total = sum(_seconds(lambda: step(split, wait=True), device) for _ in range(repeats))
    prepared.close()
    batches.close()
    phases = {name: 1000 * each / repeats for name, each in split.seconds.items()}
    phases["rest"] = 1000 * (total - sum(split.seconds.values())) / repeats
    ms_per_step = 1000 * statistics.median(seconds)
    on_cuda = device.type == "cuda"
    value = {
        "recipe": recipe.name,
        "compile": schedule.compile,
        "precision": precision,
        "gan_weight": recipe.gan.weight,
        "device": device_name(device),
        "batch_size": schedule.batch_size,
        "ms_per_step": ms_per_step,
        "img_per_s": 1000 * schedule.batch_size / ms_per_step,
        "phases_ms": phases,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_cuda else peak_process_mib() / 2**10,
        "memory_of": "the device" if on_cuda else "this process",
    }
    settings = [precision, "compiled" if schedule.compile else "not compiled"]
    settings += [f"GAN {recipe.gan.loss}"] if recipe.gan.weight else []
    title = f"{recipe.name}, batch {schedule.batch_size}, {', '.join(settings)}, on {value['device']}"
    table = Table(title, ["phase of a step", "ms", "share"])
    for phase, milliseconds in phases.items():
        table.rows.append([phase, f"{milliseconds:.1f}", f"{milliseconds / sum(phases.values()):.0%}"])
    speed = f"{value['img_per_s']:,.1f} img/s, {ms_per_step:.1f} ms per step (median of {repeats})"
    return Report(value, [table, speed, f"peak memory of {value['memory_of']} {value['memory_gib']:.2f} GiB"])


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _random_batches(recipe: AutoencoderRecipe) -> Generator[Batch, None, None]:
    size, number = recipe.model.image_size, recipe.training.batch_size
    pool = np.random.default_rng(0).integers(0, 256, (RANDOM_BATCHES * number, size, size, 3), np.uint8)
    start = 0
    while True:
        samples = [(start + offset) % len(pool) for offset in range(number)]
        yield Batch(samples, pool[samples])
        start += number


def _batches_of(data: str, recipe: AutoencoderRecipe, *, reporter: Reporter) -> Generator[Batch, None, None]:
    collection = open_collection(data, labels="none", reporter=reporter)
    reporter.message(f"{collection.path}: {collection.describe()}")
    images = open_images(recipe, collection, reporter=reporter)
    shards, _ = images.split(val_fraction=None)
    order = order_of(images, shards, recipe)
    return images.batches(order, start=0, batch_size=recipe.training.batch_size)
