"""A training run before its first step: recipe, data, where it goes, what it continues. All that can be wrong is
found here, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.losses import perceptual_weights
from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.autoencoder.sizes import check_image_memory, check_memory
from brics_cli.codes import KeyCodeStore
from brics_cli.config import (
    AutoencoderRecipe,
    DiffusionRecipe,
    Recipe,
    default_autoencoder_recipe,
    general_autoencoder_recipes,
    list_recipes,
    load_recipe,
)
from brics_cli.config.changes import Changed, changes, flatten, label, run_name
from brics_cli.config.loading import recipe_from_values
from brics_cli.config.names import Precision
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import Collection, median_side, open_collection
from brics_cli.images.loader import default_num_workers
from brics_cli.images.selection import spread
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.distributed import World, check_batch, num_local_processes
from brics_cli.runtime.precision import say_training_precision
from brics_cli.runtime.reporting import Reporter
from brics_cli.runtime.sharing import can_share
from brics_cli.training.codes import settled_for_store
from brics_cli.training.estimate import Estimate, Rehearsal, estimate, rehearse_autoencoder, rehearse_diffusion
from brics_cli.training.images import TrainingImages
from brics_cli.training.loggers import check_loggers
from brics_cli.training.order import SampleOrder
from brics_cli.training.resuming import (
    CONFIG_FILE,
    begun_alike,
    changes_again,
    identity_of,
    init_of,
    open_for_resume,
    reopen_collection,
    reopen_store,
    resumed_recipe,
    was_killed_at_birth,
)
from brics_cli.training.state import checkpoints, step_of
from brics_cli.wording import count, duration
from brics_cli.workspace import Artefact, Kind, Parent, Workspace, sha256_of_file
from brics_cli.workspace.artefacts import differences, now
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.naming import CONFIG_NAME, RUN, WEIGHTS_NAME, form_of_output
from brics_cli.workspace.outputs import check_claim, check_output
from brics_cli.workspace.places import locate, reference

VALIDATION_IMAGES = 2048
WARMUP_SHARE = 10
"""A run that starts from another's weights, by that one's recipe, warms up for a tenth of its steps at most: the
recipe's own number is for its own length."""
DEFAULT_DIFFUSION_RECIPE = "brics-dit-s"
NO_ARCHITECTURE = ("bottleneck.noise", "bottleneck.noise_varies", "bottleneck.init", "bottleneck.init_std")
"""Settings of a model that training alone sees: a run that starts from another's weights may have its own."""
CPU_RECIPE = "tiny"
"""What is trained on a CPU unless a recipe is named, an autoencoder or a diffusion model."""


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
    device: str = "auto"

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
    device: torch.device

    @property
    def steps_left(self) -> int:
        """Those that the run has still to go."""
        done = checkpoints(self.artefact.path) if self.resume else []
        return max(0, self.recipe.training.steps - (step_of(done[-1]) if done else 0))


@dataclass(frozen=True)
class AutoencoderPlan(Plan):
    """A run of `train-ae`."""

    recipe: AutoencoderRecipe
    collection: Collection
    val: Collection | None

    def estimate(self) -> Estimate:
        """What it costs."""
        rehearse = partial(rehearse_autoencoder, self.recipe)
        return estimate(rehearse, steps=self.steps_left, device=self.device)

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
        self, *, num_workers: int | None, world: World, reporter: Reporter
    ) -> tuple[TrainingImages, TrainingImages, np.ndarray, SampleOrder]:
        """The training images, the validation images with the samples to use of them, and the training order."""
        images = open_images(self.recipe, self.collection, num_workers=num_workers, world=world, reporter=reporter)
        if self.val is None:
            shards, val_samples = images.split(val_fraction=self.recipe.data.val_fraction)
            val_images = images
            reporter.message(f"validating on {len(val_samples):,} images, held out by hash of their key")
        else:
            shards, _ = images.split(val_fraction=None)
            val_images = open_images(self.recipe, self.val, num_workers=num_workers, world=world, reporter=reporter)
            val_samples = np.concatenate(val_images.split(val_fraction=None)[0])
        order = order_of(images, shards, self.recipe)
        return images, val_images, val_samples[spread(len(val_samples), VALIDATION_IMAGES)], order


