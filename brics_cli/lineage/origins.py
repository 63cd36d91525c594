"""What images were made from: from any artefact along its parents to the store, the autoencoder, the collection.

A parent is looked for where its child says it was and, should it have moved, in the workspace by its sha256.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ArtefactError
from brics_cli.workspace import Artefact, Kind, Parent, Workspace, read_provenance


@dataclass(frozen=True)
class Origin:
    """A collection, and the square that something made of its images: `transform` and `size` in pixels."""

    collection: Parent
    transform: str
    size: int


def ancestor(artefact: Artefact, kind: Kind, *, workspace: Workspace) -> Artefact | None:
    """The nearest artefact of `kind` among `artefact` and what it was made from, breadth first; None: none found."""
    waiting = deque([artefact])
    while waiting:
        candidate = waiting.popleft()
        if candidate.kind == kind:
            return candidate
        waiting.extend(
            found for parent in candidate.parents if (found := _locate(parent, workspace=workspace)) is not None
        )
    return None


def store_origin(artefact: Artefact, *, workspace: Workspace) -> Origin | None:
    """The collection whose key-code store `artefact` is or was decoded from; None when it has no such store."""
    store_artefact = ancestor(artefact, "store", workspace=workspace)
    if store_artefact is None:
        return None
    store = KeyCodeStore(store_artefact.path)
    return _origin(store_artefact, transform=store.transform, size=store.image_size, workspace=workspace)


def training_origin(artefact: Artefact, *, workspace: Workspace) -> Origin | None:
    """The collection that the autoencoder behind `artefact` was trained on; None when it has no such autoencoder.

    Raises ArtefactError when the autoencoder's files are damaged.
    """
    autoencoder = ancestor(artefact, "autoencoder", workspace=workspace)
    if autoencoder is None:
        return None
    config, directory = read_model_config(autoencoder.path, kind="autoencoder")
    try:
        transform, size = str(config["transform"]), int(config["model"]["image_size"])
    except (KeyError, TypeError, ValueError):
        raise ArtefactError(f"{directory / 'config.json'} does not say the transform and the image size") from None
    return _origin(autoencoder, transform=transform, size=size, workspace=workspace)


def _origin(artefact: Artefact, *, transform: str, size: int, workspace: Workspace) -> Origin | None:
    collection = artefact.parent("collection") or artefact.parent("shards")
    if collection is None:
        return None
    return Origin(replace(collection, path=workspace.collection_path(collection)), transform, size)


def _locate(parent: Parent, *, workspace: Workspace) -> Artefact | None:
    """The artefact that `parent` names, checked by sha256 where it states its own; None when it is not there."""
    try:
        there = read_provenance(Path(parent.path))
    except ArtefactError:
        there = None
    if there is not None and there.details.get("sha256", parent.sha256) == parent.sha256:
        return there
    if parent.kind in {"collection", "shards"}:
        return None
    return next(
        (
            artefact
            for artefact in workspace.artefacts()
            if artefact.kind == parent.kind and artefact.details.get("sha256") == parent.sha256
        ),
        None,
    )
