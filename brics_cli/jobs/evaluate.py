"""`brics eval`: reconstructions beside their originals, samples beside the collection they should look like.

Which weights are there is settled first. Then each pair of sides is read once, every image goes through every metric,
and the figures come back with all that is needed to compare them: N, definition, weights, resize, versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import brics_cli
from brics_cli.codes.lineage import Compares, ComparisonInputs, comparison_inputs, split_behind
from brics_cli.config.names import Precision
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.evaluation.family import SIDES, Context, Output, PairFamily, Score, Side, family_of
from brics_cli.evaluation.images import StoreStream, open_images
from brics_cli.evaluation.measuring import Input, Measurement
from brics_cli.evaluation.pairing import Pairing, match_keys
from brics_cli.evaluation.registry import GROUPS, Settings, definition_of
from brics_cli.evaluation.report import (
    OWN_WEIGHTS,
    SPLITS,
    UNKNOWN_STATISTICS,
    EvaluationReport,
    FailedImage,
    MetricResult,
    Source,
)
from brics_cli.evaluation.selection import Choice, Chosen, choose_metrics
from brics_cli.evaluation.statistics import PICKLES, SavedStatistics, check_network, read_statistics
from brics_cli.images.loader import CollectionStream, default_num_workers
from brics_cli.images.opening import median_side
from brics_cli.images.selection import held_out_by_hash
from brics_cli.images.sources.npz import holds_images, read_headers
from brics_cli.networks.features import FeatureNetwork, load_network
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.sampling.drawn import DrawSettings, draw_images
from brics_cli.workspace import (
    Artefact,
    Parent,
    Workspace,
    check_output,
    check_writable,
    provenance_at,
    write_json_atomically,
    write_provenance,
)
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import REPORT, form_of_output, is_store
from brics_cli.workspace.outputs import absent_unless_done, output_lock
from brics_cli.workspace.places import reference

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-image", "clean-fid", "open-clip-torch", "lpips", "timm")
BATCH_SIZE = 32
MOST_IN_SUMMARY = 8
"""Figures of a report that `brics status` shows."""


def evaluate(
    metrics: Sequence[str] | None = None,
    *,
    real: str | Path | None = None,
    fake: str | Path | None = None,
    workspace: Workspace | None = None,
    reporter: Reporter | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    limit: int | None = None,
    allow_unverified: bool = False,
    settings: Settings | None = None,
    draw: DrawSettings | None = None,
    autoencoder: Path | None = None,
    precision: Precision | None = None,
    by_class: bool = False,
    statistics_by: str | None = None,
    use_cache: bool = True,
    out: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> EvaluationReport:
    """Measure `metrics` of `fake` against `real`: `brics_cli.api.evaluate`, which says what the arguments are.

    Sides that are left out come from `workspace` (`codes.lineage` says how). Raises UsageError (unknown metric, no
    pairs, sizes that differ, too few images), ArtefactError (weights or inputs missing), MachineError (features that
    are not finite), WouldOverwriteError.
    """
    workspace, reporter = workspace or Workspace(Path()), reporter or SilentReporter()
    batch_size, num_workers = batch_size or BATCH_SIZE, num_workers or default_num_workers()
    choice = choose_metrics(metrics, allow_unverified=allow_unverified, settings=settings)
    outputs: list[Output] = []
    if out is not None:
        form_of_output(out, REPORT)
        outputs.append(Output(out, "the report", "--out"))
    for written in dict.fromkeys(each for m in choice.metrics for each in family_of(m.metric).outputs(choice.settings)):
        form_of_output(written.path, written.forms, option=written.option)
        outputs.append(written)
    of_codes = {"--plot": choice.settings.plot, "--normalise": choice.settings.normalise}
    for option, value in of_codes.items():
        if value not in (None, Settings.normalise) and not any(each.metric.group for each in choice.metrics):
            raise UsageError(f"{option} {value} goes with --metric {' or '.join(GROUPS)}, which was not asked for")
    if by_class and not any(each.metric.compares == "pairs" for each in choice.metrics):
        raise _not_by_class()
    for output in outputs:
        check_output(output.path, overwrite=overwrite, what=output.what, flag=output.option)
        check_writable(output.path)
    if statistics_by is not None:
        check_network(statistics_by)
        if not any(str(path).endswith(".npz") for path in (real, fake)):
            raise UsageError(f"--statistics-by {statistics_by} goes with saved statistics, an .npz, and there are none")
    draw = draw or DrawSettings()
    draw.drawn()
    torch_device = resolve_device(device) if executor is None else executor.connect(device, reporter=reporter)[0]
    computed_in = precision_on(torch_device, precision)
    report = EvaluationReport(left_out=dict(choice.left_out))
    plan = _plan(choice, real, fake, workspace, report, reporter)
    decodes = _is_made_by_networks(plan, draw, autoencoder=autoencoder, precision=precision)
    if dry_run:
        for inputs, group in plan.items():
            report.planned.append({"metrics": [each.name for each in group], **asdict(inputs)})
        return report
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(output_lock(output.path))
            # Who held the lock until now may have written there.
            check_output(output.path, overwrite=overwrite, what=output.what, flag=output.option)
        stack.enter_context(absent_unless_done([output.path for output in outputs]))
        pool = stack.enter_context(ThreadPoolExecutor(num_workers, thread_name_prefix="brics-metrics"))
        context = Context(choice.settings, torch_device, pool, reporter, batch_size, limit, use_cache, executor)
        for inputs, group in plan.items():
            sides = {
                side: _open_side(
                    path, inputs, context, workspace, draw, num_workers, statistics_by, autoencoder, computed_in
                )
                for side, path in zip(SIDES, (inputs.real, inputs.fake), strict=True)
            }
            for side, source in sides.items():
                split = split_behind(source.path, other=inputs.fake, workspace=workspace)
                split = "held-out" if inputs.held_out is not None else split
                _say_source(side, source, split, workspace, report, reporter)
            _compare(sides, group, choice, context, report, by_class=by_class, held_out=inputs.held_out)
        if by_class and not any("by_class" in (result.details or {}) for result in report.results):
            raise _not_by_class()
        if not report.results:
            raise UsageError(f"nothing could be measured: {'; '.join(dict.fromkeys(report.left_out.values()))}")
        order = [each.name for each in choice.metrics]
        report.results.sort(key=lambda result: order.index(result.metric))
        measured = {result.metric for result in report.results}
        used = {each.weights.id: each.weights for each in choice.metrics if each.weights and each.name in measured}
        report.provenance = {
            "brics_version": brics_cli.__version__,
            "created": now(),
            "device": str(torch_device) if executor is None else executor.device,
            "dtype": "float32",
            **({"decoded_in": computed_in} if decodes else {}),
            "batch_size": batch_size,
            "limit": limit,
            "mode": choice.settings.mode,
            "preset": choice.settings.preset,
            "normalise": choice.settings.normalise,
            "weights": [{**asdict(found), "path": str(found.path)} for found in used.values()],
            "packages": {package: version(package) for package in PACKAGES},
            "comparable": all(result.comparable for result in report.results),
        }
        if out is not None:
            _save(report, out)
    return report


def _not_by_class() -> UsageError:
    return UsageError(
        "--by-class: no figure is of labelled pairs",
        next="It splits psnr, ssim and lpips of a key-code store with labels: --fake CODES.h5.",
    )


def _plan(
    choice: Choice,
    real: str | Path | None,
    fake: str | Path | None,
    workspace: Workspace,
    report: EvaluationReport,
    reporter: Reporter,
) -> dict[ComparisonInputs, list[Chosen]]:
    """Which metrics go with which inputs; metrics of the same inputs share one reading of them.

    When metrics were not asked for by name, those without inputs are left out.
    """
    plan: dict[ComparisonInputs, list[Chosen]] = {}
    problem: BricsError | None = None
    kinds: dict[str, Compares] = {"reconstructions": "pairs", "samples": "sets"}
    for wanted, compares in kinds.items():
        members = [each for each in choice.metrics if each.metric.inputs == wanted]
        if not members:
            continue
        try:
            inputs = comparison_inputs(compares, workspace=workspace, real=real, fake=fake, reporter=reporter)
            plan.setdefault(inputs, []).extend(members)
        except ArtefactError as error:
            if choice.asked:
                raise
            problem = problem or error
            report.left_out.update({each.name: error.what for each in members})
    if problem is not None and not plan:
        raise problem
    return plan


def _is_made_by_networks(
    plan: Iterable[ComparisonInputs], draw: DrawSettings, *, autoencoder: Path | None, precision: Precision | None
) -> bool:
    """Whether images are drawn or decoded. Raises UsageError for settings of that where they are not."""
    paths = {path for inputs in plan for path in (inputs.real, inputs.fake)}
    is_drawn = any((made := provenance_at(path)) is not None and made.kind == "diffusion" for path in paths)
    if draw.options and not is_drawn:
        raise UsageError(
            f"{', '.join(draw.options)}: no images are drawn, since neither side is a diffusion run",
            next="Give the run: --fake runs/diffusion/RUN, or sample it first: brics sample.",
        )
    decodes = is_drawn or any(map(is_store, paths))
    if not decodes and (autoencoder is not None or precision is not None):
        given = "--ae" if autoencoder is not None else f"--dtype {precision}"
        raise UsageError(f"{given}: no images are decoded, since neither side is a store or a diffusion run")
    return decodes


def _open_side(
    path: str,
    inputs: ComparisonInputs,
    context: Context,
    workspace: Workspace,
    draw: DrawSettings,
    num_workers: int,
    statistics_by: str | None,
    autoencoder: Path | None,
    precision: Precision,
) -> Input:
    """Images of a collection, a store or a diffusion run, or saved statistics.

    ADM's reference batches hold both: statistics of all images, and some of these. `statistics_by` takes the first.
    """
    if path.endswith((".npz", *PICKLES)) and Path(path).is_file():
        has_images = holds_images(Path(path))
        has_both = has_images and {"mu", "sigma"} <= read_headers(Path(path)).keys()
        if not has_images or (has_both and statistics_by is not None):
            return read_statistics(Path(path), network=statistics_by)
        if has_both:
            context.reporter.warning(
                f"{path} holds images and statistics, and its images are measured; ADM's evaluator takes the "
                "statistics, as --statistics-by inception-legacy-tensorflow does"
            )
    made = provenance_at(path)
    if made is not None and made.kind == "diffusion":
        return draw_images(
            Path(path), draw, autoencoder=autoencoder, precision=precision, workspace=workspace,
            device=context.device, batch_size=context.batch_size,
        )  # fmt: skip
    return open_images(
        path,
        workspace=workspace,
        transform=inputs.transform,
        size=inputs.size,
        autoencoder=autoencoder,
        precision=precision,
        device=context.device,
        batch_size=context.batch_size,
        num_workers=num_workers,
        reporter=context.reporter,
    )


def _say_source(
    side: Side,
    source: Input,
    split: str | None,
    workspace: Workspace,
    report: EvaluationReport,
    reporter: Reporter,
) -> None:
    """Say what one side is, and add it to the report."""
    transform = source.transform if isinstance(source, CollectionStream) else None
    model, size = _model_behind(source.path, workspace), _image_size(source)
    report.sources.append(
        Source(side, source.kind, source.path, source.describe(), source.identity, [], model, size, transform, split)
    )
    reporter.message(f"{side}: {source.path}: {source.describe()}" + (f"; {SPLITS[split]}" if split else ""))
    if isinstance(source, SavedStatistics) and source.network is None:
        reporter.warning(
            f"{side}: nothing in {source.path} says which network made it (clean-fid's and pytorch-fid's files "
            f"look the same), so its figures are marked not comparable. {source.how_to_say()}"
        )


def _image_size(source: Input) -> int | None:
    """The median of the images' shorter sides, px; None where it is unknown."""
    if isinstance(source, SavedStatistics):
        return source.image_size
    if isinstance(source, StoreStream):
        return source.store.image_size
    if not isinstance(source, CollectionStream) or source.size is not None:
        return getattr(source, "size", None)
    with suppress(UsageError):  # not one is an image, which reading them says
        return median_side(source.collection, num=16)
    return None