@dataclass(frozen=True)
class DiffusionPlan(Plan):
    """A run of `train-diffusion`."""

    recipe: DiffusionRecipe
    store: KeyCodeStore

    def estimate(self) -> Estimate:
        """What it costs. Raises MachineError when its model has no room here."""
        rehearse = partial(rehearse_diffusion, self.recipe, self.store)
        return estimate(rehearse, steps=self.steps_left, device=self.device)

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

    Raises UsageError (device, recipe, settings, data), ArtefactError (weights that the loss needs, no shards, or a run
    to resume is not one or has other data now), MachineError (no such device, or no room for the model),
    WouldOverwriteError; of options and output before any image is looked at.
    """
    device = resolve_device(asked.device)
    say_training_precision(asked.precision, device, reporter)

    def checked(recipe: Recipe) -> AutoencoderRecipe:
        assert isinstance(recipe, AutoencoderRecipe)
        perceptual_weights(recipe.loss)
        _check_init(asked, recipe)
        return recipe

    if asked.resume is not None:
        artefact, theirs = _run_to_resume(asked, "autoencoder", reporter)
        settled = checked(theirs)
        check_recipe(settled, device=device)
        val = reopen_collection(artefact, "validation", workspace, reporter) if artefact.parent("validation") else None
        collection = reopen_collection(artefact, "collection", workspace, reporter)
        return AutoencoderPlan(artefact, True, init_of(artefact), settled, device, collection, val)
    _check_out(asked, kind="autoencoder")
    asked = _with_init_here(asked, reporter)
    start = None if asked.init_from is None else _recipe_of(asked.init_from)
    known = asked.recipe or start or (CPU_RECIPE if device.type == "cpu" else None)  # before any image is looked at
    recipe = None if known is None else checked(_load(known, asked, kind="autoencoder"))
    if known is None:
        _check_any(general_autoencoder_recipes().values(), lambda name: checked(_load(name, asked, kind="autoencoder")))
    path = asked.data
    if path is None:
        path = str(workspace.resolve("shards", argument="DATA", wanted="training", reporter=reporter))
    collection = open_collection(
        path, subset=asked.subset, labels="none", image_field=asked.image_field, reporter=reporter
    )
    reporter.message(f"{collection.path}: {collection.describe()}")
    val = None if asked.val is None else open_collection(asked.val, labels="none", reporter=reporter)
    if val is not None:
        reporter.message(f"validating on {val.path}: {val.describe()}")
    if asked.recipe is None or recipe is None:
        recipe = checked(_recipe_for(collection, asked, start=start, device=device, reporter=reporter))
    check_recipe(recipe, device=device)
    parents = [Parent("collection", collection.path, identity_of(collection, reporter))]
    if val is not None:
        parents.append(Parent("validation", val.path, identity_of(val, reporter)))
    return AutoencoderPlan(*_start(recipe, parents, asked, workspace), recipe, device, collection, val)


def _check_any(names: Iterable[str], check: Callable[[str], object]) -> None:
    """Raise what `check` raises of the first of the recipes that images may choose, when it raises of each."""
    refused = []
    for name in names:
        try:
            check(name)
        except BricsError as error:
            refused.append(error)
        else:
            return
    raise refused[0]


def _recipe_for(
    collection: Collection, asked: TrainOptions, *, start: str | None, device: torch.device, reporter: Reporter
) -> Recipe:
    """That of the model to start from, `start`, at the size of smaller images and with a warm-up that fits the run's
    length; else one by images and device."""
    side = median_side(collection)
    if start is None:
        return _choose(
            default_autoencoder_recipe(side), rehearse_autoencoder, asked, kind="autoencoder",
            why=f" (the median image side is {side} px)", device=device, reporter=reporter,
        )  # fmt: skip
    recipe = _load(start, asked, kind="autoencoder")
    assert isinstance(recipe, AutoencoderRecipe)
    fitted, at = {}, ""  # unless --set says otherwise
    size = recipe.model.largest_size(min(side, recipe.model.image_size))
    if size < recipe.model.image_size and recipe.model.tied_to_size is None:
        fitted["model.image_size"] = size
    most = recipe.training.steps // WARMUP_SHARE
    if recipe.optimiser.warmup_steps > most:
        fitted["optimiser.warmup_steps"] = most
    if fitted:
        settings = [f"{key}={value}" for key, value in fitted.items()]
        recipe = _load(start, replace(asked, overrides=[*settings, *asked.overrides]), kind="autoencoder")
        assert isinstance(recipe, AutoencoderRecipe)
    if "model.image_size" in fitted:
        at = f" at {recipe.model.image_size} px (the median image side is {side} px)"
    if "optimiser.warmup_steps" in fitted:
        at += f", with {count(recipe.optimiser.warmup_steps, 'step')} of warm-up for {recipe.training.steps:,} in all"
    reporter.message(f"--recipe not given: using {start}, that of --init-from{at}")
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

    Raises UsageError (device, recipe, settings), ArtefactError (no store, a damaged one, or one that changed),
    WouldOverwriteError; of options and output before anything is read.
    """
    device = resolve_device(asked.device)
    say_training_precision(asked.precision, device, reporter)
    if asked.resume is not None:
        artefact, settled = _run_to_resume(asked, "diffusion", reporter)
        assert isinstance(settled, DiffusionRecipe)
        return DiffusionPlan(artefact, True, init_of(artefact), settled, device, reopen_store(artefact, workspace))
    _check_out(asked, kind="diffusion")
    asked = _with_init_here(asked, reporter)
    default = CPU_RECIPE if device.type == "cpu" else DEFAULT_DIFFUSION_RECIPE
    recipe = _load(asked.recipe or default, asked, kind="diffusion")
    store = KeyCodeStore(workspace.resolve("store", asked.data, argument="CODES", wanted="training", reporter=reporter))
    if asked.recipe is None:
        recipe = _choose(
            DEFAULT_DIFFUSION_RECIPE, lambda recipe, on, num: rehearse_diffusion(recipe, store, on, num), asked,
            kind="diffusion", device=device, reporter=reporter,
        )  # fmt: skip
    assert isinstance(recipe, DiffusionRecipe)
    _check_init(asked, recipe)
    parents = [Parent("store", reference(store.path), store.sha256)]
    autoencoder = store.artefact.parent("autoencoder")
    if autoencoder is not None:
        parents.append(autoencoder)
    settled = settled_for_store(recipe, store)
    return DiffusionPlan(*_start(settled, parents, asked, workspace, named=recipe), settled, device, store)


