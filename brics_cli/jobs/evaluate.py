"""`brics eval`: reconstructions beside their originals, samples beside the collection they should look like.

Which weights are there is settled first. Then each pair of sources is read once, every image goes through every
metric, and the figures come back with all that is needed to compare them: N, definition, weights, resize, versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

import brics_cli
from brics_cli.core.device import resolve_device
from brics_cli.data.loader import default_num_workers
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.metrics.meters import Image, PairMeter, SetMeter, pair_meter, set_meter
from brics_cli.metrics.pairing import Pairing, match_keys
from brics_cli.metrics.registry import Metric
from brics_cli.metrics.report import EvaluationReport, FailedImage, MetricResult, Source
from brics_cli.metrics.selection import Choice, choose_metrics
from brics_cli.reporting import Reporter, SilentReporter
from brics_cli.streams.comparison import Compares, ComparisonInputs, comparison_inputs
from brics_cli.streams.images import ImageStream, open_images
from brics_cli.workspace import (
    Artefact,
    Parent,
    Workspace,
    check_output,
    check_writable,
    read_provenance,
    write_json_atomically,
    write_provenance,
)
from brics_cli.workspace.artefacts import now

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-image", "clean-fid", "open-clip-torch", "lpips")


@dataclass(frozen=True)
class Machinery:
    """What measuring runs on."""

    device: torch.device
    batch_size: int
    num_workers: int
    pool: ThreadPoolExecutor
    reporter: Reporter


def evaluate(
    metrics: Sequence[str] | None = None,
    *,
    real: str | Path | None = None,
    fake: str | Path | None = None,
    workspace: Workspace | None = None,
    reporter: Reporter | None = None,
    device: str = "auto",
    batch_size: int = 32,
    num_workers: int | None = None,
    limit: int | None = None,
    allow_unverified: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> EvaluationReport:
    """Measure `metrics` (names of the registry; None: all whose weights and inputs are there) of `fake` against `real`.

    Paths are collections or key-code stores; left out, they come from `workspace` (`streams.comparison` says how).
    `dry_run`: only say what would be measured (`EvaluationReport.planned`).
    `limit`: the first so many pairs, and the first so many images of each side. `out`: also write the report there.
    Raises UsageError (unknown metric, no pairs, sizes that differ), ArtefactError (weights or inputs missing),
    WouldOverwriteError.
    """
    workspace = workspace or Workspace(Path())
    reporter = reporter or SilentReporter()
    asked = metrics is not None
    choice = choose_metrics(metrics, allow_unverified=allow_unverified)
    if out is not None:
        check_output(out, overwrite=overwrite, what="the report")
        check_writable(out)
    torch_device = resolve_device(device)
    plan, without_inputs = _plan(choice.metrics, real, fake, workspace, reporter, asked=asked)
    report = EvaluationReport(left_out={**choice.left_out, **without_inputs})
    if dry_run:
        report.planned = [
            {"metrics": [chosen.name for chosen in group], **asdict(inputs)} for inputs, group in plan.items()
        ]
        return report
    workers = num_workers or default_num_workers()
    with ThreadPoolExecutor(workers, thread_name_prefix="brics-metrics") as pool:
        machinery = Machinery(torch_device, batch_size, workers, pool, reporter)
        for inputs, group in plan.items():
            _compare(inputs, group, choice, machinery, report, workspace=workspace, limit=limit, asked=asked)
    order = [chosen.name for chosen in choice.metrics]
    report.results.sort(key=lambda result: order.index(result.metric))
    report.provenance = {
        "brics_version": brics_cli.__version__,
        "created": now(),
        "device": str(torch_device),
        "dtype": "float32",
        "batch_size": batch_size,
        "limit": limit,
        "weights": _weights_used(report, choice),
        "packages": {package: version(package) for package in PACKAGES},
        "comparable": all(result.comparable for result in report.results),
    }
    if out is not None:
        _save(report, out)
    return report


def _plan(
    wanted: Sequence[Metric],
    real: str | Path | None,
    fake: str | Path | None,
    workspace: Workspace,
    reporter: Reporter,
    *,
    asked: bool,
) -> tuple[dict[ComparisonInputs, list[Metric]], dict[str, str]]:
    """Which metrics go with which inputs; metrics of the same inputs share one reading of them.

    When metrics were not asked for by name, those without inputs are left out, and the second value says why.
    """
    plan: dict[ComparisonInputs, list[Metric]] = {}
    left_out: dict[str, str] = {}
    problem: BricsError | None = None
    kinds: tuple[Compares, ...] = ("pairs", "sets")
    for compares in kinds:
        members = [chosen for chosen in wanted if chosen.compares == compares]
        if not members:
            continue
        try:
            inputs = comparison_inputs(compares, workspace=workspace, real=real, fake=fake, say=reporter.message)
            plan.setdefault(inputs, []).extend(members)
        except ArtefactError as error:
            if asked:
                raise
            problem = problem or error
            left_out.update({chosen.name: error.what for chosen in members})
    if problem is not None and not plan:
        raise problem
    return plan, left_out


def _compare(
    inputs: ComparisonInputs,
    group: Sequence[Metric],
    choice: Choice,
    machinery: Machinery,
    report: EvaluationReport,
    *,
    workspace: Workspace,
    limit: int | None,
    asked: bool,
) -> None:
    """Measure the metrics of one pair of inputs and add what was found to `report`."""
    real, fake = (
        open_images(
            path,
            workspace=workspace,
            transform=inputs.transform,
            size=inputs.size,
            device=machinery.device,
            batch_size=machinery.batch_size,
            num_workers=machinery.num_workers,
        )
        for path in (inputs.real, inputs.fake)
    )
    for side, stream in (("real", real), ("fake", fake)):
        source = Source(side, stream.kind, stream.path, stream.describe(), stream.identity)
        report.sources.append(source)
        machinery.reporter.message(f"{side}: {source.path}: {source.description}")
    pairing = Pairing([], [], list(range(len(real))), list(range(len(fake))))
    measured = list(group)
    if any(chosen.compares == "pairs" for chosen in group):
        pairing = match_keys(real.keys, fake.keys)
        if len(pairing):
            report.unmatched_real = [real.keys[position] for position in pairing.unmatched_real]
            report.unmatched_fake = [fake.keys[position] for position in pairing.unmatched_fake]
        else:
            measured = [chosen for chosen in group if chosen.compares == "sets"]
            what = f"no key of {_example(real)} matches one of {_example(fake)}"
            if asked or not measured:
                raise UsageError(what, next="PSNR, SSIM and LPIPS need pairs: images of the same key on both sides.")
            report.left_out.update({chosen.name: what for chosen in group if chosen.compares == "pairs"})
    pairs: list[PairMeter] = []
    sets: list[SetMeter] = []
    for chosen in measured:
        files = [found.path for found in choice.weights[chosen.name]]
        if chosen.compares == "pairs":
            pairs.append(pair_meter(chosen, weights=files, device=machinery.device, pool=machinery.pool))
        else:
            sets.append(set_meter(chosen, weights=files, device=machinery.device))
    _measure(real, fake, pairing, pairs, sets, machinery=machinery, limit=limit)
    for side, stream in (("real", real), ("fake", fake)):
        report.failures += [FailedImage(side, failure.key, failure.reason) for failure in stream.failures]
    meters: list[PairMeter | SetMeter] = [*pairs, *sets]
    for meter in meters:
        verified = all(found.verified for found in choice.weights[meter.metric.name])
        report.results.append(_result(meter, real, fake, verified=verified))
    if pairs:
        report.num_pairs = pairs[0].num


def _measure(
    real: ImageStream,
    fake: ImageStream,
    pairing: Pairing,
    pairs: Sequence[PairMeter],
    sets: Sequence[SetMeter],
    *,
    machinery: Machinery,
    limit: int | None,
) -> None:
    """One pass: partners are read side by side, then, for metrics of sets, the images without a partner."""
    num_pairs = len(pairing) if limit is None else min(len(pairing), limit)
    real_order, fake_order = pairing.real[:num_pairs], pairing.fake[:num_pairs]
    if sets:
        real_order = (pairing.real + pairing.unmatched_real)[:limit]
        fake_order = (pairing.fake + pairing.unmatched_fake)[:limit]
    left = num_pairs
    nothing: list[Image | None] = []
    with machinery.reporter.task("measure", total=len(real_order) + len(fake_order), unit="img") as task:
        for real_batch, fake_batch in zip_longest(real.read(real_order), fake.read(fake_order), fillvalue=nothing):
            for first, second in _partners(real_batch[:left], fake_batch[:left]):
                for pair in pairs:
                    pair.update(first, second)
            for meter in sets:
                meter.update("real", [image for image in real_batch if image is not None], pool=machinery.pool)
                meter.update("fake", [image for image in fake_batch if image is not None], pool=machinery.pool)
            left = max(left - machinery.batch_size, 0)
            task.advance(len(real_batch) + len(fake_batch))


def _partners(real: Sequence[Image | None], fake: Sequence[Image | None]) -> Iterator[tuple[Image, Image]]:
    """Partners that could both be read, stacked to (N, H, W, 3), one pair of arrays per size of image."""
    by_shape: dict[tuple[int, ...], list[tuple[Image, Image]]] = {}
    for first, second in zip(real, fake, strict=True):
        if first is None or second is None:
            continue
        if first.shape != second.shape:
            raise UsageError(
                f"the images differ in size: real {first.shape[1]} x {first.shape[0]}, "
                f"fake {second.shape[1]} x {second.shape[0]}",
                next=f"Make the originals squares of the same size: brics pack REAL --out DIR --size {second.shape[0]}",
            )
        by_shape.setdefault(first.shape, []).append((first, second))
    for members in by_shape.values():
        yield np.stack([first for first, _ in members]), np.stack([second for _, second in members])


def _example(stream: ImageStream) -> str:
    return f"{stream.path} ({stream.keys[0]!r}, …)" if stream.keys else f"{stream.path} (which is empty)"


def _result(meter: PairMeter | SetMeter, real: ImageStream, fake: ImageStream, *, verified: bool) -> MetricResult:
    num_real, num_fake = (meter.num, meter.num) if isinstance(meter, PairMeter) else (meter.num_real, meter.num_fake)
    if min(num_real, num_fake) == 0:
        failures = [*real.failures, *fake.failures]
        why = f" (first {failures[0].key}: {failures[0].reason})" if failures else ""
        raise ArtefactError(f"{meter.metric.title}: not one image could be read{why}")
    chosen = meter.metric
    return MetricResult(
        metric=chosen.name,
        title=chosen.title,
        real=real.path,
        fake=fake.path,
        value=meter.value,
        standard_error=meter.standard_error if isinstance(meter, PairMeter) else None,
        num_real=num_real,
        num_fake=num_fake,
        unit=chosen.unit,
        better=chosen.better,
        definition=chosen.definition,
        resize=meter.network.resize if isinstance(meter, SetMeter) else None,
        comparable=verified,
        note=meter.note,
    )


def _weights_used(report: EvaluationReport, choice: Choice) -> list[dict[str, Any]]:
    used = {found.id: found for result in report.results for found in choice.weights[result.metric]}
    return [{**asdict(found), "path": str(found.path)} for found in used.values()]


def _save(report: EvaluationReport, out: Path) -> None:
    """Write the report as JSON, and beside it the provenance that puts it into the workspace's lineage."""
    write_json_atomically(out, report.to_json())
    parents = []
    for source in report.sources:
        made = read_provenance(Path(source.path)) if Path(source.path).exists() else None
        parents.append(Parent(made.kind if made else source.kind, source.path, source.sha256))
    summary = ", ".join(f"{result.title} {result.value:.4g}" for result in report.results)
    details = {"summary": summary, "comparable": report.provenance["comparable"]}
    created = report.provenance["created"]
    write_provenance(Artefact(kind="report", path=out, created=created, parents=tuple(parents), details=details))
