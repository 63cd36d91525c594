"""`brics train-ae`: images -> encoder -> codes -> retrieval -> decoder -> loss -> run (DESIGN section 3.5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brics_cli.config import AutoencoderRecipe
from brics_cli.core.autoencoder import Autoencoder, save_autoencoder
from brics_cli.core.build import build_autoencoder
from brics_cli.core.device import resolve_device
from brics_cli.core.image_tensors import to_tensor, to_uint8
from brics_cli.core.losses import reconstruction_loss
from brics_cli.core.randomness import Stream, keyed_coins, keyed_normal
from brics_cli.data import contact_sheet
from brics_cli.distributed import refuse_many_processes
from brics_cli.metrics.reconstruction import psnr, ssim
from brics_cli.reporting import Reporter
from brics_cli.training.clock import Clock
from brics_cli.training.estimate import Estimate, estimate, loss_on_random_images
from brics_cli.training.images import Batch, TrainingImages
from brics_cli.training.plan import AutoencoderPlan
from brics_cli.training.precision import autocast
from brics_cli.training.run import Run, TrainResult, open_run
from brics_cli.training.signals import stop_signals
from brics_cli.training.state import TrainingState

SNAPSHOT_IMAGES = 12


def train_autoencoder(
    plan: AutoencoderPlan,
    *,
    device: str = "auto",
    num_workers: int | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> TrainResult:
    """Train to the recipe's last step, or until asked to stop.

    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges, ArtefactError
    when a checkpoint to resume or weights to start from cannot be read.
    """
    refuse_many_processes()
    on = resolve_device(device)
    recipe, schedule = plan.recipe, plan.recipe.training
    torch.manual_seed(schedule.seed)
    model = build_autoencoder(recipe.model).to(on).to(memory_format=torch.channels_last)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule)
    images, val_images, val_samples, order = plan.load_images(num_workers=num_workers, reporter=reporter)
    forward = torch.compile(model) if schedule.compile else model
    metrics: dict[str, float] = {}

    with (
        open_run(plan, state, device=on, overwrite=overwrite, reporter=reporter) as run,
        stop_signals() as stop,
        reporter.task("train-ae", total=schedule.steps, unit="step", initial=state.step) as task,
    ):
        batches = images.batches(order, start=state.images_seen, batch_size=schedule.batch_size)
        clock = Clock()
        while state.step < schedule.steps:
            with clock.waiting():
                inputs, noise = prepare(next(batches), recipe, step=state.step, device=on)

            # accumulate: the loss of a batch is the mean over its micro-batches
            terms: dict[str, float] = {}
            for pixels, code_noise in zip(
                inputs.chunk(schedule.accumulate), noise.chunk(schedule.accumulate), strict=True
            ):
                with autocast(schedule, on):
                    out = forward(pixels, noise=code_noise)
                losses = reconstruction_loss(recipe.loss, out.reconstructions, pixels)
                loss = sum(losses.values(), out.aux_loss.float())
                (loss / schedule.accumulate).backward()
                for name, value in {"loss": loss, **losses, **out.stats}.items():
                    terms[name] = terms.get(name, 0.0) + float(value.detach()) / schedule.accumulate

            # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
            update = state.update(terms["loss"])
            clock.step(schedule.batch_size)
            clock.warn_if_long(num_steps=schedule.steps - state.step, device=on, reporter=reporter)
            last = state.step == schedule.steps

            if state.step % schedule.log_every == 0 or last:
                metrics |= {f"train/{name}": value for name, value in terms.items()} | clock.lap()
                metrics |= {"train/grad_norm": update.grad_norm, "train/lr": update.lr}
                metrics |= {"train/skipped": float(state.num_skipped)}
                run.log(state.step, metrics)
            task.advance(note=_note(terms, metrics))
            if state.step % schedule.val_every == 0 or last:
                scores = validate_reconstructions(state.ema.model, val_images, val_samples, device=on)
                metrics |= scores
                run.log(state.step, scores)
            if state.step % schedule.snapshot_every == 0 or last:
                save_snapshot(state.ema.model, val_images, val_samples, run.image_path(state.step), device=on)
            if (state.step % schedule.checkpoint_every == 0 or last or stop.requested) and state.is_sound():
                publish_model(run, state, recipe, metrics=metrics)
                run.save_checkpoint(state)
                if stop.requested and not last:
                    raise run.interrupted(state, command="train-ae")
            elif last:
                raise state.diverged("the last losses or weights are not finite")
    if images.cached is None:  # read as it went, so failures are known only now
        images.warn_about_failures(reporter)
    return TrainResult(plan.artefact.path, state.step, metrics, num_failed=len(images.failures))


def estimate_training(plan: AutoencoderPlan, *, device: str = "auto") -> Estimate:
    """What the plan's run costs on this device, measured on random images."""
    on, recipe, schedule = resolve_device(device), plan.recipe, plan.recipe.training
    model = build_autoencoder(recipe.model).to(on).to(memory_format=torch.channels_last)
    num_images = schedule.batch_size // schedule.accumulate
    loss = loss_on_random_images(recipe, model, num_images=num_images, device=on)
    return estimate(model, loss, schedule=schedule)


