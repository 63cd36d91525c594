"""The autoencoder of key codes: the one that made them, and no other."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder
from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ArtefactError
from brics_cli.workspace import Workspace


def load_store_autoencoder(
    store: KeyCodeStore,
    *,
    workspace: Workspace,
    ae_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder whose weights made `store`, as `load_autoencoder_of` finds it."""
    recorded = store.artefact.parent("autoencoder")
    return load_autoencoder_of(
        store.path,
        made_by="store",
        sha256=store.autoencoder["sha256"],
        recorded=recorded.path if recorded is not None else None,
        workspace=workspace,
        ae_path=ae_path,
        device=device,
    )


def load_autoencoder_of(
    codes_of: Path | str,
    *,
    made_by: str,
    sha256: str,
    recorded: Path | str | None,
    workspace: Workspace,
    ae_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder with weights `sha256`, in eval mode on `device`: the one behind the codes of `codes_of`.

    `made_by` is what `codes_of` is, in a word (store, model). Looked for at `ae_path` when given, else where it was
    `recorded` to be, else in `workspace` by its sha256 (it may have moved). Raises ArtefactError when it is not
    found, or when `ae_path` holds other weights.
    """
    if ae_path is not None:
        autoencoder = load_autoencoder(Path(ae_path), device=device)
        if autoencoder.weights_sha256 != sha256:
            raise ArtefactError(
                f"{codes_of} is a {made_by} of another autoencoder (sha256 {sha256[:12]}) than {ae_path} "
                f"(sha256 {autoencoder.weights_sha256[:12]})",
                next="Leave --ae out to use the one it was made with, or encode again with this one.",
            )
        return autoencoder
    if recorded is not None and Path(recorded).exists():
        with suppress(ArtefactError):  # what is at that path now may be damaged or something else
            autoencoder = load_autoencoder(Path(recorded), device=device)
            if autoencoder.weights_sha256 == sha256:
                return autoencoder
    moved = workspace.with_sha256("autoencoder", sha256)
    if moved is not None:
        autoencoder = load_autoencoder(moved.path, device=device)
        if autoencoder.weights_sha256 == sha256:
            return autoencoder
    was_at = f", which was at {recorded}," if recorded is not None else ""
    raise ArtefactError(
        f"the autoencoder of {codes_of} (sha256 {sha256[:12]}){was_at} is not found",
        next="Give it with --ae RUN, or encode the collection again.",
    )
