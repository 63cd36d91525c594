"""`brics train-ae`: images -> encoder -> codes -> retrieval -> decoder -> loss -> run (DESIGN section 3.5)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, save_autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.image_tensors import to_tensor, to_uint8
from brics_cli.autoencoder.losses import perceptual_distance, reconstruction_loss
from brics_cli.autoencoder.sizes import check_image_memory, check_memory
from brics_cli.config import AutoencoderRecipe
from brics_cli.evaluation.reconstruction import capped_psnr, ssim
from brics_cli.images import contact_sheet
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.distributed import World, join_world
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.stopping import StopRequest, stop_signals
from brics_cli.training.adversary import build_adversary
from brics_cli.training.batches import Means, micro_batches, prepare
from brics_cli.training.clock import Clock, time_note
from brics_cli.training.estimate import Estimate, estimate, loss_on_random_images
from brics_cli.training.images import TrainingImages
from brics_cli.training.plan import AutoencoderPlan
from brics_cli.training.precision import autocast, compiled
from brics_cli.training.run import TrainResult, open_run
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
    recipe, schedule = plan.recipe, plan.recipe.training
    with ExitStack() as stack:
        world = stack.enter_context(join_world(resolve_device(device)))
        torch.manual_seed(schedule.seed)
        check_recipe(recipe, device=world.device)
        model = build_autoencoder(recipe.model).to(world.device).to(memory_format=torch.channels_last)
        adversary = build_adversary(recipe, model, world=world)
        state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, adversary=adversary)
        distance = perceptual_distance(recipe.loss, device=world.device)
        images, val_images, val_samples, order = plan.load_images(num_workers=num_workers, reporter=reporter)
        run = stack.enter_context(open_run(plan, state, world=world, overwrite=overwrite, reporter=reporter))
        stop = stack.enter_context(stop_signals())
        task = stack.enter_context(reporter.task("train-ae", total=schedule.steps, unit="step", initial=state.step))
        forward = compiled(world.replicate(model), schedule)
        batches = images.batches(order, start=state.images_seen, batch_size=schedule.batch_size, world=world)
        clock, metrics, scores, due = Clock(), dict[str, float](), dict[str, float](), False

        while (step := state.step) < schedule.steps:
            with clock.phase("waiting"):
                inputs, noise = prepare(next(batches), recipe, step=step, device=world.device)

            with clock.phase("compute"):
                # accumulate: the loss of a batch is the mean over its micro-batches, in all processes
                terms = Means()
                for pixels, code_noise, is_last in micro_batches(inputs, noise, num=schedule.accumulate):
                    with world.averaging(forward, now=is_last):
                        with autocast(schedule, world.device):
                            out = forward(pixels, noise=code_noise)
                        losses = reconstruction_loss(recipe.loss, out.reconstructions, pixels, distance=distance)
                        loss = sum(losses.values(), out.aux_loss.float())
                        if adversary is not None:
                            losses["gan"] = adversary.judge(out.reconstructions, losses, step=step)
                            loss = loss + losses["gan"]
                        (loss / schedule.accumulate).backward()
                    terms.add({"loss": loss, **losses, **out.stats})
                    if adversary is not None:
                        terms.add(adversary.learn(pixels, out.reconstructions, step=step))
                means = terms.result(world)

                # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                update = state.update(means["loss"])
                if adversary is not None:
                    means |= adversary.update(step=step)

            clock.step(schedule.batch_size)
            clock.warn_if_long(num_steps=schedule.steps - state.step, device=world.device, reporter=reporter)
            last = state.step == schedule.steps

            if state.step % schedule.log_every == 0 or last:
                logged = {f"train/{name}": value for name, value in means.items()} | clock.lap()
                logged |= {"train/grad_norm": update.grad_norm, "train/lr": update.lr}
                logged |= {"train/skipped": float(state.num_skipped)}
                metrics |= logged
                run.log(state.step, logged)
            task.advance(note=_note(means, metrics))
            if validating := (state.step % schedule.val_every == 0 or last):
                scores = validate(state.ema.model, val_images, val_samples, world=world, stop=stop, reporter=reporter)
                metrics |= scores
                run.log(state.step, scores)
                run.keep_if_best(saver(state, recipe, scores=scores), scores)
            if state.step % schedule.snapshot_every == 0 or last:
                run.snapshot(drawer(state.ema.model, val_images, val_samples, device=world.device), step=state.step)
            stopping = world.any(stop.requested)
            due = due or state.step % schedule.checkpoint_every == 0 or last or stopping
            if due and state.is_sound():  # after a step that was skipped, the next good one is saved
                valid = scores if validating else {}
                summary = f"{recipe.name}, step {state.step:,}" + _psnr_note(valid)
                run.publish(saver(state, recipe, scores=valid), step=state.step, summary=summary, **valid)
                run.save_checkpoint(state)
                due = False
                if stopping and not last:
                    raise run.interrupted(state)
            elif last:
                raise state.diverged("the last losses or weights are not finite")
        batches.close()  # and with it the threads that add to the failures
        for theirs in world.gather(images.failures):
            images.failures |= theirs
        for also_theirs in world.gather(images.enlarged):
            images.enlarged |= also_theirs
    if images.cached is None:  # read as it went, so failures are known only now
        images.warn_about_failures(reporter)
    return TrainResult(plan.artefact.path, state.step, metrics, num_failed=len(images.failures))


def check_recipe(recipe: AutoencoderRecipe, *, device: torch.device) -> None:
    """Raise MachineError when the recipe's model cannot be trained in the memory there is, before any is taken."""
    what = f"recipe {recipe.name}"
    check_image_memory(recipe.model.image_size, what=what)
    check_memory(lambda: build_autoencoder(recipe.model), device=device, what=what)


