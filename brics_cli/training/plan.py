"""A training run before its first step: recipe, data, where it goes, what it continues. All that can be wrong is
found here, before any work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brics_cli.autoencoder.losses import perceptual_weights
from brics_cli.autoencoder.model_files import CONFIG_NAME, WEIGHTS_NAME, read_model_config
from brics_cli.codes import KeyCodeStore
from brics_cli.config import (
    AutoencoderRecipe,
    DiffusionRecipe,
    Recipe,
    ScheduleConfig,
    default_autoencoder_recipe,
    list_recipes,
    load_recipe,
)
from brics_cli.config.loading import recipe_from_values
from brics_cli.config.names import Precision
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import Collection, median_side, open_collection
from brics_cli.images.loader import default_num_workers
from brics_cli.runtime.distributed import check_batch, num_local_processes
from brics_cli.runtime.reporting import Reporter
from brics_cli.training.images import TrainingImages
from brics_cli.training.order import SampleOrder
from brics_cli.training.resuming import (
    CONFIG_FILE,
    begun_alike,
    flatten,
    identity_of,
    init_of,
    open_for_resume,
    reopen_collection,
    reopen_store,
    resumed_recipe,
)
from brics_cli.workspace import Artefact, Kind, Parent, Workspace, sha256_of_file
from brics_cli.workspace.artefacts import differences, now
from brics_cli.workspace.embedded import embedded_at, model_reference
from brics_cli.workspace.naming import RUN, form_of_output

VALIDATION_IMAGES = 2048
# A checkpoint holds the weights, their plain average and AdamW's two moments; of a discriminator no average.
COPIES_PER_CHECKPOINT = 4
COPIES_OF_DISCRIMINATOR = 3
DEFAULT_DIFFUSION_RECIPE = "brics-dit-s"
NO_ARCHITECTURE = ("bottleneck.noise", "bottleneck.noise_varies", "bottleneck.init", "bottleneck.init_std")
"""Settings of a model that training alone sees: a run that starts from another's weights may have its own."""


@dataclass(frozen=True)
class TrainOptions:
    """What a training command was asked for; None is "not given". `data` is a collection or a key-code store; `subset`
    chooses where it holds several collections; `recipe` is a name, a path or a recipe."""

    data: str | None = None
    subset: str | None = None
    image_field: str | None = None
    recipe: str | Path | Recipe | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    precision: Precision | None = None
    seed: int | None = None
    overrides: Sequence[str] = ()
    val: str | None = None
    out: Path | None = None
    resume: Path | None = None
    overwrite: bool = False
    init_from: Path | None = None

    @property
    def settings(self) -> list[str]:
        """`overrides`, and what stands for one after them: --batch-size, --lr, --dtype."""
        flags = {
            "training.batch_size": self.batch_size,
            "optimiser.lr": self.lr,
            "training.precision": self.precision,
        }
        return [*self.overrides, *(f"{key}={value}" for key, value in flags.items() if value is not None)]


@dataclass(frozen=True)
class Plan:
    """A run to start or, with `resume`, one that is there to go on with."""

    artefact: Artefact
    resume: bool
    init_from: Path | None
    recipe: Recipe


@dataclass(frozen=True)
class AutoencoderPlan(Plan):
    """A run of `train-ae`."""

    recipe: AutoencoderRecipe
    collection: Collection
    val: Collection | None

    @property
    def data(self) -> str:
        """Path or pattern of what is trained on."""
        return self.collection.path

    @property
    def num_samples(self) -> int:
        return len(self.collection)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        return self.recipe.model.code_shape

    def load_images(
        self, *, num_workers: int | None, reporter: Reporter
    ) -> tuple[TrainingImages, TrainingImages, np.ndarray, SampleOrder]:
        """The training images, the validation images with the samples to use of them, and the training order."""
        images = open_images(self.recipe, self.collection, num_workers=num_workers, reporter=reporter)
        if self.val is None:
            shards, val_samples = images.split(val_fraction=self.recipe.data.val_fraction)
            val_images = images
            reporter.message(f"validating on {len(val_samples):,} images, held out by hash of their key")
        else:
            shards, _ = images.split(val_fraction=None)
            val_images = open_images(self.recipe, self.val, num_workers=num_workers, reporter=reporter)
            val_samples = np.concatenate(val_images.split(val_fraction=None)[0])
        order = SampleOrder(shards, seed=self.recipe.training.seed, window=self.recipe.data.shuffle_window)
        spread = np.linspace(0, len(val_samples) - 1, min(len(val_samples), VALIDATION_IMAGES)).round().astype(int)
        return images, val_images, val_samples[spread], order


