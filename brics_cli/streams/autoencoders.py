"""The autoencoder of a key-code store: the one it was encoded with, and no other."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from brics_cli.core.autoencoder import Autoencoder, load_autoencoder
from brics_cli.errors import ArtefactError
from brics_cli.store import KeyCodeStore
from brics_cli.workspace import Workspace


def load_store_autoencoder(
    store: KeyCodeStore,
    *,
    workspace: Workspace,
    ae_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder whose weights made `store`, in eval mode on `device`.

    Looked for at `ae_path` when given, else where the store says it was, else in `workspace` by its sha256 (it may
    have moved). Raises ArtefactError when it is not found, or when `ae_path` holds other weights.
    """
    sha256 = store.autoencoder["sha256"]
    if ae_path is not None:
        autoencoder = load_autoencoder(Path(ae_path), device=device)
        if autoencoder.weights_sha256 != sha256:
            raise ArtefactError(
                f"{store.path} is a store of another autoencoder (sha256 {sha256[:12]}) than {ae_path} "
                f"(sha256 {autoencoder.weights_sha256[:12]})",
                next="Leave --ae out to use the one it was made with, or encode again with this one.",
            )
        return autoencoder
    recorded = store.artefact.parent("autoencoder")
    if recorded is not None and Path(recorded.path).exists():
        with suppress(ArtefactError):  # what is at that path now may be damaged or something else
            autoencoder = load_autoencoder(Path(recorded.path), device=device)
            if autoencoder.weights_sha256 == sha256:
                return autoencoder
    moved = workspace.with_sha256("autoencoder", sha256)
    if moved is not None:
        autoencoder = load_autoencoder(moved.path, device=device)
        if autoencoder.weights_sha256 == sha256:
            return autoencoder
    was_at = f", which was at {recorded.path}," if recorded is not None else ""
    raise ArtefactError(
        f"the autoencoder of {store.path} (sha256 {sha256[:12]}){was_at} is not found",
        next="Give it with --ae RUN, or encode the collection again.",
    )