def estimate_training(plan: AutoencoderPlan, *, device: str = "auto") -> Estimate:
    """What the plan's run costs on this device, measured on random images."""
    on, recipe, schedule = resolve_device(device), plan.recipe, plan.recipe.training
    check_recipe(recipe, device=on)
    model = build_autoencoder(recipe.model).to(on).to(memory_format=torch.channels_last)
    num_images = schedule.batch_size // schedule.accumulate
    adversary = build_adversary(recipe, model, world=World(device=on))
    loss = loss_on_random_images(recipe, model, num_images=num_images, device=on, adversary=adversary)
    return estimate(model, loss, schedule=schedule, adversary=adversary)


@torch.inference_mode()
def validate(
    model: Autoencoder,
    images: TrainingImages,
    samples: np.ndarray,
    *,
    world: World,
    stop: StopRequest,
    reporter: Reporter,
    batch_size: int = 64,
) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the reconstructions of `samples`, on uint8 as evaluation does, and what of the
    bottleneck's tables their codes use. Each process scores its share; nothing, said so, when none can be read, and
    nothing once somebody asked to stop."""
    sums = np.zeros(3)  # images, PSNR, SSIM
    usage = model.bottleneck.usage_counter()
    mine = samples[world.rank :: world.size]
    for start in range(0, len(mine), batch_size):
        if stop.requested:
            break
        real = images.load(mine[start : start + batch_size].tolist())
        if not len(real):
            continue
        codes = model.encode(to_tensor(real, world.device))
        usage.add(codes)
        fake = to_uint8(model.decode(codes))
        sums += [len(real), capped_psnr(real, fake).sum(), ssim(real, fake).sum()]
    if world.any(stop.requested):
        return {}
    num, total_psnr, total_ssim = world.total(sums.tolist())
    if not num:
        reporter.warning(f"no validation score: none of the {len(samples):,} validation images can be read")
        return {}
    world.add_up(usage.counts)
    used = {f"val/{name}": value for name, value in usage.result().items()}
    return {"val/psnr": total_psnr / num, "val/ssim": total_ssim / num} | used


def drawer(
    model: Autoencoder, images: TrainingImages, samples: np.ndarray, *, device: torch.device
) -> Callable[[Path], None]:
    """A function that writes a sheet of validation images above their reconstructions."""

    @torch.inference_mode()
    def draw(path: Path) -> None:
        real = images.load(samples[:SNAPSHOT_IMAGES].tolist())
        if not len(real):
            return
        fake = to_uint8(model.decode(model.encode(to_tensor(real, device))))
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet([list(real), list(fake)], path=path, row_labels=["originals", "reconstructions"])

    return draw


def saver(
    state: TrainingState[Autoencoder], recipe: AutoencoderRecipe, *, scores: dict[str, float]
) -> Callable[[Path], str]:
    """A function that writes the average as a model directory, with what it was trained to minimise."""
    details: dict[str, Any] = {"transform": recipe.data.transform, "recipe": recipe.name, "step": state.step}
    details |= {"loss": recipe.loss.model_dump(mode="json"), "gan": recipe.gan.model_dump(mode="json"), **scores}
    weights = state.ema.model.state_dict()
    return lambda directory: save_autoencoder(directory, config=recipe.model, state=weights, details=details)


def _note(means: dict[str, float], metrics: dict[str, float]) -> str:
    return f"loss {means['loss']:.4f}{_psnr_note(metrics).replace(',', '  val')}{time_note(metrics)}"


def _psnr_note(scores: dict[str, float]) -> str:
    return f", {scores['val/psnr']:.2f} dB" if "val/psnr" in scores else ""