@dataclass(frozen=True)
class DiffusionPlan(Plan):
    """A run of `train-diffusion`."""

    recipe: DiffusionRecipe
    store: KeyCodeStore

    @property
    def data(self) -> str:
        """Path of the store that is trained on."""
        return str(self.store.path)

    @property
    def num_samples(self) -> int:
        return len(self.store)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        return self.store.code_shape


def plan_autoencoder(asked: TrainOptions, *, workspace: Workspace, reporter: Reporter) -> AutoencoderPlan:
    """Resolve what `train-ae` was asked for; images left out are the workspace's newest shards.

    Raises UsageError (recipe, settings, data), ArtefactError (no shards, or a run to resume is not one or has other
    data now).
    """
    if asked.resume is not None:
        artefact, recipe = _run_to_resume(asked, "autoencoder", reporter)
        assert isinstance(recipe, AutoencoderRecipe)
        perceptual_weights(recipe.loss)
        val = reopen_collection(artefact, "validation", workspace, reporter) if artefact.parent("validation") else None
        collection = reopen_collection(artefact, "collection", workspace, reporter)
        return AutoencoderPlan(artefact, True, init_of(artefact), recipe, collection, val)
    path = asked.data
    if path is None:
        path = str(workspace.resolve("shards", argument="DATA", reporter=reporter).path)
    collection = open_collection(
        path, subset=asked.subset, labels="none", image_field=asked.image_field, reporter=reporter
    )
    reporter.message(f"{collection.path}: {collection.describe()}")
    recipe = _autoencoder_recipe(asked, collection, reporter)
    perceptual_weights(recipe.loss)
    _check_init(asked, recipe)
    val = None if asked.val is None else open_collection(asked.val, labels="none", reporter=reporter)
    if val is not None:
        reporter.message(f"validating on {val.path}: {val.describe()}")
    parents = [Parent("collection", collection.path, identity_of(collection, reporter))]
    if val is not None:
        parents.append(Parent("validation", val.path, identity_of(val, reporter)))
    return AutoencoderPlan(*_start(recipe, parents, asked, workspace), recipe, collection, val)


def _autoencoder_recipe(asked: TrainOptions, collection: Collection, reporter: Reporter) -> AutoencoderRecipe:
    """The recipe that was asked for, or else that of the model to start from, at the size of smaller images; without
    either the largest general one that fits the images."""

    def load(recipe: str | Path | Recipe, *overrides: str) -> AutoencoderRecipe:
        asked_now = replace(asked, overrides=[*overrides, *asked.overrides])
        loaded = _load(recipe, asked_now, kind="autoencoder")
        assert isinstance(loaded, AutoencoderRecipe)
        return loaded

    if asked.recipe is not None:
        return load(asked.recipe)
    side = median_side(collection)
    name = None if asked.init_from is None else _recipe_of(asked.init_from)
    if name is None:
        name = default_autoencoder_recipe(side)
        reporter.message(f"--recipe not given: using {name} (the median image side is {side} px)")
        return load(name)
    recipe, at = load(name), ""
    size = recipe.model.largest_size(min(side, recipe.model.image_size))
    if size < recipe.model.image_size and recipe.model.tied_to_size is None:
        recipe = load(name, f"model.image_size={size}")  # unless --set says otherwise
        at = f" at {recipe.model.image_size} px (the median image side is {side} px)"
    reporter.message(f"--recipe not given: using {name}, that of --init-from{at}")
    return recipe