def prepare(batch: Batch, recipe: AutoencoderRecipe, *, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """images (B, 3, S, S) in [-1, 1], mirrored by a coin each, and the codes' noise (B, C, h, w); keyed by sample."""
    seed = recipe.training.seed
    images = to_tensor(batch.images, device)
    if recipe.data.flip:
        coins = keyed_coins(seed, step=step, indices=batch.indices, stream=Stream.FLIP).to(device)
        images = torch.where(coins[:, None, None, None], images.flip(-1), images)
    noise = keyed_normal(
        seed, step=step, indices=batch.indices, shape=recipe.model.code_shape, stream=Stream.CODE_NOISE
    )
    return images.contiguous(memory_format=torch.channels_last), noise.to(device)


@torch.inference_mode()
def validate_reconstructions(
    model: Autoencoder, images: TrainingImages, samples: np.ndarray, *, device: torch.device, batch_size: int = 64
) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the reconstructions of `samples`, on uint8 as evaluation does."""
    scores: dict[str, list[np.ndarray]] = {"val/psnr": [], "val/ssim": []}
    for start in range(0, len(samples), batch_size):
        real = images.load(samples[start : start + batch_size].tolist())
        fake = to_uint8(model.decode(model.encode(to_tensor(real, device))))
        scores["val/psnr"].append(np.minimum(psnr(real, fake), 100.0))  # identical images would be infinite
        scores["val/ssim"].append(ssim(real, fake))
    return {name: float(np.concatenate(values).mean()) for name, values in scores.items()}


@torch.inference_mode()
def save_snapshot(
    model: Autoencoder, images: TrainingImages, samples: np.ndarray, path: Path, *, device: torch.device
) -> None:
    """A sheet of validation images above their reconstructions."""
    real = images.load(samples[:SNAPSHOT_IMAGES].tolist())
    fake = to_uint8(model.decode(model.encode(to_tensor(real, device))))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([list(real), list(fake)], path=path, row_labels=["originals", "reconstructions"])


def publish_model(
    run: Run, state: TrainingState[Autoencoder], recipe: AutoencoderRecipe, *, metrics: dict[str, float]
) -> None:
    """Write the average as the run's model, and say so in its provenance."""
    details: dict[str, Any] = {"transform": recipe.data.transform, "recipe": recipe.name, "step": state.step}
    sha256 = save_autoencoder(
        run.path / "model", config=recipe.model, state=state.ema.model.state_dict(), details=details
    )
    validated = (state.step % recipe.training.val_every == 0) or state.step == recipe.training.steps
    scores = {name: value for name, value in metrics.items() if name.startswith("val/") and validated}
    summary = f"{recipe.name}, step {state.step:,}" + (f", {scores['val/psnr']:.2f} dB" if scores else "")
    complete = state.step == recipe.training.steps
    run.publish(complete=complete, sha256=sha256, step=state.step, summary=summary, **scores)


def _note(terms: dict[str, float], metrics: dict[str, float]) -> str:
    note = f"loss {terms['loss']:.4f}"
    if "val/psnr" in metrics:
        note += f"  val {metrics['val/psnr']:.2f} dB"
    if "time/img_per_s" in metrics:
        note += f"  {metrics['time/img_per_s']:,.0f} img/s  waiting {metrics['time/waiting']:.0%}"
    return note
