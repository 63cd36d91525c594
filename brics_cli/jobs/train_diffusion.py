"""`brics train-diffusion`: key-code store -> diffusion loss -> EMA of the denoiser -> run (DESIGN section 3.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brics_cli.config import DiffusionRecipe
from brics_cli.core.autoencoder import Autoencoder
from brics_cli.core.denoisers import Denoiser, build_denoiser, save_denoiser
from brics_cli.core.device import resolve_device
from brics_cli.core.diffusion import ImageNoise, draws_for, loss_by_level
from brics_cli.core.image_tensors import to_uint8
from brics_cli.core.randomness import Stream, keyed_coins
from brics_cli.core.samplers import sample_codes
from brics_cli.data import contact_sheet
from brics_cli.distributed import World, join_world
from brics_cli.errors import ArtefactError
from brics_cli.reporting import Reporter
from brics_cli.store import KeyCodeStore
from brics_cli.streams.autoencoders import load_store_autoencoder
from brics_cli.training.clock import Clock, time_note
from brics_cli.training.estimate import Estimate, estimate
from brics_cli.training.order import SampleOrder
from brics_cli.training.plan import DiffusionPlan
from brics_cli.training.precision import autocast, compiled
from brics_cli.training.run import TrainResult, open_run
from brics_cli.training.signals import stop_signals
from brics_cli.training.state import TrainingState
from brics_cli.workspace import Workspace

SNAPSHOT_SEEDS = range(24)
SNAPSHOT_COLUMNS = 8


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
        model = build_for_store(recipe, store).to(world.device)
        state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule)
        autoencoder = find_autoencoder(store, workspace=workspace, world=world, reporter=reporter)
        order = SampleOrder([np.arange(len(store))], seed=schedule.seed)
        run = stack.enter_context(open_run(plan, state, world=world, overwrite=overwrite, reporter=reporter))
        stop = stack.enter_context(stop_signals())
        task = stack.enter_context(
            reporter.task("train-diffusion", total=schedule.steps, unit="step", initial=state.step)
        )
        forward = compiled(world.replicate(model), schedule)
        clock, metrics, levels, due = Clock(), dict[str, float](), LevelMeans(), False

        while (step := state.step) < schedule.steps:
            with clock.phase("waiting"):
                samples = world.mine(order.batch(state.images_seen, schedule.batch_size))
                all_codes, all_labels = load_codes(store, samples, step=step, seed=schedule.seed)

            with clock.phase("compute"):
                # accumulate: the loss of a batch is the mean over its samples, in all processes
                loss_of_batch, size = 0.0, len(samples) // schedule.accumulate
                for start in range(0, len(samples), size):
                    part = slice(start, start + size)
                    codes, labels = all_codes[part].to(world.device), all_labels[part].to(world.device)
                    draws = draws_for(
                        schedule.seed, step=step, indices=samples[part], shape=store.code_shape, device=world.device
                    )
                    with world.averaging(forward, now=start + size == len(samples)):
                        with autocast(schedule, world.device):
                            loss, log_snr = forward(codes, draws, labels=labels)
                        (loss.mean() / schedule.accumulate).backward()
                    loss_of_batch += float(loss.detach().mean()) / schedule.accumulate
                    levels.add(loss, log_snr)
                loss_of_batch = world.total([loss_of_batch])[0] / world.size

                # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                update = state.update(loss_of_batch)

            clock.step(schedule.batch_size)
            clock.warn_if_long(num_steps=schedule.steps - state.step, device=world.device, reporter=reporter)
            last = state.step == schedule.steps
            stopping = world.any(stop.requested)

            if state.step % schedule.log_every == 0 or last:
                logged = {"train/loss": loss_of_batch, "train/grad_norm": update.grad_norm, "train/lr": update.lr}
                logged |= levels.result(world) | {"train/skipped": float(state.num_skipped)} | clock.lap()
                metrics |= logged
                run.log(state.step, logged)
                levels = LevelMeans()
            task.advance(note=f"loss {loss_of_batch:.4f}{time_note(metrics)}")
            if state.step % schedule.snapshot_every == 0 or last:
                run.snapshot(drawer(state.ema.model, autoencoder, device=world.device), step=state.step)
            due = due or state.step % schedule.checkpoint_every == 0 or last or stopping
            if due and state.is_sound():  # after a step that was skipped, the next good one is saved
                run.publish(
                    lambda directory: save_average(state.ema.model, directory, store=store),
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
    model = build_for_store(recipe, plan.store).to(on)
    rows = [row % len(plan.store) for row in range(schedule.batch_size // schedule.accumulate)]
    codes = torch.from_numpy(plan.store.batch(rows)).to(on)
    draws = draws_for(schedule.seed, step=0, indices=rows, shape=plan.store.code_shape, device=on)

    def loss() -> Tensor:
        with autocast(schedule, on):
            return model(codes, draws).per_sample.mean()

    return estimate(model, loss, schedule=schedule)


def build_for_store(recipe: DiffusionRecipe, store: KeyCodeStore) -> Denoiser:
    """A fresh denoiser for the shape, the classes and the statistics of `store`'s codes."""
    num_classes = int(store.labels.max(initial=-1)) + 1
    return build_denoiser(
        recipe.denoiser,
        recipe.diffusion,
        code_shape=store.code_shape,
        num_classes=num_classes,
        store_mean=store.mean.tolist(),
        store_std=store.std.tolist(),
        code_kind=store.code_kind,
    )


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
        reporter.warning(f"no sample sheets during training: {error.what}")
        return None


