"""`brics eval`: reconstructions beside their originals, samples beside the collection they should look like.

Which weights are there is settled first. Then each pair of sources is read once, every image goes through every
metric, and the figures come back with all that is needed to compare them: N, definition, weights, resize, versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import brics_cli
from brics_cli.codes.lineage import Compares, ComparisonInputs, comparison_inputs
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.evaluation.extraction import Side
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.evaluation.report import EvaluationReport, FailedImage
from brics_cli.evaluation.scores import Score, SetScorer
from brics_cli.evaluation.selection import Choice, choose_metrics
from brics_cli.evaluation.statistics import check_network
from brics_cli.images.loader import default_num_workers
from brics_cli.images.outputs import absent_unless_done, output_lock
from brics_cli.jobs.evaluation_inputs import open_sides, pair_inputs, say_sizes, why_not
from brics_cli.jobs.evaluation_pass import Input, Machinery, Measured, measure
from brics_cli.jobs.evaluation_results import neighbour_score, pair_score, result_of, usage_of_store
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.sampling.drawn import DrawSettings
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
from brics_cli.workspace.naming import PICTURE, REPORT, form_of_output

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-image", "clean-fid", "open-clip-torch", "lpips", "timm")


@dataclass(frozen=True)
class NeighbourSettings:
    """Of `--metric neighbours`: how many fake images are looked up, how many nearest real ones each, in which
    features (None: the best that is there), and where the sheet goes."""

    num_queries: int = 64
    num_neighbours: int = 3
    by: str | None = None
    sheet: Path = Path("neighbours.png")


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
    settings: Settings | None = None,
    draw: DrawSettings | None = None,
    neighbours: NeighbourSettings | None = None,
    statistics_by: str | None = None,
    use_cache: bool = True,
    out: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> EvaluationReport:
    """Measure `metrics` (names of the registry; None: the usual ones whose weights and inputs are there; `all`: every
    one) of `fake` against `real`.

    Paths are collections, key-code stores, diffusion runs (images are drawn as `draw` says) or saved statistics
    (.npz); left out, they come from `workspace` (`codes.lineage` says how). `dry_run`: only say what would be
    measured (`EvaluationReport.planned`). `limit`: the first so many pairs, and the first so many images of each
    side. `statistics_by`: the network (`inception-clean`, ...) that saved statistics are of, where they do not tell.
    `use_cache`: take features of the real side from the cache and put them there. `out`: also write the report
    there. Raises UsageError (unknown metric, no pairs, sizes that differ, too few images), ArtefactError (weights or
    inputs missing), MachineError (features that are not finite), WouldOverwriteError.
    """
    workspace = workspace or Workspace(Path())
    reporter = reporter or SilentReporter()
    settings, neighbours = settings or Settings(), neighbours or NeighbourSettings()
    choice = choose_metrics(metrics, allow_unverified=allow_unverified, settings=settings, neighbours_by=neighbours.by)
    outputs: list[tuple[Path, str, str]] = []
    if out is not None:
        form_of_output(out, REPORT)
        outputs.append((out, "the report", "--out"))
    if any(chosen.family == "neighbours" for chosen in choice.metrics):
        form_of_output(neighbours.sheet, PICTURE, option="--sheet")
        outputs.append((neighbours.sheet, "the sheet of nearest neighbours", "--sheet"))
    for path, what, flag in outputs:
        check_output(path, overwrite=overwrite, what=what, flag=flag)
        check_writable(path)
    if statistics_by is not None:
        check_network(statistics_by)
        if not any(str(path).endswith(".npz") for path in (real, fake)):
            raise UsageError(f"--statistics-by {statistics_by} goes with saved statistics, an .npz, and there are none")
    torch_device = resolve_device(device)
    plan, without_inputs = _plan(choice, real, fake, workspace, reporter)
    report = EvaluationReport(left_out={**choice.left_out, **without_inputs})
    if dry_run:
        report.planned = [
            {"metrics": [chosen.name for chosen in group], **asdict(inputs)} for inputs, group in plan.items()
        ]
        return report
    with _claimed(outputs, overwrite=overwrite):
        workers = num_workers or default_num_workers()
        with ThreadPoolExecutor(workers, thread_name_prefix="brics-metrics") as pool:
            machinery = Machinery(
                device=torch_device,
                batch_size=batch_size,
                num_workers=workers,
                pool=pool,
                reporter=reporter,
                settings=settings,
                use_cache=use_cache,
                limit=limit,
                num_queries=neighbours.num_queries,
                num_neighbours=neighbours.num_neighbours,
            )
            for inputs, group in plan.items():
                real_side, fake_side = open_sides(
                    inputs, machinery, report, workspace, draw or DrawSettings(), statistics_by=statistics_by
                )
                _compare(real_side, fake_side, group, choice, machinery, report, neighbours.sheet)
        if not report.results:
            raise UsageError(f"nothing could be measured: {'; '.join(report.left_out.values())}")
        order = [chosen.name for chosen in choice.metrics]
        report.results.sort(key=lambda result: order.index(result.metric))
        report.provenance = {
            "brics_version": brics_cli.__version__,
            "created": now(),
            "device": str(torch_device),
            "dtype": "float32",
            "batch_size": batch_size,
            "limit": limit,
            "mode": settings.mode,
            "preset": settings.preset,
            "weights": _weights_used(report, choice),
            "packages": {package: version(package) for package in PACKAGES},
            "comparable": all(result.comparable for result in report.results),
        }
        if out is not None:
            _save(report, out)
    return report


@contextmanager
def _claimed(outputs: Sequence[tuple[Path, str, str]], *, overwrite: bool) -> Iterator[None]:
    """Hold the locks of (path, what it is, its option); who held one until now may have written there."""
    with ExitStack() as stack:
        for path, what, flag in outputs:
            stack.enter_context(output_lock(path))
            check_output(path, overwrite=overwrite, what=what, flag=flag)
        stack.enter_context(absent_unless_done([path for path, _, _ in outputs]))
        yield


def _plan(
    choice: Choice, real: str | Path | None, fake: str | Path | None, workspace: Workspace, reporter: Reporter
) -> tuple[dict[ComparisonInputs, list[Metric]], dict[str, str]]:
    """Which metrics go with which inputs; metrics of the same inputs share one reading of them.

    When metrics were not asked for by name, those without inputs are left out, and the second value says why.
    """
    plan: dict[ComparisonInputs, list[Metric]] = {}
    left_out: dict[str, str] = {}
    problem: BricsError | None = None
    kinds: tuple[tuple[str, Compares], ...] = (("reconstructions", "pairs"), ("samples", "sets"))
    for wanted, compares in kinds:
        members = [chosen for chosen in choice.metrics if chosen.inputs == wanted]
        if not members:
            continue
        try:
            inputs = comparison_inputs(compares, workspace=workspace, real=real, fake=fake, say=reporter.message)
            plan.setdefault(inputs, []).extend(members)
        except ArtefactError as error:
            if choice.asked:
                raise
            problem = problem or error
            left_out.update({chosen.name: error.what for chosen in members})
    if problem is not None and not plan:
        raise problem
    return plan, left_out


def _compare(
    real: Input,
    fake: Input,
    group: Sequence[Metric],
    choice: Choice,
    machinery: Machinery,
    report: EvaluationReport,
    sheet: Path,
) -> None:
    """Measure the metrics of one pair of inputs and add what was found to `report`."""

    def leave_out(chosen: Metric, error: BricsError) -> None:
        if choice.asked:
            raise error
        report.left_out[chosen.name] = error.what

    pairing = pair_inputs(real, fake, group, report)
    measured = []
    for chosen in group:
        problem = why_not(chosen, choice.networks.get(chosen.name), real, fake, pairing, machinery)
        if problem is None:
            measured.append(chosen)
        else:
            leave_out(chosen, problem)
    if any(chosen.compares == "sets" for chosen in measured):
        say_sizes(report, machinery.reporter)
    found = measure(real, fake, pairing, measured, choice, machinery)
    try:
        sides: tuple[Side, Side] = ("real", "fake")
        report.sources[-2:] = [
            replace(listed, sha256=found.fingerprints.get(side, listed.sha256))
            for side, listed in zip(sides, report.sources[-2:], strict=True)
        ]
        for side, listed in zip(sides, report.sources[-2:], strict=True):
            report.failures += [FailedImage(side, *failure) for failure in found.failures.get(side, [])]
            listed.cached.extend(
                key for (key, of), features in found.features.items() if of == side and features.from_cache
            )
        scorers: dict[str, SetScorer] = {}
        for chosen in measured:
            try:
                score = _score(chosen, found, choice, machinery, scorers, real, fake, report, sheet)
            except UsageError as error:
                leave_out(chosen, error)
                continue
            report.results.append(result_of(chosen, score, found, choice, machinery.settings, real, fake))
    finally:
        found.close()


def _score(
    chosen: Metric,
    found: Measured,
    choice: Choice,
    machinery: Machinery,
    scorers: dict[str, SetScorer],
    real: Input,
    fake: Input,
    report: EvaluationReport,
    sheet: Path,
) -> Score:
    """The figure of one metric from what the pass found."""
    if chosen.name in found.refused:
        raise found.refused[chosen.name]
    if chosen.compares == "codes":
        return usage_of_store(fake, limit=machinery.limit, reporter=machinery.reporter)
    if chosen.compares == "pairs":
        meter = next(meter for meter in found.pairs if meter.metric is chosen)
        report.num_pairs = meter.num
        _check_read(chosen, meter.num, found)
        return pair_score(meter)
    key = choice.networks[chosen.name]
    assert key is not None
    if chosen.family == "neighbours":
        search = found.searches[key]
        _check_read(chosen, min(search.num_real, len(search.query_images)), found)
        return neighbour_score(search, real, fake, sheet=sheet, report=report)
    sides = [found.features.get((key, "fake")), found.features.get((key, "real"))]
    nums = [features.num for features in sides if features is not None and features.num is not None]
    _check_read(chosen, min(nums, default=1), found)  # nobody knows of how many images saved statistics are
    if key not in scorers:
        of_fake = found.features[key, "fake"]
        of_real = found.features.get((key, "real"), of_fake)  # IS alone has no real side
        scorers[key] = SetScorer(
            of_real, of_fake, found.networks[key], settings=machinery.settings, device=machinery.device
        )
    return scorers[key].score(chosen)


def _check_read(chosen: Metric, num: int, found: Measured) -> None:
    if num == 0:
        failures = [failure for side in found.failures.values() for failure in side]
        why = f" (first {failures[0][0]}: {failures[0][1]})" if failures else ""
        raise ArtefactError(f"{chosen.title}: not one image could be read{why}")


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
