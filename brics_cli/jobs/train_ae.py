"""`brics train-ae`: images -> encoder -> codes -> retrieval -> decoder -> loss -> run (DESIGN section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import (
    Autoencoder,
    of_uint8,
    pixels_on,
    rounded,
    save_autoencoder,
    to_tensor,
    to_uint8,
)
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.losses import perceptual_distance
from brics_cli.config import AutoencoderRecipe
from brics_cli.config.names import Precision
from brics_cli.config.terms import TermsConfig
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.evaluation.reconstruction import scores_on_device, ssim
from brics_cli.images import contact_sheet
from brics_cli.runtime.distributed import World, join_world
from brics_cli.runtime.precision import computing, scoring_precision, training_arithmetic, training_precision
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.stopping import StopRequest
from brics_cli.training.adversary import build_adversary
from brics_cli.training.images import TrainingImages
from brics_cli.training.loop import TrainResult, open_loop
from brics_cli.training.plan import AutoencoderPlan
from brics_cli.training.state import TrainingState
from brics_cli.training.step import Means, autoencoder_loss, batches_on_device, compiled, micro_batches
from brics_cli.training.terms import build_code_terms

SNAPSHOT_IMAGES = 12


def train_autoencoder(
    plan: AutoencoderPlan,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> TrainResult:
    """Train to the recipe's last step, or until asked to stop.

    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges, ArtefactError
    when a checkpoint to resume or weights to start from cannot be read.
    """
    recipe, schedule = plan.recipe, plan.recipe.training
    with join_world(plan.device) as world:
        torch.manual_seed(schedule.seed)
        model = build_autoencoder(recipe.model).to(world.device).to(memory_format=torch.channels_last)
        model.encoder.requires_grad_(not schedule.freeze_encoder)
        adversary = build_adversary(recipe, model, world=world)
        state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, adversary=adversary)
        average, scored_in = state.ema.model, scoring_precision(schedule, world.device)
        code_terms = build_code_terms(recipe, model, world=world)
        distance = perceptual_distance(recipe.loss, device=world.device)
        images, val_images, val_samples, order = plan.load_images(
            num_workers=num_workers, world=world, reporter=reporter
        )
        with (
            open_loop(plan, state, world=world, overwrite=overwrite, reporter=reporter) as loop,
            closing(
                images.batches(order, start=state.images_seen, batch_size=schedule.batch_size, world=world)
            ) as batches,
            closing(batches_on_device(batches, recipe, first_step=state.step, world=world)) as inputs,
            training_arithmetic(training_precision(schedule, world.device), same_shapes=not recipe.terms.transform),
        ):
            forward = compiled(world.replicate(model), enabled=schedule.compile, adversary=adversary)
            losses = partial(
                autoencoder_loss, recipe, forward, distance=distance, adversary=adversary, code_terms=code_terms
            )
            on_average = (average, val_images, val_samples)
            score = partial(validate, *on_average, precision=scored_in, world=world, stop=loop.stop, reporter=reporter)
            draw = partial(draw_reconstructions, *on_average, precision=scored_in, device=world.device)
            save = partial(save_average, state, recipe)

            while (step := state.step) < schedule.steps:
                with loop.times.phase("waiting"):
                    whole, noise = next(inputs)

                with loop.times.phase("compute"):
                    # accumulate: the loss of a batch is the mean over its micro-batches, in all processes
                    means = Means()
                    if code_terms is not None:
                        code_terms.prepare(whole, step=step)
                    for pixels, code_noise, is_last in micro_batches(whole, noise, num=schedule.accumulate):
                        with world.averaging(forward, now=is_last):
                            loss, terms, reconstructions = losses(pixels, code_noise, step=step)
                            (loss / schedule.accumulate).backward()
                        means.add({"loss": loss, **terms})
                        if adversary is not None:
                            means.add(adversary.learn(pixels, reconstructions, step=step))

                    # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                    update = state.update(means.mean("loss", world))
                    of_adversary = {} if adversary is None else adversary.update(step=step)

                values = partial(training_values, means, of_adversary, world=world)
                loop.end_step(update, values=values, validate=score, snapshot=draw, save=save)
        # batches are closed, and with them the threads that add to the failures
        images.take_notes(world)
    if images.cached is None:  # read as it went, so failures are known only now
        images.warn_about_failures(reporter)
    return loop.result(data=plan.data, num_failed=len(images.failures))


def training_values(means: Means, of_adversary: Mapping[str, Tensor], *, world: World) -> dict[str, float]:
    """What a step's log line has of its losses and its discriminator; waits for the device."""
    values = means.result(world) | {name: float(value) for name, value in of_adversary.items()}
    return {f"train/{name}": value for name, value in values.items()}


