"""Going on with a run: its settings, what has changed since, and its data."""

from __future__ import annotations

import json
from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes import KeyCodeStore
from brics_cli.config import Recipe, load_yaml
from brics_cli.config.changes import Changed, changes_of_values, flatten, read_changed
from brics_cli.config.loading import key_of, recipe_from_values
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import Collection, open_collection
from brics_cli.images.fingerprints import digests, fingerprint_of, known_digests
from brics_cli.runtime.distributed import is_first_process
from brics_cli.runtime.reporting import Reporter, command_line
from brics_cli.training.state import checkpoints, newest_checkpoint, read_counts
from brics_cli.workspace import Artefact, Parent, Workspace, read_provenance, sha256_of_file
from brics_cli.workspace.artefacts import differences
from brics_cli.workspace.naming import WEIGHTS_NAME
from brics_cli.workspace.places import locate

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"

FIXED = (
    *("model", "denoiser", "diffusion", "data.transform", "data.val_fraction", "data.shuffle_window"),
    *("gan.widths", "gan.norm", "training.batch_size", "training.seed", "training.val_fraction"),
    *("training.read_ahead_gib", "training.freeze_encoder", "training.shuffle_window"),
)
"""Settings that make a run what it is: with others its weights, or its place in the data, would mean something else."""
MAX_READ = 2**38
"""Bytes that are read before training starts, at most: minutes from a good disk."""
BY_LAYOUT = "its images are known by names and sizes alone, and whether they change cannot be told"
NOT_COMPARED = ("name", "about", "kind", "training.steps")
"""`--steps` is the one setting that may change without a word: more steps are why most runs are resumed."""


def open_for_resume(path: Path, *, kind: str) -> Artefact:
    """The artefact of a run to resume. Raises ArtefactError when `path` is not a run of `kind`."""
    artefact = read_provenance(path)
    if artefact is None or artefact.kind != kind or not (path / CONFIG_FILE).is_file():
        raise ArtefactError(f"{path} is not a run of kind {kind!r}", next="`brics status` lists the runs.")
    return artefact


def resumed_recipe(run: Path, *, kind: str, overrides: Sequence[str], steps: int | None, reporter: Reporter) -> Recipe:
    """The recipe that a resumed run goes on with: its config.yaml, `--set` and `--steps`.

    Compared with what its last checkpoint was trained with. Raises ArtefactError, naming each setting with both
    values, when config.yaml was edited and `--set` does not say the same again; UsageError for a setting that cannot
    change within a run.
    """
    path = run / CONFIG_FILE
    values = load_yaml(path)
    if kind == "autoencoder" and isinstance(values.get("training"), dict):
        values["training"].setdefault("read_ahead_gib", None)  # of an older brics: the order stays what it was
    recipe = recipe_from_values(values, kind=kind, source=str(path), overrides=overrides, training__steps=steps)
    if not checkpoints(run):
        return recipe  # nothing is trained yet: it may still become any run of its kind
    with newest_checkpoint(run) as checkpoint:
        trained = read_counts(checkpoint).settings
    now = settings_of(recipe)
    changed = [key for key in sorted(now.keys() & trained.keys()) if now[key] != trained[key]]

    def listed(keys: Names[str]) -> str:
        return "; ".join(differences({key: trained[key] for key in keys}, {key: now[key] for key in keys}))

    fixed = [key for key in changed if _is_fixed(key, trained, now)]
    if fixed:
        raise UsageError(
            f"{run} cannot go on with other settings of this kind: {listed(fixed)}",
            next=f"Start a new run from its weights: --init-from {command_line(run)}",
        )
    said = [key_of(override) for override in overrides]
    unsaid = [key for key in changed if not _is_in(key, said)]
    if unsaid:
        again, quoted = " ".join(_set_option(key, now[key]) for key in unsaid), command_line(run)
        raise ArtefactError(
            f"{path} has changed since {checkpoint.name}: {listed(unsaid)}",
            next=f"If that is meant, say it again: --resume {quoted} {again}; or start a new run: --init-from {quoted}",
        )
    if changed:
        reporter.message(f"settings that change from here on: {listed(changed)}")
    return recipe