def load_codes(store: KeyCodeStore, samples: Sequence[int], *, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes (B, C, h, w) in [0, 1] and labels (B,), -1 for none; half of them mirrored when the store has flips."""
    codes = store.batch(samples)
    if store.has_flipped:
        coins = keyed_coins(seed, step=step, indices=samples, stream=Stream.FLIP).numpy()
        codes = np.where(coins[:, None, None, None], store.batch(samples, flipped=True), codes)
    return torch.from_numpy(codes), torch.from_numpy(store.labels[np.asarray(samples)])


def drawer(denoiser: Denoiser, autoencoder: Autoencoder | None, *, device: torch.device) -> Callable[[Path], None]:
    """A function that writes a sheet of the images of the first few seeds, the same ones every time; it writes none
    where there is no autoencoder."""

    @torch.inference_mode()
    def draw(path: Path) -> None:
        if autoencoder is None:
            return
        noise = ImageNoise(list(SNAPSHOT_SEEDS), shape=denoiser.code_shape, device=device)
        labels = noise.labels(denoiser.num_classes).to(device) if denoiser.num_classes else None
        images = to_uint8(autoencoder.decode(sample_codes(denoiser, noise=noise, labels=labels)))
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [list(images[start : start + SNAPSHOT_COLUMNS]) for start in range(0, len(images), SNAPSHOT_COLUMNS)]
        contact_sheet(rows, path=path)

    return draw


def save_average(average: Denoiser, directory: Path, *, store: KeyCodeStore) -> str:
    """Write the average as a model directory that names its store and autoencoder; its sha256."""
    lineage = {
        "autoencoder_sha256": str(store.autoencoder["sha256"]),
        "store_sha256": store.sha256,
        "store_path": str(store.path.resolve()),
    }
    return save_denoiser(directory, denoiser=average, state=average.state_dict(), lineage=lineage)


class LevelMeans:
    """The mean loss of each range of noise levels since the last log line, over batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, loss: Tensor, log_snr: Tensor) -> None:
        """Add the samples of a micro-batch: loss (B,) at log_snr (B,)."""
        for name, (total, count) in loss_by_level(loss, log_snr).items():
            so_far = self._sums.get(name, (0.0, 0))
            self._sums[name] = (so_far[0] + total, so_far[1] + count)

    def result(self, world: World) -> dict[str, float]:
        """By name; a range that no sample fell into is left out."""
        totals = world.total([total for total, _ in self._sums.values()])
        counts = world.total([float(count) for _, count in self._sums.values()])
        found = zip(self._sums, totals, counts, strict=True)
        return {f"loss/{name}": total / count for name, total, count in found if count}
