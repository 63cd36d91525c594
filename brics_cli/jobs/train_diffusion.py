"""`brics train-diffusion`: key-code store -> diffusion loss -> EMA of the denoiser -> run (DESIGN section 3.6)."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.sizes import check_memory
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.lineage import load_store_autoencoder
from brics_cli.config import DiffusionRecipe
from brics_cli.diffusion.classes import Classes
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser, save_denoiser
from brics_cli.diffusion.diffusion import draws_for
from brics_cli.errors import ArtefactError
from brics_cli.images.labels import MAX_CLASSES
from brics_cli.jobs.diffusion_score import QuickScore, drawer
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.distributed import World, join_world
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.stopping import stop_signals
from brics_cli.training.clock import Clock, time_note
from brics_cli.training.codes import TrainingCodes
from brics_cli.training.estimate import Estimate, estimate
from brics_cli.training.levels import LevelMeans, sum_dtype
from brics_cli.training.order import SampleOrder
from brics_cli.training.plan import DiffusionPlan
from brics_cli.training.precision import autocast, compiled
from brics_cli.training.run import TrainResult, open_run
from brics_cli.training.state import TrainingState
from brics_cli.workspace import Workspace


def train_diffusion(
    plan: DiffusionPlan,
    *,
    workspace: Workspace,
    device: str = "auto",
    overwrite: bool = False,
    reporter: Reporter,
) -> TrainResult:
    """Train to the recipe's last step, or until asked to stop.

    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges, ArtefactError
    when a checkpoint to resume or weights to start from cannot be read.
    """
    recipe, schedule, store = plan.recipe, plan.recipe.training, plan.store
    with ExitStack() as stack:
        world = stack.enter_context(join_world(resolve_device(device)))
        shape = " x ".join(str(side) for side in store.code_shape)
        reporter.message(f"{store.path}: {len(store):,} codes of {shape}")
        torch.manual_seed(schedule.seed)
        model = build_for_store(recipe, store, device=world.device)
        if said := describe_classes(model.classes, store):
            reporter.message(said)
        state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, ema_widths=schedule.ema_widths)
        autoencoder = find_autoencoder(store, workspace=workspace, world=world, reporter=reporter)
        score = QuickScore(store, autoencoder, num_samples=schedule.fd_samples)
        codes = TrainingCodes(
            store, seed=schedule.seed, device=world.device, where=schedule.store_on_device, reporter=reporter
        )
        order = SampleOrder([np.arange(len(store))], seed=schedule.seed)
        run = stack.enter_context(open_run(plan, state, world=world, overwrite=overwrite, reporter=reporter))
        stop = stack.enter_context(stop_signals())
        task = stack.enter_context(
            reporter.task("train-diffusion", total=schedule.steps, unit="step", initial=state.step)
        )
        forward = compiled(world.replicate(model), schedule)
        batches = codes.batches(order, first_step=state.step, batch_size=schedule.batch_size, world=world)
        stack.enter_context(closing(batches))
        clock, metrics, levels, due = Clock(), dict[str, float](), LevelMeans(world.device), False

        while state.step < schedule.steps:
            with clock.phase("waiting"):
                batch = next(batches)

            with clock.phase("compute"):
                # accumulate: the loss of a batch is the mean over its samples, in all processes
                loss_of_batch = torch.zeros((), dtype=sum_dtype(world.device), device=world.device)
                for some_codes, labels, draws, is_last in batch.parts(schedule.accumulate):
                    with world.averaging(forward, now=is_last):
                        with autocast(schedule, world.device):
                            loss, log_snr = forward(some_codes, draws, labels=labels)
                        (loss.mean() / schedule.accumulate).backward()
                    loss_of_batch += loss.detach().mean().to(loss_of_batch.dtype) / schedule.accumulate
                    levels.add(loss, log_snr)

                # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                update = state.update(world.average(loss_of_batch))

            clock.step(schedule.batch_size)
            clock.warn_if_long(num_steps=schedule.steps - state.step, device=world.device, reporter=reporter)
            last = state.step == schedule.steps

            if state.step % schedule.log_every == 0 or last:
                logged = {"train/loss": update.loss, "train/grad_norm": update.grad_norm, "train/lr": update.lr}
                logged |= levels.result(world) | {"train/skipped": float(state.num_skipped)} | clock.lap()
                metrics |= logged
                run.log(state.step, logged)
            task.advance(note=f"loss {update.loss:.4f}{time_note(metrics)}")
            if state.step % schedule.snapshot_every == 0 or last:
                run.snapshot(drawer(state.ema.model, autoencoder), step=state.step)
                scores = world.lead(lambda: score(state.ema.model)) or {}
                metrics |= scores
                run.log(state.step, scores)
            stopping = world.any(stop.requested)
            due = due or state.step % schedule.checkpoint_every == 0 or last or stopping
            if due and state.is_sound():  # after a step that was skipped, the next good one is saved
                run.publish(
                    lambda directory: save_averages(state, directory, store=store),
                    step=state.step,
                    summary=f"{recipe.name}, step {state.step:,}",
                )
                run.save_checkpoint(state)
                due = False
                if stopping and not last:
                    raise run.interrupted(state)
            elif last:
                raise state.diverged("the last losses or weights are not finite")
    return TrainResult(plan.artefact.path, state.step, metrics)


def estimate_training(plan: DiffusionPlan, *, device: str = "auto") -> Estimate:
    """What the plan's run costs on this device, measured on the store's first codes."""
    on, recipe, schedule = resolve_device(device), plan.recipe, plan.recipe.training
    model = build_for_store(recipe, plan.store, device=on)
    rows = [row % len(plan.store) for row in range(schedule.batch_size // schedule.accumulate)]
    codes = torch.from_numpy(plan.store.batch(rows)).to(on)
    draws = draws_for(schedule.seed, step=0, indices=rows, shape=plan.store.code_shape, device=on)

    def loss() -> Tensor:
        with autocast(schedule, on):
            return model(codes, draws).per_sample.mean()

    return estimate(model, loss, schedule=schedule, num_averages=len(schedule.ema_widths))


def build_for_store(recipe: DiffusionRecipe, store: KeyCodeStore, *, device: torch.device) -> Denoiser:
    """A fresh denoiser for the shape, the classes and the statistics of `store`'s codes.

    Raises ArtefactError for labels that are too large to be classes, MachineError when it cannot be trained in the
    memory there is, before any is taken.
    """
    largest = int(store.labels.max(initial=-1))
    if largest >= MAX_CLASSES:
        raise ArtefactError(
            f"the labels of {store.path} go up to {largest:,}, and a model has at most {MAX_CLASSES:,} classes",
            next="Encode again with brics encode-dataset, which renumbers them.",
        )
    classes = Classes.of(store.labels, store.class_names)
    build = partial(
        build_denoiser,
        recipe.denoiser,
        recipe.diffusion,
        code_shape=store.code_shape,
        num_classes=classes.num,
        store_mean=store.mean.tolist(),
        store_std=store.std.tolist(),
        code_kind=store.code_kind,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
    )
    check_memory(build, device=device, what=f"recipe {recipe.name}")
    denoiser = build().to(device)
    denoiser.class_counts, denoiser.class_names = classes.counts, classes.names
    return denoiser


def describe_classes(classes: Classes, store: KeyCodeStore) -> str:
    """What classes are learnt, and which never will be; empty where there are none."""
    if classes.num == 0:
        return ""
    num_labelled, missing = sum(classes.counts), classes.num - len(classes.present)
    said = f"{len(classes.present):,} classes: {classes.listed()}"
    if num_labelled < len(store):
        said += f"; {len(store) - num_labelled:,} of {len(store):,} images have none"
    if missing:
        said += f"; {missing:,} class numbers below {classes.num:,} have no image, and are never sampled"
    return said


def find_autoencoder(
    store: KeyCodeStore, *, workspace: Workspace, world: World, reporter: Reporter
) -> Autoencoder | None:
    """The store's autoencoder, which snapshots need and training does not; None, said so, when it is not there.

    The process that leads draws the snapshots, so the others do not load it.
    """
    if not world.is_leader:
        return None
    try:
        return load_store_autoencoder(store, workspace=workspace, device=world.device)
    except ArtefactError as error:
        reporter.warning(f"no sample sheets and no val/fd-random during training: {error.what}")
        return None


def save_averages(state: TrainingState[Denoiser], directory: Path, *, store: KeyCodeStore) -> str:
    """Write the averages as a model directory that names its store and autoencoder; the sha256 of the plain one."""
    lineage = {
        "autoencoder_sha256": str(store.autoencoder["sha256"]),
        "store_sha256": store.sha256,
        "store_path": str(store.path.resolve()),
    }
    average = state.ema.model
    others = {name: ema.model.state_dict() for name, ema in state.averages.items()}
    return save_denoiser(directory, denoiser=average, state=average.state_dict(), lineage=lineage, averages=others)
