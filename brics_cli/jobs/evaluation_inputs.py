"""The two sides of `brics eval`: opened, paired by key, and what cannot be measured on them refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from brics_cli.codes.lineage import ComparisonInputs
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.evaluation.images import StoreStream, open_images
from brics_cli.evaluation.pairing import Pairing, match_keys
from brics_cli.evaluation.registry import Metric, smallest_number
from brics_cli.evaluation.report import EvaluationReport, Source
from brics_cli.evaluation.statistics import PICKLES, SavedStatistics, read_statistics
from brics_cli.images.opening import median_side
from brics_cli.images.reading import CollectionStream, ImageStream
from brics_cli.images.sources.npz import holds_images, read_headers
from brics_cli.jobs.evaluation_pass import Input, Machinery
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.drawn import DrawSettings, draw_images
from brics_cli.workspace import Workspace, read_provenance


def open_sides(
    inputs: ComparisonInputs,
    machinery: Machinery,
    report: EvaluationReport,
    workspace: Workspace,
    draw: DrawSettings,
    *,
    statistics_by: str | None,
) -> tuple[Input, Input]:
    """The real and the fake side; what they are is said, and added to the `report`."""
    reporter = machinery.reporter
    real, fake = (
        _open_side(path, inputs, machinery, workspace, draw, statistics_by) for path in (inputs.real, inputs.fake)
    )
    for name, source in (("real", real), ("fake", fake)):
        kind, sha256 = (
            ("statistics", source.sha256) if isinstance(source, SavedStatistics) else (source.kind, source.identity)
        )
        report.sources.append(
            Source(
                name,
                kind,
                source.path,
                source.describe(),
                sha256,
                model=model_behind(source.path, workspace),
                image_size=_image_size(source),
                transform=source.transform if isinstance(source, CollectionStream) else None,
            )
        )
        reporter.message(f"{name}: {source.path}: {source.describe()}")
        if isinstance(source, SavedStatistics) and source.network is None:
            reporter.warning(
                f"{name}: nothing in {source.path} says which network made it (clean-fid's and pytorch-fid's files "
                f"look the same), so its figures are marked not comparable. {source.how_to_say()}"
            )
    return real, fake


def _open_side(
    path: str,
    inputs: ComparisonInputs,
    machinery: Machinery,
    workspace: Workspace,
    draw: DrawSettings,
    statistics_by: str | None,
) -> Input:
    """Images of a collection, a store or a diffusion run, or saved statistics.

    ADM's reference batches hold both: statistics of all images, and some of these. `statistics_by` takes the first.
    """
    if path.endswith((".npz", *PICKLES)) and Path(path).is_file():
        if not holds_images(Path(path)):
            return read_statistics(Path(path), network=statistics_by)
        if {"mu", "sigma"} <= read_headers(Path(path)).keys():
            if statistics_by is not None:
                return read_statistics(Path(path), network=statistics_by)
            machinery.reporter.warning(
                f"{path} holds images and statistics, and its images are measured; ADM's evaluator takes the "
                "statistics, as --statistics-by inception-legacy-tensorflow does"
            )
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


def say_sizes(report: EvaluationReport, reporter: Reporter) -> None:
    """Say when the images of the two sides that were opened last differ in size."""
    real, fake = (source.image_size for source in report.sources[-2:])
    if real is not None and fake is not None and real != fake:
        reporter.warning(
            f"the real images are of {real} px, the fake ones of {fake}: published figures compare images of one size, "
            "and those of other sizes differ by their blur alone"
        )


def _image_size(source: Input) -> int | None:
    """The median of the images' shorter sides, px; None where nobody knows."""
    if isinstance(source, SavedStatistics):
        return source.image_size
    if isinstance(source, StoreStream):
        return source.store.image_size
    if not isinstance(source, CollectionStream) or source.size is not None:
        return getattr(source, "size", None)
    with suppress(UsageError):  # not one is an image, which reading them says
        return median_side(source.collection, num=16)
    return None


def why_not(
    chosen: Metric, network: str | None, real: Input, fake: Input, pairing: Pairing, machinery: Machinery
) -> BricsError | None:
    """Why `chosen`, by features of `network`, has no figure on these inputs, as far as can be said before reading
    them; else None."""
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
            if chosen.family == "frechet" and network is not None:
                try:
                    source.check_made_by(network)
                except ArtefactError as error:
                    return error
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
            run = None if made is None else workspace.ancestor(made, kind)  # type: ignore[arg-type]
            if run is not None:
                details = run.details
                return {"kind": kind, "path": str(run.path.resolve()), "step": details.get("step")}
    except ArtefactError:
        pass
    return None