def _model_behind(path: str, workspace: Workspace) -> dict[str, Any] | None:
    """The trained model that what stands at `path` came from, and the step it was at; None when it is unknown.

    A run that has been trained on since no longer has the weights that made it, and is not named.
    """
    with suppress(ArtefactError):
        made = provenance_at(path)
        for kind in ("diffusion", "autoencoder"):
            run = None if made is None else workspace.ancestor(made, kind)  # type: ignore[arg-type]
            if run is not None:
                return {"kind": kind, "path": reference(run.path), "step": run.details.get("step")}
    return None


def _compare(
    sides: dict[Side, Input],
    group: Sequence[Chosen],
    choice: Choice,
    context: Context,
    report: EvaluationReport,
    *,
    by_class: bool,
    held_out: float | None,
) -> None:
    """Measure the metrics of one pair of sides and add what was found to `report`; of pairs only those `held_out`."""
    listed = dict(zip(SIDES, report.sources[-2:], strict=True))

    def leave_out(chosen: Chosen, error: BricsError) -> None:
        if choice.asked:
            raise error
        report.left_out[chosen.name] = error.what

    pairing = Pairing([], [], list(range(len(sides["real"]))), list(range(len(sides["fake"]))))
    if held_out is not None or any(each.metric.compares == "pairs" for each in group):
        matched = match_keys(sides["real"].keys, sides["fake"].keys)
        if len(matched):
            pairing = matched
            report.unmatched_real = [sides["real"].keys[position] for position in pairing.unmatched_real]
            report.unmatched_fake = [sides["fake"].keys[position] for position in pairing.unmatched_fake]
            if held_out is not None:
                pairing = pairing.of_real(np.flatnonzero(held_out_by_hash(sides["real"].keys, held_out)).tolist())
    wanted = []
    for each in group:
        try:
            _check_sides(each, sides, pairing, context)
            wanted.append(each)
        except BricsError as error:
            leave_out(each, error)
    sizes = [source.image_size for source in listed.values()]
    if any(each.metric.compares == "sets" for each in wanted) and None not in sizes and sizes[0] != sizes[1]:
        context.reporter.warning(
            f"the real images are of {sizes[0]} px, the fake ones of {sizes[1]}: published figures compare images of "
            "one size, and those of other sizes differ by their blur alone"
        )
    networks: dict[str, FeatureNetwork] = {}
    for each in wanted:
        if each.network is not None and each.network not in networks:
            path, sha256 = (each.weights.path, each.weights.sha256) if each.weights else (None, None)
            networks[each.network] = load_network(each.network, path, sha256=sha256, device=context.device)
    with closing(Measurement(sides, pairing, wanted, networks, context, strict=choice.asked)) as found:
        found.run()
        for side, source in listed.items():
            source.sha256 = found.fingerprints.get(side, source.sha256)
            report.failures += [FailedImage(side, *failure) for failure in found.failures.get(side, [])]
        listed["real"].cached.extend(found.from_cache)
        for each in wanted:
            try:
                family = found.family(each)
                if family.num == 0:
                    failures = [failure for side in SIDES for failure in found.failures.get(side, [])]
                    first = f" (first {failures[0][0]}: {failures[0][1]})" if failures else ""
                    raise ArtefactError(f"{each.metric.title}: not one image could be read{first}")
                score = family.result(each.metric)
                if by_class and isinstance(family, PairFamily) and isinstance(fake := sides["fake"], StoreStream):
                    classes = family.by_class(fake.classes_of(found.measured_pairs))
                    if classes:
                        score = replace(score, details={**(score.details or {}), "by_class": classes})
            except UsageError as error:
                leave_out(each, error)
                continue
            if each.metric.compares == "pairs":
                report.num_pairs = family.num
            written = [str(output.path) for output in family.outputs(context.settings)]
            report.sheets = list(dict.fromkeys([*report.sheets, *written]))
            report.results.append(_result(each, score, networks.get(each.network or ""), sides, context.settings))