def _recipe_of(model: Path) -> str | None:
    """The recipe that the autoencoder at `model` was trained by: its run's own, or that of an embedded model's name;
    None where it is not there."""
    if (shipped := embedded_at(model)) is not None:
        return shipped.name if shipped.name in list_recipes("autoencoder") else None
    configs = (run / CONFIG_FILE for run in (model, model.parent) if run == model or model.name == "model")
    return next((str(path) for path in configs if path.is_file()), None)


def plan_diffusion(asked: TrainOptions, *, workspace: Workspace, reporter: Reporter) -> DiffusionPlan:
    """Resolve what `train-diffusion` was asked for; the store left out is the workspace's newest.

    Raises UsageError (recipe, settings), ArtefactError (no store, a damaged one, or one that changed).
    """
    if asked.resume is not None:
        artefact, recipe = _run_to_resume(asked, "diffusion", reporter)
        assert isinstance(recipe, DiffusionRecipe)
        return DiffusionPlan(artefact, True, init_of(artefact), recipe, reopen_store(artefact, workspace))
    path = asked.data
    if path is None:
        path = str(workspace.resolve("store", argument="CODES", reporter=reporter).path)
    store = KeyCodeStore(path)
    name = asked.recipe
    if name is None:
        name = DEFAULT_DIFFUSION_RECIPE
        reporter.message(f"--recipe not given: using {name}")
    recipe = _load(name, asked, kind="diffusion")
    assert isinstance(recipe, DiffusionRecipe)
    _check_init(asked, recipe)
    parents = [Parent("store", str(Path(path).resolve()), store.sha256)]
    autoencoder = store.artefact.parent("autoencoder")
    if autoencoder is not None:
        parents.append(autoencoder)
    return DiffusionPlan(*_start(recipe, parents, asked, workspace), recipe, store)


def open_images(
    recipe: AutoencoderRecipe, collection: Collection, *, num_workers: int | None = None, reporter: Reporter
) -> TrainingImages:
    """The images of a collection as the recipe transforms them, in memory where they fit; what fails is said."""
    data = recipe.data
    images = TrainingImages(
        collection,
        transform=data.transform,
        size=recipe.model.image_size,
        num_workers=num_workers or default_num_workers(),
    )
    num_processes = num_local_processes()  # each keeps its own copy
    if images.cache(limit_gib=data.cache_gib / num_processes, reporter=reporter):
        assert images.cached is not None
        reporter.message(f"{len(images):,} images kept in memory ({images.cached.nbytes / 2**20:,.0f} MiB)")
    else:
        reporter.message(
            f"{len(images):,} images would take {num_processes * images.num_bytes / 2**30:,.1f} GiB decoded, more "
            f"than data.cache_gib {data.cache_gib:g}: read shard by shard, shuffled over {data.shuffle_window:,}"
        )
    images.warn_about_failures(reporter)
    return images


@dataclass(frozen=True)
class Estimate:
    """The cost of a run on the device at hand; validation, snapshots and waiting for data come on top."""

    num_parameters: int
    checkpoint_bytes: int
    seconds_per_step: float
    seconds: float


def estimate(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    schedule: ScheduleConfig,
    discriminator: nn.Module | None = None,
    num_averages: int = 0,
) -> Estimate:
    """Time the forward and backward pass of one micro-batch, whose loss `loss` computes, and scale it up.

    The pass is run twice and the second one counts. `num_averages`: those kept beside the plain one.
    """
    device = next(model.parameters()).device
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        loss().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    num_bytes = (COPIES_PER_CHECKPOINT + num_averages) * _num_bytes(model)
    if discriminator is not None:
        num_bytes += COPIES_OF_DISCRIMINATOR * _num_bytes(discriminator)
    per_step = seconds * schedule.accumulate
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Estimate(num_parameters, num_bytes, per_step, per_step * schedule.steps)


