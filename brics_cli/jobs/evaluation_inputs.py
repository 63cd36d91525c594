"""The two sides of `brics eval`: opened, paired by key, and what cannot be measured on them refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brics_cli.data.sources.npz import holds_images
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.jobs.evaluation_pass import Input, Machinery
from brics_cli.metrics.pairing import Pairing, match_keys
from brics_cli.metrics.registry import Metric, smallest_number
from brics_cli.metrics.report import EvaluationReport
from brics_cli.metrics.statistics import SavedStatistics, read_statistics
from brics_cli.streams.comparison import ComparisonInputs
from brics_cli.streams.drawn import DrawSettings, draw_images
from brics_cli.streams.images import ImageStream, open_images
from brics_cli.streams.origins import ancestor
from brics_cli.workspace import Workspace, read_provenance


def open_input(
    path: str, inputs: ComparisonInputs, machinery: Machinery, workspace: Workspace, draw: DrawSettings
) -> Input:
    """Images of a collection, a store or a diffusion run, or saved statistics."""
    if path.endswith(".npz") and not holds_images(Path(path)):
        return read_statistics(Path(path))
    made = read_provenance(Path(path)) if Path(path).exists() else None
    if made is not None and made.kind == "diffusion":
        return draw_images(
            Path(path), draw, workspace=workspace, device=machinery.device, batch_size=machinery.batch_size
        )
    return open_images(
        path,
        workspace=workspace,
        transform=inputs.transform,
        size=inputs.size,
        device=machinery.device,
        batch_size=machinery.batch_size,
        num_workers=machinery.num_workers,
        reporter=machinery.reporter,
    )


def pair_inputs(real: Input, fake: Input, group: Sequence[Metric], report: EvaluationReport) -> Pairing:
    """Partners by key where a metric of pairs wants them; otherwise everything is without a partner."""
    sizes = [len(side) if isinstance(side, ImageStream) else 0 for side in (real, fake)]
    nobody = Pairing([], [], list(range(sizes[0])), list(range(sizes[1])))
    if not isinstance(real, ImageStream) or not isinstance(fake, ImageStream):
        return nobody
    if not any(chosen.compares == "pairs" for chosen in group):
        return nobody
    pairing = match_keys(real.keys, fake.keys)
    if not len(pairing):
        return nobody
    report.unmatched_real = [real.keys[position] for position in pairing.unmatched_real]
    report.unmatched_fake = [fake.keys[position] for position in pairing.unmatched_fake]
    return pairing


def why_not(chosen: Metric, real: Input, fake: Input, pairing: Pairing, machinery: Machinery) -> UsageError | None:
    """Why `chosen` has no figure on these inputs, as far as can be said before reading them; else None."""
    if chosen.compares == "codes":
        if isinstance(fake, ImageStream) and fake.kind == "store":
            return None
        return UsageError(
            f"{chosen.title} is of a key-code store, and {fake.path} is none", next="Give --fake CODES.h5."
        )
    if chosen.compares == "pairs":
        if isinstance(real, SavedStatistics) or isinstance(fake, SavedStatistics):
            return UsageError(f"{chosen.title} needs pairs of images, and saved statistics hold none")
        if not len(pairing):
            return UsageError(
                f"no key of {_example(real)} matches one of {_example(fake)}",
                next="PSNR, SSIM and LPIPS need pairs: images of the same key on both sides.",
            )
        return None
    for side, source in (("real", real), ("fake", fake)):
        if isinstance(source, SavedStatistics):
            if chosen.family != "frechet" and not (chosen.family == "inception-score" and side == "real"):
                return UsageError(
                    f"{chosen.title} needs the {side} images themselves, and {source.path} holds a mean and a "
                    "covariance alone",
                    next=f"Give images with --{side}, or measure fid, clip-fid or fd-dinov2.",
                )
            continue
        num = min(len(source), machinery.limit or len(source))
        smallest = smallest_number(chosen, machinery.settings)
        if num < smallest:
            plural = "s" if smallest > 1 else ""
            return UsageError(
                f"{chosen.title} needs at least {smallest} image{plural} on each side, {source.path} gives {num}"
            )
    return None


def _example(stream: ImageStream) -> str:
    return f"{stream.path} ({stream.keys[0]!r}, …)" if stream.keys else f"{stream.path} (which is empty)"


def model_behind(path: str, workspace: Workspace) -> dict[str, Any] | None:
    """The trained model that what stands at `path` came from, and the step it was at; None when nobody knows.

    A run that has been trained on since no longer has the weights that made it, and is not named.
    """
    try:
        made = read_provenance(Path(path)) if Path(path).exists() else None
        for kind in ("diffusion", "autoencoder"):
            run = None if made is None else ancestor(made, kind, workspace=workspace)  # type: ignore[arg-type]
            if run is not None:
                details = run.details
                return {"kind": kind, "path": str(run.path.resolve()), "step": details.get("step")}
    except ArtefactError:
        pass
    return None
