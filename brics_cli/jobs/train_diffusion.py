"""`brics train-diffusion`: key-code store -> diffusion loss -> EMA of the denoiser -> run (DESIGN section 3.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder, to_uint8
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.lineage import load_store_autoencoder
from brics_cli.config.names import Precision
from brics_cli.diffusion.classes import NUM_LISTED, Classes
from brics_cli.diffusion.denoisers import Denoiser, save_denoiser
from brics_cli.diffusion.samplers import DEFAULT_SETTINGS, SamplerSettings, sample_codes
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.evaluation.frechet import FrechetReference
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.images import contact_sheet
from brics_cli.images.selection import held_out_by_hash, spread
from brics_cli.images.sheets import seed_captions
from brics_cli.networks.random_features import RandomConvolutions
from brics_cli.runtime.device import widest_float
from brics_cli.runtime.distributed import World, join_world
from brics_cli.runtime.precision import computing, scoring_precision, training_arithmetic, training_precision
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.models import ImageNoise
from brics_cli.training.codes import LevelMeans, TrainingCodes, ValidationLoss, build_for_store, order_of
from brics_cli.training.loop import TrainResult, open_loop
from brics_cli.training.plan import DiffusionPlan
from brics_cli.training.state import TrainingState
from brics_cli.training.step import compiled
from brics_cli.wording import count
from brics_cli.workspace import Workspace
from brics_cli.workspace.places import reference

SHEET_SEEDS = range(24)
SHEET_COLUMNS = 8
DEFAULT_FD_SAMPLES = 256
"""On an accelerator: more than there are features, so that their covariance has full rank."""
REFERENCE_PER_SAMPLE = 4
"""Codes of the store that are decoded for each image drawn: the reference's own error is then small beside theirs."""
FD_SAMPLER = SamplerSettings(sampler="dpmpp-2m", steps=10)
"""Of `val/fd-random`, whatever the default of `brics sample` becomes: its curves stay comparable between runs."""
BATCH_SIZE = 64


def train_diffusion(
    plan: DiffusionPlan,
    *,
    workspace: Workspace,
    overwrite: bool = False,
    reporter: Reporter,
) -> TrainResult:
    """Train to the recipe's last step, or until asked to stop.

    Raises InterruptedRunError once an interrupted run is saved, MachineError when training diverges, ArtefactError
    when a checkpoint to resume or weights to start from cannot be read.
    """
    recipe, schedule, store = plan.recipe, plan.recipe.training, plan.store
    with join_world(plan.device) as world:
        shape = " x ".join(str(side) for side in store.code_shape)
        reporter.message(f"{store.path}: {len(store):,} codes of {shape}")
        if (window := schedule.shuffle_window) is not None and window < len(store):
            reporter.message(f"shuffled in windows of whole shards, of at least {window:,} codes")
        torch.manual_seed(schedule.seed)
        model = build_for_store(recipe, store, device=world.device)
        if said := describe_classes(model.classes, store):
            reporter.message(said)
        state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule, ema_widths=schedule.ema_widths)
        autoencoder = find_autoencoder(store, workspace=workspace, world=world, reporter=reporter)
        snapshots = Snapshots(
            state.ema.model,
            store,
            autoencoder,
            num_samples=schedule.fd_samples,
            precision=scoring_precision(schedule, world.device),
        )
        codes = TrainingCodes(
            store, seed=schedule.seed, device=world.device, where=schedule.store_on_device, reporter=reporter
        )
        train_rows, val_rows = split_rows(store, schedule.val_fraction, reporter=reporter)
        order = order_of(store, train_rows, schedule)
        precision = training_precision(schedule, world.device)
        with (
            open_loop(plan, state, world=world, overwrite=overwrite, reporter=reporter) as loop,
            closing(
                codes.batches(order, first_step=state.step, batch_size=schedule.batch_size, world=world)
            ) as batches,
            training_arithmetic(precision),
        ):
            forward = compiled(world.replicate(model), enabled=schedule.compile)
            levels = LevelMeans(world.device)
            save = partial(save_averages, state, store)
            score = None
            if len(val_rows):
                val_loss = ValidationLoss(store, val_rows, seed=schedule.seed, device=world.device)
                per_process = schedule.batch_size // schedule.accumulate // world.size
                score = partial(
                    val_loss,
                    state.ema.model,
                    precision=precision,
                    batch_size=per_process,
                    world=world,
                    stop=loop.stop,
                )

            while state.step < schedule.steps:
                with loop.times.phase("waiting"):
                    batch = next(batches)

                with loop.times.phase("compute"):
                    # accumulate: the loss of a batch is the mean over its samples, in all processes
                    loss_of_batch = torch.zeros((), dtype=widest_float(world.device), device=world.device)
                    for some_codes, labels, draws, is_last in batch.parts(schedule.accumulate):
                        with world.averaging(forward, now=is_last):
                            with computing(precision, world.device):
                                loss, log_snr = forward(some_codes, draws, labels=labels)
                            (loss.mean() / schedule.accumulate).backward()
                        loss_of_batch += loss.detach().mean().to(loss_of_batch.dtype) / schedule.accumulate
                        levels.add(loss, log_snr)

                    # step and EMA: clip, guard against non-finite values, AdamW, ema <- decay ema + (1 - decay) weights
                    update = state.update(world.average(loss_of_batch))

                logged = partial(levels.result, world)
                loop.end_step(update, values=logged, validate=score, snapshot=snapshots, save=save)
    return loop.result(data=plan.data)