def changes_again(artefact: Artefact, recipe: Recipe) -> Changed:
    """What the run `artefact` will differ in from the recipe it was started with, once it goes on with `recipe`."""
    flat = flatten(load_yaml(artefact.path / CONFIG_FILE))
    started_with = {key: was for key, (was, _) in read_changed(artefact.details).items()}
    return changes_of_values(flat | started_with, flatten(recipe.model_dump(mode="json")))


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint remembers of its recipe: dotted keys and their values, as JSON has them."""
    flat = flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in NOT_COMPARED}


def identity_of(collection: Collection, reporter: Reporter) -> str:
    """What a run remembers its data by, in the first process: the fingerprint, for which unknown images are read once.

    Of more than MAX_READ it is the layout, and the reporter hears that.
    """
    known = known_digests(collection)
    unknown = [index for index in range(len(collection.shards)) if index not in known]
    num_bytes = sum(collection.shards[index].size_bytes for index in unknown)
    if num_bytes > MAX_READ:
        reporter.warning(f"{collection.path}: {num_bytes / 2**30:,.0f} GiB are too much to read for it, so {BY_LAYOUT}")
        return collection.layout
    if not is_first_process():
        return ""
    return fingerprint_of(collection, known | digests(collection, unknown, reporter=reporter))


def begun_alike(artefact: Artefact, recipe: Recipe) -> Artefact | None:
    """What is at the path of `artefact` when the same command began it and did not finish: then that goes on."""
    begun = read_provenance(artefact.path)
    if begun is None or begun.kind != artefact.kind or begun.complete or not (artefact.path / CONFIG_FILE).is_file():
        return None
    was, now = ([(parent.kind, parent.sha256) for parent in each.parents] for each in (begun, artefact))
    if not is_first_process():  # the first one alone knows the identity of images
        was, now = ([(kind, "") for kind, _ in each] for each in (was, now))
    alike = was == now and load_yaml(artefact.path / CONFIG_FILE) == recipe.model_dump(mode="json")
    return begun if alike else None


def was_killed_at_birth(path: Path) -> bool:
    """Whether there are the first files of a run that was killed before it had a provenance, and not one other."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    others = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    return bool(names) and others <= {ENVIRONMENT_FILE, CONFIG_FILE} and (ENVIRONMENT_FILE in others or not others)


def init_of(artefact: Artefact) -> Path | None:
    """The run whose weights a run without a checkpoint starts from. Raises ArtefactError when they have changed."""
    parent = artefact.parent("init")
    if parent is None or checkpoints(artefact.path):
        return None
    weights = read_model_config(parent.path, kind=artefact.kind)[1] / WEIGHTS_NAME
    _check_unchanged(parent, sha256_of_file(weights), artefact)
    return Path(parent.path)


def reopen_collection(artefact: Artefact, kind: str, workspace: Workspace, reporter: Reporter) -> Collection:
    """The collection that a run was started on, as its parent `kind`. Raises ArtefactError when it has changed."""
    parent = _parent(artefact, kind)
    collection = open_collection(workspace.collection_path(parent), labels="none")
    if parent.sha256 == collection.layout:  # of an older brics, or a very large one
        reporter.warning(f"{artefact.path} recorded of {collection.path} no more than its layout: {BY_LAYOUT}")
    elif is_first_process():
        _check_unchanged(parent, identity_of(collection, reporter), artefact)
    return collection


def reopen_store(artefact: Artefact, workspace: Workspace) -> KeyCodeStore:
    """The store that a run was started on. Raises ArtefactError when it has changed."""
    parent = _parent(artefact, "store")
    found = workspace.located(parent)
    store = KeyCodeStore(locate(parent.path) if found is None else found.path)
    _check_unchanged(parent, store.sha256, artefact)
    return store


def _is_fixed(key: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key == "gan.weight":  # a discriminator cannot appear from nowhere, nor be dropped from the checkpoint
        return not (trained[key] and now[key])
    return _is_in(key, FIXED)


def _is_in(key: str, blocks: Names[str]) -> bool:
    """Whether the dotted `key` is one of `blocks`, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in blocks)


def _set_option(key: str, value: Any) -> str:
    """`--set KEY=VALUE` as a shell takes it; JSON is YAML."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return command_line("--set", f"{key}={text}")


def _parent(artefact: Artefact, kind: str) -> Parent:
    parent = artefact.parent(kind)
    if parent is None:
        raise ArtefactError(f"{artefact.path} does not say what it was trained on")
    return parent


def _check_unchanged(parent: Parent, sha256: str, artefact: Artefact) -> None:
    if sha256 != parent.sha256:
        raise ArtefactError(
            f"{parent.path} has changed since {artefact.path} was started on it",
            next="Start a new run with --init-from to go on with other data.",
        )
