"""A training run before its first step: recipe, data, where it goes, what it continues. All that can be wrong is
found here, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brics_cli.autoencoder.losses import check_perceptual_weights
from brics_cli.autoencoder.model_files import WEIGHTS_NAME, read_model_config
from brics_cli.codes import KeyCodeStore
from brics_cli.config import (
    AutoencoderRecipe,
    DiffusionRecipe,
    Recipe,
    default_autoencoder_recipe,
    load_recipe,
)
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import Collection, median_side, open_collection
from brics_cli.images.loader import default_num_workers
from brics_cli.runtime.distributed import check_batch, num_local_processes
from brics_cli.runtime.reporting import Reporter
from brics_cli.training.images import TrainingImages
from brics_cli.training.order import SampleOrder
from brics_cli.training.resuming import (
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
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.differences import differences
from brics_cli.workspace.naming import RUN, form_of_output

VALIDATION_IMAGES = 2048
DEFAULT_DIFFUSION_RECIPE = "brics-dit-s"


@dataclass(frozen=True)
class TrainOptions:
    """What a training command was asked for; None is "not given". `data` is a collection or a key-code store; `subset`
    chooses where it holds several collections."""

    data: str | None = None
    subset: str | None = None
    image_field: str | None = None
    recipe: str | None = None
    steps: int | None = None
    seed: int | None = None
    overrides: Sequence[str] = ()
    val: str | None = None
    out: Path | None = None
    resume: Path | None = None
    overwrite: bool = False
    init_from: Path | None = None


@dataclass(frozen=True)
class AutoencoderPlan:
    """A run of `train-ae`. `resume`: `artefact` is there already, and is continued."""

    recipe: AutoencoderRecipe
    collection: Collection
    val: Collection | None
    artefact: Artefact
    resume: bool
    init_from: Path | None = None

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
        workers = num_workers or default_num_workers()
        images = self._opened(self.collection, workers, reporter)
        if self.val is None:
            shards, val_samples = images.split(val_fraction=self.recipe.data.val_fraction)
            val_images = images
            reporter.message(f"validating on {len(val_samples):,} images, held out by hash of their key")
        else:
            shards, _ = images.split(val_fraction=None)
            val_images = self._opened(self.val, workers, reporter)
            val_samples = np.concatenate(val_images.split(val_fraction=None)[0])
        order = SampleOrder(shards, seed=self.recipe.training.seed, window=self.recipe.data.shuffle_window)
        spread = np.linspace(0, len(val_samples) - 1, min(len(val_samples), VALIDATION_IMAGES)).round().astype(int)
        return images, val_images, val_samples[spread], order

    def _opened(self, collection: Collection, num_workers: int, reporter: Reporter) -> TrainingImages:
        data = self.recipe.data
        images = TrainingImages(
            collection, transform=data.transform, size=self.recipe.model.image_size, num_workers=num_workers
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
class DiffusionPlan:
    """A run of `train-diffusion`."""

    recipe: DiffusionRecipe
    store: KeyCodeStore
    artefact: Artefact
    resume: bool
    init_from: Path | None = None

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


def plan_autoencoder(options: TrainOptions, *, workspace: Workspace, reporter: Reporter) -> AutoencoderPlan:
    """Resolve what `train-ae` was asked for; images left out are the workspace's newest shards.

    Raises UsageError (recipe, settings, data), ArtefactError (no shards, or a run to resume is not one or has other
    data now).
    """
    kind: Kind = "autoencoder"
    if options.resume is not None:
        artefact, recipe = _run_to_resume(options, kind=kind, reporter=reporter)
        assert isinstance(recipe, AutoencoderRecipe)
        check_perceptual_weights(recipe.loss)
        val = reopen_collection(artefact, "validation", workspace, reporter) if artefact.parent("validation") else None
        collection = reopen_collection(artefact, "collection", workspace, reporter)
        return AutoencoderPlan(recipe, collection, val, artefact, resume=True, init_from=init_of(artefact))
    path = options.data
    if path is None:
        newest = workspace.newest("shards")
        reporter.message(f"DATA not given: using {newest.path}")
        path = str(newest.path)
    collection = open_collection(
        path, subset=options.subset, labels="none", image_field=options.image_field, reporter=reporter
    )
    reporter.message(f"{collection.path}: {collection.describe()}")
    name = options.recipe
    if name is None:
        side = median_side(collection)
        name = default_autoencoder_recipe(side)
        reporter.message(f"--recipe not given: using {name} (the median image side is {side} px)")
    recipe = _load(name, options, kind=kind)
    assert isinstance(recipe, AutoencoderRecipe)
    check_perceptual_weights(recipe.loss)
    _check_init(options, recipe)
    val = open_collection(options.val, labels="none", reporter=reporter) if options.val is not None else None
    if val is not None:
        reporter.message(f"validating on {val.path}: {val.describe()}")
    parents = [Parent("collection", collection.path, identity_of(collection, reporter))]
    if val is not None:
        parents.append(Parent("validation", val.path, identity_of(val, reporter)))
    artefact = _new_artefact(kind, recipe, parents, options, workspace)
    begun = None if options.overwrite else begun_alike(artefact, recipe)
    return AutoencoderPlan(
        recipe, collection, val, begun or artefact, resume=begun is not None, init_from=options.init_from
    )


def plan_diffusion(options: TrainOptions, *, workspace: Workspace, reporter: Reporter) -> DiffusionPlan:
    """Resolve what `train-diffusion` was asked for; the store left out is the workspace's newest.

    Raises UsageError (recipe, settings), ArtefactError (no store, a damaged one, or one that changed).
    """
    kind: Kind = "diffusion"
    if options.resume is not None:
        artefact, recipe = _run_to_resume(options, kind=kind, reporter=reporter)
        assert isinstance(recipe, DiffusionRecipe)
        store = reopen_store(artefact, workspace)
        return DiffusionPlan(recipe, store, artefact, resume=True, init_from=init_of(artefact))
    path = options.data
    if path is None:
        newest = workspace.newest("store")
        reporter.message(f"CODES not given: using {newest.path}")
        path = str(newest.path)
    store = KeyCodeStore(path)
    name = options.recipe
    if name is None:
        name = DEFAULT_DIFFUSION_RECIPE
        reporter.message(f"--recipe not given: using {name}")
    recipe = _load(name, options, kind=kind)
    assert isinstance(recipe, DiffusionRecipe)
    _check_init(options, recipe)
    parents = [Parent("store", str(Path(path).resolve()), store.sha256)]
    autoencoder = store.artefact.parent("autoencoder")
    if autoencoder is not None:
        parents.append(autoencoder)
    artefact = _new_artefact(kind, recipe, parents, options, workspace)
    begun = None if options.overwrite else begun_alike(artefact, recipe)
    return DiffusionPlan(recipe, store, begun or artefact, resume=begun is not None, init_from=options.init_from)


def _load(name: str, options: TrainOptions, *, kind: str) -> Recipe:
    recipe = load_recipe(
        name, kind=kind, overrides=options.overrides, training__steps=options.steps, training__seed=options.seed
    )
    check_batch(recipe.training.batch_size, accumulate=recipe.training.accumulate)
    return recipe


def _check_init(options: TrainOptions, recipe: Recipe) -> None:
    """Raise ArtefactError when the run to start from is none, or has another architecture than `recipe`."""
    if options.init_from is None:
        return
    theirs = read_model_config(options.init_from, kind=recipe.kind)[0]
    part = "model" if isinstance(recipe, AutoencoderRecipe) else "denoiser"
    ours = getattr(recipe, part).model_dump(mode="json")
    differing = differences(flatten(theirs.get(part, {})), flatten(ours))
    if differing:
        raise ArtefactError(
            f"{options.init_from} has another architecture than recipe {recipe.name}: {'; '.join(differing[:3])}",
            next="Take its recipe: --recipe RUN/config.yaml.",
        )


def _new_artefact(
    kind: Kind, recipe: Recipe, parents: list[Parent], options: TrainOptions, workspace: Workspace
) -> Artefact:
    if options.out is not None:
        form_of_output(options.out, RUN)
    path = options.out if options.out is not None else workspace.new_run_path(kind, recipe.name)
    if options.init_from is not None:
        directory = read_model_config(options.init_from, kind=kind)[1]
        parents.append(Parent("init", str(options.init_from.resolve()), sha256_of_file(directory / WEIGHTS_NAME)))
    return Artefact(kind, path, now(), complete=False, parents=tuple(parents), details={"recipe": recipe.name})


def _run_to_resume(options: TrainOptions, *, kind: str, reporter: Reporter) -> tuple[Artefact, Recipe]:
    assert options.resume is not None
    given = {
        "the data": options.data,
        "--subset": options.subset,
        "--image-field": options.image_field,
        "--recipe": options.recipe,
        "--seed": options.seed,
        "--val": options.val,
        "--out": options.out,
        "--init-from": options.init_from,
    }
    refused = [name for name, value in given.items() if value is not None]
    if refused:
        raise UsageError(
            f"--resume goes on with the run's own settings, so it cannot be given with {', '.join(refused)}",
            next="--steps and --set may change; for anything else start a new run with --init-from.",
        )
    artefact = open_for_resume(options.resume, kind=kind)
    recipe = resumed_recipe(
        options.resume, kind=kind, overrides=options.overrides, steps=options.steps, reporter=reporter
    )
    check_batch(recipe.training.batch_size, accumulate=recipe.training.accumulate)
    return artefact, recipe