def split_rows(
    store: KeyCodeStore, val_fraction: float, *, reporter: Reporter
) -> tuple[np.ndarray | range, np.ndarray]:
    """The rows to train on, and those held out by hash of their key, which are none for a fraction of 0.

    Raises UsageError for a store of one code, of which none can be held out.
    """
    if not val_fraction:
        return range(len(store)), np.arange(0)
    rows = np.arange(len(store))
    if len(store) < 2:
        raise UsageError(f"{store.path} holds one code: none can be held out", next="Leave training.val_fraction at 0.")
    held_out = held_out_by_hash(store.keys, val_fraction)
    reporter.message(f"validating on {held_out.sum():,} codes, held out by hash of their key")
    return rows[~held_out], rows[held_out]


def describe_classes(classes: Classes, store: KeyCodeStore) -> str:
    """What classes are learnt, and which never will be; empty where there are none."""
    if classes.num == 0:
        return ""
    num_labelled, missing = sum(classes.counts), sorted(set(range(classes.num)) - set(classes.present))
    said = f"class-conditional, on {count(len(classes.present), 'class')}: {classes.listed()}"
    if num_labelled < len(store):
        said += f"; {len(store) - num_labelled:,} of {len(store):,} images have none"
    if missing:
        shown = ", ".join(map(classes.shown, missing[:NUM_LISTED]))
        more = f" and {len(missing) - NUM_LISTED:,} more" if len(missing) > NUM_LISTED else ""
        said += f"; without an image, and never sampled: {shown}{more}"
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


def save_averages(
    state: TrainingState[Denoiser], store: KeyCodeStore, directory: Path, scores: dict[str, float]
) -> str:
    """Write the averages as a model directory that names its store and autoencoder; the sha256 of the plain one."""
    lineage = {
        "autoencoder_sha256": str(store.autoencoder["sha256"]),
        "store_sha256": store.sha256,
        "store_path": reference(store.path),
    }
    average = state.ema.model
    others = {name: ema.model.state_dict() for name, ema in state.averages.items()}
    return save_denoiser(directory, denoiser=average, state=average.state_dict(), lineage=lineage, averages=others)


class Snapshots:
    """What is drawn of `denoiser` at every snapshot: a sheet of samples, and `val/fd-random` with its N.

    The score is a Fréchet distance on features that need no weights, between N samples and decoded codes of the store:
    a signal along one run, comparable where N is the same, and with nothing published. `num_samples` None: 256, and on
    the CPU none. Its cost is that of N samples of 10 evaluations and, once, of 4 N decoded codes. Without an
    autoencoder there is neither.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        store: KeyCodeStore,
        autoencoder: Autoencoder | None,
        *,
        num_samples: int | None,
        precision: Precision,
    ) -> None:
        self.denoiser, self.store, self.autoencoder, self.precision = denoiser, store, autoencoder, precision
        self.device = denoiser.mean.device
        default = 0 if self.device.type == "cpu" else DEFAULT_FD_SAMPLES
        self.num_samples = default if num_samples is None else num_samples

    def __call__(self, path: Path) -> dict[str, float]:
        """Write the sheet, of the same seeds every time; the scores by name, of the images of seeds 0 to N - 1."""
        if self.autoencoder is None:
            return {}
        images = self._draw(SHEET_SEEDS, DEFAULT_SETTINGS)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [list(images[start : start + SHEET_COLUMNS]) for start in range(0, len(images), SHEET_COLUMNS)]
        classes = self.denoiser.classes
        shown = [classes.shown(label) for label in classes.draw(SHEET_SEEDS)] if classes.num else None
        contact_sheet(rows, path=path, captions=seed_captions(SHEET_SEEDS, shown, num_columns=SHEET_COLUMNS))
        num = self.num_samples
        if not num or len(self.store) < 2:
            return {}
        batches = (range(start, min(start + BATCH_SIZE, num)) for start in range(0, num, BATCH_SIZE))
        drawn = self._moments(self._draw(seeds, FD_SAMPLER) for seeds in batches)
        return {"val/fd-random": self._reference.distance(drawn), "val/fd-random-n": float(num)}

    @torch.inference_mode()
    def _draw(self, seeds: Sequence[int], settings: SamplerSettings) -> np.ndarray:
        """The images (B, H, W, 3) uint8 of `seeds`, drawn at once."""
        denoiser = self.denoiser
        noise = ImageNoise(list(seeds), shape=denoiser.code_shape, device=self.device)
        labels = torch.tensor(denoiser.classes.draw(seeds), device=self.device) if denoiser.num_classes else None
        with computing(self.precision, self.device):
            codes = sample_codes(denoiser, noise=noise, settings=settings, labels=labels)
        return self._decode(codes)

    @torch.inference_mode()
    def _decode(self, codes: Tensor) -> np.ndarray:
        assert self.autoencoder is not None
        with computing(self.precision, self.device):
            return to_uint8(self.autoencoder.decode(codes.to(self.device)))

    @cached_property
    def _network(self) -> RandomConvolutions:
        return RandomConvolutions(self.device)

    @cached_property
    def _reference(self) -> FrechetReference:
        """Of images decoded from codes spread evenly over the store."""
        rows = spread(len(self.store), REFERENCE_PER_SAMPLE * self.num_samples)
        parts = (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
        return FrechetReference(self._moments(self._decode(torch.from_numpy(self.store.batch(part))) for part in parts))

    def _moments(self, batches: Iterable[np.ndarray]) -> FeatureMoments:
        moments = FeatureMoments(self._network.num_features)
        for images in batches:  # (B, H, W, 3)
            moments.update(self._network.features(list(images)))
        return moments
