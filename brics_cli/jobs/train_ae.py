"""`brics train-ae`: images -> encoder -> codes -> retrieval -> decoder -> loss -> run (DESIGN section 3.5)."""

from __future__ import annotations

import math
from datetime import timedelta
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
from brics_cli.core.model_files import read_model_config
from brics_cli.core.randomness import Stream, keyed_coins, keyed_normal
from brics_cli.data import contact_sheet
from brics_cli.distributed import refuse_many_processes
from brics_cli.errors import InterruptedRunError
from brics_cli.metrics.reconstruction import psnr, ssim
from brics_cli.reporting import Reporter
from brics_cli.training.clock import Clock
from brics_cli.training.images import Batch, TrainingImages
from brics_cli.training.plan import AutoencoderPlan
from brics_cli.training.run import Run, TrainResult, latest_checkpoint
from brics_cli.training.signals import stop_signals
from brics_cli.training.state import TrainingState

KIND = "autoencoder"
SNAPSHOT_IMAGES = 12
VALIDATION_IMAGES = 2048
EXPECTATION_AFTER_STEPS = 5


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
    device = resolve_device(device)
    recipe, schedule = plan.recipe, plan.recipe.training
    torch.manual_seed(schedule.seed)
    model = build_autoencoder(recipe.model).to(device, memory_format=torch.channels_last)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule)
    images, val_images, val_samples, order = plan.load_images(num_workers=num_workers, reporter=reporter)

    with Run.locked(plan.artefact.path):
        if plan.resume:
            run = Run(plan.artefact, keep_checkpoints=schedule.keep_checkpoints)
            state.load(latest_checkpoint(run.path))
            run.forget_after(state.step)
            reporter.message(f"resuming {run.path} at step {state.step:,}")
        else:
            if plan.init_from is not None:
                state.start_from(read_model_config(plan.init_from, kind=KIND)[1])
            run = Run.create(plan.artefact, recipe=recipe, device=device, overwrite=overwrite)
        reporter.message(f"run: {run.path}")
        forward = torch.compile(model) if schedule.compile else model
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=schedule.precision == "bf16" and device.type == "cuda"
        )
        batches = images.batches(order, start=state.images_seen, batch_size=schedule.batch_size)
        clock, lap_images, metrics, skipped_before = Clock(), 0, dict[str, float](), state.num_skipped

        with (
            stop_signals() as stop,
            reporter.task("train-ae", total=schedule.steps, unit="step", initial=state.step) as task,
        ):
            while state.step < schedule.steps:
                with clock.phase("wait"):
                    batch = next(batches)
                    inputs, noise = prepare(batch, recipe, step=state.step, device=device)

                # accumulate: the loss of the batch is the mean over its micro-batches
                terms: dict[str, float] = {}
                for pixels, code_noise in zip(
                    inputs.chunk(schedule.accumulate), noise.chunk(schedule.accumulate), strict=True
                ):
                    with autocast:
                        out = forward(pixels, noise=code_noise)
                    losses = reconstruction_loss(recipe.loss, out.reconstructions, pixels)
                    loss = (sum(losses.values(), out.aux_loss.float())) / schedule.accumulate
                    loss.backward()
                    for name, value in {"loss": loss * schedule.accumulate, **losses, **out.stats}.items():
                        terms[name] = terms.get(name, 0.0) + float(value.detach()) / schedule.accumulate

                # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                update = state.update(terms["loss"])
                lap_images += schedule.batch_size
                if state.step - skipped_before == EXPECTATION_AFTER_STEPS and not plan.resume:
                    _say_what_to_expect(device, clock, schedule.steps, reporter)

                last = state.step == schedule.steps or stop.requested
                if state.step % schedule.log_every == 0 or last:
                    lap = clock.lap()
                    metrics |= {f"train/{name}": value for name, value in terms.items()}
                    metrics |= {"train/grad_norm": update.grad_norm, "train/lr": update.lr}
                    metrics |= {
                        "time/img_per_s": lap_images / lap["total"],
                        "time/wait": lap.get("wait", 0) / lap["total"],
                    }
                    metrics |= {"train/skipped": float(state.num_skipped)}
                    run.log(state.step, metrics)
                    lap_images = 0
                task.advance(note=_note(terms, metrics))

                if (state.step % schedule.val_every == 0 or last) and not stop.requested:
                    scores = validate_reconstructions(state.ema.model, val_images, val_samples, device=device)
                    metrics |= scores
                    run.log(state.step, scores)
                if (state.step % schedule.snapshot_every == 0 or last) and not stop.requested:
                    save_snapshot(state.ema.model, val_images, val_samples, run.image_path(state.step), device=device)
                if state.step % schedule.checkpoint_every == 0 or last:
                    run.save_checkpoint(state)
                    publish_model(run, state, recipe, metrics=metrics, complete=state.step == schedule.steps)
                if stop.requested and state.step < schedule.steps:
                    run.close()
                    raise InterruptedRunError(
                        f"stopped at step {state.step:,} of {schedule.steps:,}, saved",
                        next=f"Go on with: brics train-ae --resume {run.path}",
                    )
        run.close()
    return TrainResult(run.path, state.step, metrics)


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
    run: Run, state: TrainingState, recipe: AutoencoderRecipe, *, metrics: dict[str, float], complete: bool
) -> None:
    """Write the average as the run's model, and say so in its provenance."""
    details: dict[str, Any] = {"transform": recipe.data.transform, "recipe": recipe.name, "step": state.step}
    sha256 = save_autoencoder(
        run.path / "model", config=recipe.model, state=state.ema.model.state_dict(), details=details
    )
    scores = {name: value for name, value in metrics.items() if name.startswith("val/")}
    summary = f"{recipe.name}, step {state.step:,}"
    if scores:
        summary += f", {scores['val/psnr']:.2f} dB"
    run.publish(complete=complete, sha256=sha256, step=state.step, summary=summary, **scores)


def _say_what_to_expect(device: torch.device, clock: Clock, num_steps: int, reporter: Reporter) -> None:
    if device.type != "cpu":
        return
    per_step = (clock.elapsed()) / EXPECTATION_AFTER_STEPS
    expected = timedelta(seconds=math.ceil(per_step * num_steps))
    if expected > timedelta(minutes=10):
        reporter.warning(
            f"on this CPU a step takes {per_step:.2f} s, all {num_steps:,} about {expected}; Ctrl-C saves and "
            "--resume goes on. --recipe tiny takes minutes, a GPU is what the recipe is made for"
        )


def _note(terms: dict[str, float], metrics: dict[str, float]) -> str:
    note = f"loss {terms['loss']:.4f}"
    if "val/psnr" in metrics:
        note += f"  val {metrics['val/psnr']:.2f} dB"
    if "time/img_per_s" in metrics:
        note += f"  {metrics['time/img_per_s']:,.0f} img/s  waiting {metrics['time/wait']:.0%}"
    return note
