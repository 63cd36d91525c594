"""What `brics eval` compares with what, when a path is left out: found in the workspace, through the lineage.

`pairs` (PSNR, SSIM, LPIPS, rFID): the newest key-code store with the collection it was encoded from. `sets` (FID,
CLIP-FID, ...): the newest samples with the collection that their autoencoder was trained on. The transform and the
size that made the codes apply to the collection as well, so that both sides show the same square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.opening import collection_exists
from brics_cli.lineage.origins import Origin, store_origin, training_origin
from brics_cli.workspace import Artefact, Workspace, read_provenance

Compares = Literal["pairs", "sets"]

_LEFT_OUT = {
    "pairs": "the collection that its key codes were encoded from",
    "sets": "the collection that its autoencoder was trained on",
}


@dataclass(frozen=True)
class ComparisonInputs:
    """The two paths to read, and how a collection becomes square: None where nothing says so (taken as it is)."""

    real: str
    fake: str
    transform: str | None
    size: int | None


def comparison_inputs(
    compares: Compares,
    *,
    workspace: Workspace,
    real: str | Path | None = None,
    fake: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ComparisonInputs:
    """The inputs of one kind of comparison; what was left out is looked up and `say` is told what was found.

    Raises UsageError for a path that is not there, ArtefactError when the workspace holds nothing to take or when
    `fake` does not say where it is from.
    """
    for path in (real, fake):
        if path is not None and not collection_exists(path):
            raise UsageError(f"no such file or folder: {path}")
    made: Artefact | None
    if fake is None:
        newest = workspace.newest("store" if compares == "pairs" else "samples")
        fake_path, made = str(newest.path), newest
        say(f"--fake not given: using {fake_path}")
    else:
        fake_path, made = str(fake), _made_by_brics(fake)
    origin = None if made is None else _origin(made, compares, workspace=workspace, needed=real is None)
    if real is not None:
        if origin is None:  # a foreign --fake: perhaps --real is ours and says which square it shows
            artefact = _made_by_brics(real)
            origin = None if artefact is None else _origin(artefact, compares, workspace=workspace, needed=False)
        real_path = str(real)
    else:
        if made is not None and made.kind in {"samples", "diffusion"} and compares == "pairs":
            raise ArtefactError(
                f"{fake_path} holds samples, which have no originals to be paired with"
                if made.kind == "samples"
                else f"{fake_path} is a diffusion run, and what is drawn from it has no originals to be paired with",
                next="Measure them with --metric fid or --metric clip-fid, or give --fake CODES.",
            )
        if origin is None:
            raise ArtefactError(f"{fake_path} does not say what it was made from", next="Give --real PATH.")
        real_path = origin.collection.path
        if not collection_exists(real_path):
            raise ArtefactError(
                f"{real_path}, {_LEFT_OUT[compares]}, is not there any more", next="Give --real PATH where it is now."
            )
        say(f"--real not given: using {real_path}, {_LEFT_OUT[compares]}")
    return ComparisonInputs(
        real=real_path,
        fake=fake_path,
        transform=origin.transform if origin else None,
        size=origin.size if origin else None,
    )


def _origin(artefact: Artefact, compares: Compares, *, workspace: Workspace, needed: bool) -> Origin | None:
    """Where `artefact` comes from. Samples have no originals: asked to pair them by default, the answer is None."""
    try:
        if artefact.kind in {"store", "reconstructions"}:
            # Their originals are what was encoded, whatever the metric: FID of these is reconstruction FID.
            return store_origin(artefact, workspace=workspace)
        if compares == "pairs" and needed:
            return None
        return training_origin(artefact, workspace=workspace)
    except ArtefactError:
        if needed:
            raise
        return None


def _made_by_brics(path: str | Path) -> Artefact | None:
    path = Path(path)
    return read_provenance(path) if path.exists() else None