@torch.inference_mode()
def validate(
    model: Autoencoder,
    images: TrainingImages,
    samples: np.ndarray,
    *,
    precision: Precision,
    world: World,
    stop: StopRequest,
    reporter: Reporter,
    batch_size: int = 64,
) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the reconstructions of `samples`, on uint8 as evaluation does, and what of the
    bottleneck's tables their codes use. On CUDA they are computed there, and read at the end. Each process scores its
    share; nothing, said so, when none can be read, and nothing once somebody asked to stop."""
    device, num, scores = world.device, 0, list[Tensor]()  # (2,) each: sums of PSNR and SSIM
    usage = model.bottleneck.usage_counter()
    mine = samples[world.rank :: world.size]
    for start in range(0, len(mine), batch_size):
        if stop.requested:
            break
        real = images.load(mine[start : start + batch_size].tolist())
        if not len(real):
            continue
        pixels = pixels_on(real, device)
        with computing(precision, device):
            codes = model.encode(of_uint8(pixels))
            fake = rounded(model.decode(codes))
        usage.add(codes)
        num += len(real)
        if device.type == "cuda":
            scores.append(torch.stack([each.sum() for each in scores_on_device(pixels, fake)]))
        else:
            made = fake.cpu().numpy()
            scores.append(torch.tensor([capped_psnr(real, made).sum(), ssim(real, made).sum()], dtype=torch.float64))
    if world.any(stop.requested):
        return {}
    sums = torch.stack(scores).sum(dim=0).tolist() if scores else [0.0, 0.0]
    num_scored, total_psnr, total_ssim = world.total([num, *sums])
    if not num_scored:
        reporter.warning(f"no validation score: none of the {len(samples):,} validation images can be read")
        return {}
    world.add_up(list(usage.counts.values()))
    used = {f"val/{name}": value for name, value in usage.result().items()}
    return {"val/psnr": total_psnr / num_scored, "val/ssim": total_ssim / num_scored} | used


@torch.inference_mode()
def draw_reconstructions(
    model: Autoencoder,
    images: TrainingImages,
    samples: np.ndarray,
    path: Path,
    *,
    precision: Precision,
    device: torch.device,
) -> dict[str, float]:
    """Write a sheet of validation images above their reconstructions; no scores."""
    real = images.load(samples[:SNAPSHOT_IMAGES].tolist())
    if len(real):
        with computing(precision, device):
            fake = to_uint8(model.decode(model.encode(to_tensor(real, device))))
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet([list(real), list(fake)], path=path, row_labels=["originals", "reconstructions"])
    return {}


def save_average(
    state: TrainingState[Autoencoder], recipe: AutoencoderRecipe, directory: Path, scores: dict[str, float]
) -> str:
    """Write the average as a model directory, with what it was trained to minimise; its sha256."""
    details: dict[str, Any] = {"transform": recipe.data.transform, "recipe": recipe.name, "step": state.step}
    details |= {"loss": recipe.loss.model_dump(mode="json"), "gan": recipe.gan.model_dump(mode="json"), **scores}
    if recipe.terms != TermsConfig():
        details["terms"] = recipe.terms.model_dump(mode="json")
    return save_autoencoder(directory, config=recipe.model, state=state.ema.model.state_dict(), details=details)