def _check_sides(chosen: Chosen, sides: dict[Side, Input], pairing: Pairing, context: Context) -> None:
    """Raise UsageError or ArtefactError when a metric has no figure on these sides, as far as can be said before
    reading them."""
    metric, family, fake = chosen.metric, family_of(chosen.metric), sides["fake"]
    if (metric.compares == "codes" or family.of_codes) and fake.kind != "store":
        what = metric.group.capitalize() or metric.title
        raise UsageError(f"{what} is of a key-code store, and {fake.path} is none", next="Give --fake CODES.h5.")
    if metric.compares == "codes":
        return
    if metric.compares == "pairs":
        if any(isinstance(source, SavedStatistics) for source in sides.values()):
            raise UsageError(f"{metric.title} needs pairs of images, and saved statistics hold none")
        if not len(pairing):
            examples = [
                f"{source.path} ({source.keys[0]!r}, …)" if len(source) else f"{source.path} (which is empty)"
                for source in sides.values()
            ]
            raise UsageError(
                f"no key of {examples[0]} matches one of {examples[1]}",
                next="PSNR, SSIM and LPIPS need pairs: images of the same key on both sides.",
            )
    else:
        for side, source in sides.items():
            needs = family.needs(side)
            num, smallest = min(len(source), context.limit or len(source)), family.min_images(context.settings)
            if not isinstance(source, SavedStatistics):
                if num < smallest:
                    raise UsageError(
                        f"{metric.title} needs at least {smallest} image{'s' if smallest > 1 else ''} on each side, "
                        f"{source.path} gives {num}"
                    )
            elif needs is not None and (needs.rows or needs.batches):
                raise UsageError(
                    f"{metric.title} needs the {side} images themselves, and {source.path} holds a mean and a "
                    "covariance alone",
                    next=f"Give images with --{side}, or measure fid, clip-fid or fd-dinov2.",
                )
            elif needs is not None:
                source.check_made_by(chosen.network or "")