def check_recipe(recipe: AutoencoderRecipe, *, device: torch.device) -> None:
    """Raise MachineError when the recipe's model cannot be trained in the memory there is, before any is taken."""
    what = f"recipe {recipe.name}"
    check_image_memory(recipe.model.image_size, what=what)
    check_memory(lambda: build_autoencoder(recipe.model), device=device, what=what)


def _choose(
    name: str,
    rehearse: Callable[[Any, torch.device, int], Rehearsal],
    asked: TrainOptions,
    *,
    kind: Kind,
    why: str = "",
    device: torch.device,
    reporter: Reporter,
) -> Recipe:
    """The recipe `name`, which the data ask for; on a CPU the small one. The reporter hears what each costs."""
    if device.type != "cpu":
        reporter.message(f"--recipe not given: using {name}{why}")
        return _load(name, asked, kind=kind)
    small, shipped = _load(CPU_RECIPE, asked, kind=kind), load_recipe(name, kind=kind)
    ours, theirs = (
        estimate(partial(rehearse, each), steps=each.training.steps, device=device, measure=each is small)
        for each in (small, shipped)
    )
    reporter.message(
        f"--recipe not given: using {small.name}, about {duration(ours.seconds)} on this CPU. On a GPU it would be "
        f"{name}{why}: about {duration(theirs.gpu.seconds)} on an {theirs.gpu.name}, {duration(theirs.seconds)} here"
    )
    return small


def open_images(
    recipe: AutoencoderRecipe,
    collection: Collection,
    *,
    num_workers: int | None = None,
    world: World | None = None,
    reporter: Reporter,
) -> TrainingImages:
    """The images of a collection as the recipe transforms them, in memory where they fit; what fails is said.

    All processes of `world` must come here.
    """
    data, budget_gib = recipe.data, recipe.training.read_ahead_gib
    images = TrainingImages(
        collection,
        transform=data.transform,
        size=recipe.model.image_size,
        num_workers=num_workers or default_num_workers(),
    )
    num_processes = num_local_processes()
    copies = 1 if can_share() else num_processes
    if images.cache(limit_gib=data.cache_gib / copies, world=world, reporter=reporter):
        assert images.cached is not None
        reporter.message(f"{len(images):,} images kept in memory ({images.cached.nbytes / 2**20:,.0f} MiB)")
    else:
        window = min(data.shuffle_window, len(images))
        limited = f"{window:,}"
        if (most := images.window_limit(budget_gib)) is not None and most < window:
            limited = f"{most:,}, as training.read_ahead_gib {budget_gib:g} says"
        reporter.message(
            f"{len(images):,} images would take {copies * images.num_bytes / 2**30:,.1f} GiB decoded, more than "
            f"data.cache_gib {data.cache_gib:g}: read in the order of their files, shuffled over {limited}"
        )
    images.warn_about_failures(reporter)
    return images