def _num_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _load(recipe: str | Path | Recipe, asked: TrainOptions, *, kind: Kind) -> Recipe:
    flags: dict[str, Any] = {"overrides": asked.settings, "training__steps": asked.steps, "training__seed": asked.seed}
    if isinstance(recipe, str | Path):
        loaded = load_recipe(str(recipe), kind=kind, **flags)
    else:
        values = recipe.model_dump(mode="json")
        loaded = recipe_from_values(values, kind=kind, source=f"recipe {recipe.name}", **flags)
    check_batch(loaded.training.batch_size, accumulate=loaded.training.accumulate)
    return loaded


def _check_init(asked: TrainOptions, recipe: Recipe) -> None:
    """Raise ArtefactError when the run to start from is not there, or has another architecture than `recipe`."""
    if asked.init_from is None:
        return
    part = "model" if isinstance(recipe, AutoencoderRecipe) else "denoiser"
    found, directory = read_model_config(asked.init_from, kind=recipe.kind)
    values, theirs = recipe.model_dump(mode="json"), dict(found.get(part) or {})
    if isinstance(recipe, AutoencoderRecipe) and recipe.model.tied_to_size is None:
        theirs["image_size"] = recipe.model.image_size  # its weights are those of any size
    try:  # of an older brics, it has fewer settings: their defaults are what it was trained with
        completed = recipe_from_values(values | {part: theirs}, kind=recipe.kind, source=str(directory / CONFIG_NAME))
    except UsageError as error:
        raise ArtefactError(error.what, next="The model's config is damaged; train it again.") from None
    architecture, wanted = (
        {name: value for name, value in flatten(model).items() if name not in NO_ARCHITECTURE}
        for model in (completed.model_dump(mode="json")[part], values[part])
    )
    differing = differences(architecture, wanted)
    if differing:
        raise ArtefactError(
            f"{asked.init_from} has another architecture than recipe {recipe.name}: {'; '.join(differing[:3])}",
            next="Take its recipe: --recipe RUN/config.yaml.",
        )


def _start(
    recipe: Recipe, parents: list[Parent], asked: TrainOptions, workspace: Workspace
) -> tuple[Artefact, bool, Path | None]:
    """The run to make, whether an equal one has been begun there, and the run whose weights it starts from."""
    if asked.out is not None:
        form_of_output(asked.out, RUN)
    path = asked.out or workspace.new_run_path(recipe.kind, recipe.name)
    if asked.init_from is not None:
        directory = read_model_config(asked.init_from, kind=recipe.kind)[1]
        parents.append(Parent("init", model_reference(asked.init_from), sha256_of_file(directory / WEIGHTS_NAME)))
    details = {"recipe": recipe.name}
    artefact = Artefact(recipe.kind, path, now(), complete=False, parents=tuple(parents), details=details)
    begun = None if asked.overwrite else begun_alike(artefact, recipe)
    return begun or artefact, begun is not None, asked.init_from


def _run_to_resume(asked: TrainOptions, kind: Kind, reporter: Reporter) -> tuple[Artefact, Recipe]:
    assert asked.resume is not None
    given = {
        "the data": asked.data,
        "--subset": asked.subset,
        "--image-field": asked.image_field,
        "--recipe": asked.recipe,
        "--seed": asked.seed,
        "--val": asked.val,
        "--out": asked.out,
        "--init-from": asked.init_from,
    }
    refused = [name for name, value in given.items() if value is not None]
    if refused:
        raise UsageError(
            f"--resume goes on with the run's own settings, so it cannot be given with {', '.join(refused)}",
            next="--steps, --lr and --set may change; for anything else start a new run with --init-from.",
        )
    artefact = open_for_resume(asked.resume, kind=kind)
    recipe = resumed_recipe(asked.resume, kind=kind, overrides=asked.settings, steps=asked.steps, reporter=reporter)
    check_batch(recipe.training.batch_size, accumulate=recipe.training.accumulate)
    return artefact, recipe