def _result(
    chosen: Chosen, score: Score, network: FeatureNetwork | None, sides: dict[Side, Input], settings: Settings
) -> MetricResult:
    """A figure with everything needed to compare it."""
    metric = chosen.metric
    obstacles = []
    if chosen.weights is not None and not chosen.weights.verified:
        obstacles.append(OWN_WEIGHTS)
    needed = [source for side, source in sides.items() if family_of(metric).needs(side) is not None]
    if any(isinstance(source, SavedStatistics) and source.network is None for source in needed):
        obstacles.append(UNKNOWN_STATISTICS)
    return MetricResult(
        metric=metric.name,
        title=metric.title,
        real=sides["real"].path,
        fake=sides["fake"].path,
        unit=metric.unit,
        better=metric.better,
        definition=definition_of(metric, settings),
        resize=None if network is None or metric.compares != "sets" else network.resize,
        comparable=metric.published and not obstacles,
        not_comparable=", ".join(obstacles) or None,
        **vars(score),
    )


def _save(report: EvaluationReport, out: Path) -> None:
    """Write the report as JSON, and beside it the provenance that puts it into the workspace's lineage."""
    write_json_atomically(out, report.to_json())
    parents = []
    for source in report.sources:
        made = provenance_at(source.path)
        parents.append(Parent(made.kind if made else source.kind, source.path, source.sha256))
    figures = [f"{result.title} {result.value:.4g}" for result in report.results]
    more = [f"and {len(figures) - MOST_IN_SUMMARY} more"] if len(figures) > MOST_IN_SUMMARY else []
    summary = ", ".join([*figures[:MOST_IN_SUMMARY], *more])
    details = {"summary": summary, "comparable": report.provenance["comparable"]}
    created = report.provenance["created"]
    write_provenance(Artefact(kind="report", path=out, created=created, parents=tuple(parents), details=details))