def order_of(images: TrainingImages, shards: Sequence[np.ndarray], recipe: AutoencoderRecipe) -> SampleOrder:
    """The order of the samples in `shards`."""
    most = images.window_limit(recipe.training.read_ahead_gib)
    return SampleOrder(shards, seed=recipe.training.seed, window=recipe.data.shuffle_window, most=most)


def _load(recipe: str | Path | Recipe, asked: TrainOptions, *, kind: Kind) -> Recipe:
    flags: dict[str, Any] = {"overrides": asked.settings, "training__steps": asked.steps, "training__seed": asked.seed}
    if isinstance(recipe, str | Path):
        loaded = load_recipe(str(recipe), kind=kind, **flags)
    else:
        values = recipe.model_dump(mode="json")
        loaded = recipe_from_values(values, kind=kind, source=f"recipe {recipe.name}", **flags)
    check_batch(loaded.training.batch_size, accumulate=loaded.training.accumulate)
    check_loggers(loaded.training.loggers)
    return loaded


def _base_of(recipe: Recipe, asked: TrainOptions) -> Recipe:
    """What a recipe differs from: the shipped one of its name, or else itself as it was given."""
    if recipe.name in list_recipes(recipe.kind):
        return load_recipe(recipe.name, kind=recipe.kind)
    if isinstance(asked.recipe, str | Path):
        return load_recipe(str(asked.recipe), kind=recipe.kind)
    return asked.recipe or recipe


def _with_init_here(asked: TrainOptions, reporter: Reporter) -> TrainOptions:
    """`asked` with the path of the model to start from, whatever names it."""
    if asked.init_from is None:
        return asked
    return replace(asked, init_from=locate(asked.init_from, reporter=reporter))


def _check_init(asked: TrainOptions, recipe: Recipe) -> None:
    """Raise ArtefactError when the model to start from is not there, or has another architecture than `recipe`,
    UsageError when there must be one."""
    if asked.init_from is None:
        frozen = isinstance(recipe, AutoencoderRecipe) and recipe.training.freeze_encoder
        if frozen and asked.resume is None:
            raise UsageError(
                "training.freeze_encoder keeps the encoder of another run", next="Give the run: --init-from RUN."
            )
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
            f"{reference(asked.init_from)} has another architecture than recipe {recipe.name}: "
            f"{'; '.join(differing[:3])}",
            next="Take its recipe: --recipe RUN/config.yaml.",
        )


def _check_out(asked: TrainOptions, *, kind: Kind) -> None:
    """Raise UsageError or WouldOverwriteError when no run can be made at `asked.out`, whatever its data are."""
    if asked.out is None:
        return
    form_of_output(asked.out, RUN)
    if was_killed_at_birth(asked.out):
        return
    inputs = [str(each) for each in (asked.data, asked.val, asked.init_from) if each is not None]
    check_claim(asked.out, kind=kind, overwrite=asked.overwrite, what="the run", inputs=inputs)


def _start(
    recipe: Recipe, parents: list[Parent], asked: TrainOptions, workspace: Workspace, *, named: Recipe | None = None
) -> tuple[Artefact, bool, Path | None]:
    """The run to make, whether an equal one has been begun there, and the run whose weights it starts from.

    It is called by the recipe `named`: as it was asked for, before brics settled what that leaves out.
    """
    details = _details(recipe, changes(_base_of(recipe, asked), named or recipe), step=0)
    path = asked.out or workspace.new_run_path(recipe.kind, run_name(details))
    if asked.init_from is not None:
        directory = read_model_config(asked.init_from, kind=recipe.kind)[1]
        parents.append(Parent("init", reference(asked.init_from), sha256_of_file(directory / WEIGHTS_NAME)))
    artefact = Artefact(recipe.kind, path, now(), complete=False, parents=tuple(parents), details=details)
    begun = None if asked.overwrite else begun_alike(artefact, recipe)
    if begun is None and asked.out is not None and not was_killed_at_birth(path):
        sources = [parent.path for parent in parents]
        check_output(path, overwrite=asked.overwrite, what="the run", kind=recipe.kind, inputs=sources, remove=False)
    return begun or artefact, begun is not None, asked.init_from


def _details(recipe: Recipe, changed: Changed, *, step: int) -> dict[str, Any]:
    """What a run says of itself from its beginning."""
    details = {"recipe": recipe.name, "changed": changed, "steps": recipe.training.steps}
    return details | {"summary": f"{label(details)}, step {step:,} of {recipe.training.steps:,}"}


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
    check_loggers(recipe.training.loggers)
    details = _details(recipe, changes_again(artefact, recipe), step=int(artefact.details.get("step", 0)))
    return replace(artefact, details=artefact.details | details), recipe
