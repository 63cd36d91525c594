"""`brics eval`: the figures of reconstructions and samples; `brics eval compare`: reports side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.text import Text

from brics_cli.cli import completion, options
from brics_cli.cli.batch import executor_of
from brics_cli.cli.output import Session, plain_table, short_names
from brics_cli.cli.pages import Old
from brics_cli.config.names import Normalise
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER
from brics_cli.errors import ExitCode, UsageError
from brics_cli.evaluation.registry import MODES, NEIGHBOUR_NETWORKS, PRESETS, REGISTRY, Settings, metrics_help
from brics_cli.evaluation.report import OWN_WEIGHTS, SPLITS, UNKNOWN_STATISTICS
from brics_cli.sampling.tasks import DEFAULT_NUM_DRAWN
from brics_cli.wording import count

if TYPE_CHECKING:
    from rich.table import Table

    from brics_cli.evaluation.comparing import ComparedMetric, LoadedReport
    from brics_cli.evaluation.report import EvaluationReport, MetricResult
    from brics_cli.jobs.self_test import Check

app = options.command_app()

_features = partial(typer.Option, rich_help_panel="Features")
_neighbours = partial(typer.Option, rich_help_panel="Nearest neighbours")
_diffusability = partial(typer.Option, rich_help_panel="Diffusability of a store's codes")

REAL = (
    "The originals: a collection, a key-code store, or saved statistics (.npz with mu and sigma; one with images, "
    "ADM's arr_0, is a collection)."
)
FAKE = (
    "What is measured: the same kinds (a store is decoded on the fly), or a diffusion run, of which images are drawn."
)
MODE = f"How images are resized for Inception (clean-fid's): {', '.join(MODES)}. Default: {Settings.mode}."
PRESET = (
    f"Features, k and numbers of precision, recall, density, coverage: "
    f"{', '.join(f'{name} ({preset.describe()})' for name, preset in PRESETS.items())}. Default: {Settings.preset}, "
    "whose published figures need --mode legacy-tensorflow."
)
STATISTICS_BY = (
    "What made the saved statistics, where neither their arrays nor their name tell: inception-clean, "
    "inception-legacy-tensorflow (ADM, EDM), inception-legacy-pytorch (pytorch-fid), clip or dinov2."
)
SELF_TEST = (
    "Check this machine's numbers against closed forms, clean-fid's code and, given --real and --fake, clean-fid's "
    "published statistics of CIFAR-10."
)
UNVERIFIED = "Use weights of unknown sha256 that were imported so. Their figures are marked not comparable."
NORMALISE = (
    f"What is done to codes before they are diffused: {', '.join(get_args(Normalise))}. Default: {Settings.normalise}."
)
NEIGHBOURS_BY = f"In whose features: {', '.join(NEIGHBOUR_NETWORKS)}. Default: the first whose weights are there."


@app.callback(invoke_without_command=True)
def eval(
    context: typer.Context,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", autocompletion=completion.metrics, help=metrics_help()),
    ] = None,
    real: Annotated[str | None, typer.Option("--real", metavar="PATH", help=REAL)] = None,
    fake: Annotated[str | None, typer.Option("--fake", metavar="PATH", help=FAKE)] = None,
    real_subset: Annotated[
        str | None,
        typer.Option("--real-subset", metavar="NAME", help="Which collection, where --real holds several (./lsun)."),
    ] = None,
    fake_subset: Annotated[
        str | None, typer.Option("--fake-subset", metavar="NAME", help="The same of --fake.")
    ] = None,
    real_image_field: Annotated[
        str | None,
        typer.Option("--real-image-field", metavar="FIELD", help="Which image, where samples of --real hold several."),
    ] = None,
    fake_image_field: Annotated[
        str | None, typer.Option("--fake-image-field", metavar="FIELD", help="The same of --fake.")
    ] = None,
    out: Annotated[
        Path | None, options.out_option("FILE.json", "Also write the report, with its provenance, as JSON.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Measure only the first so many pairs, or images of each side.")
    ] = None,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="Also the figures of each class, of pairs with a labelled store.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per batch of the networks. Default: 32.")
    ] = None,
    mode: Annotated[str | None, _features("--mode", metavar="NAME", help=MODE)] = None,
    preset: Annotated[str | None, _features("--preset", metavar="NAME", help=PRESET)] = None,
    statistics_by: Annotated[str | None, _features("--statistics-by", metavar="NETWORK", help=STATISTICS_BY)] = None,
    no_cache: Annotated[
        bool, _features("--no-cache", help="Compute the features of --real anew and keep none; see brics cache.")
    ] = False,
    allow_unverified: Annotated[bool, _features("--allow-unverified", help=UNVERIFIED)] = False,
    self_test: Annotated[bool, _features("--self-test", help=SELF_TEST)] = False,
    num: Annotated[
        int | None,
        typer.Option(
            "--n",
            Old("--num-samples"),
            min=1,
            help=f"How many images. Default: {DEFAULT_NUM_DRAWN:,}, or as many as --seeds says.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    seeds: options.Seeds = None,
    seed: options.FirstSeed = None,
    ema: options.Ema = None,
    ae: options.AutoencoderRun = None,
    sampler: options.Sampler = DEFAULT_SAMPLER,
    steps: options.SamplerSteps = None,
    guidance: options.Guidance = 1.0,
    guide: options.Guide = None,
    class_: options.Class = None,
    class_balance: options.Balance = None,
    clip: options.Clip = True,
    dtype: options.Dtype = None,
    num_workers: options.NumWorkers = None,
    neighbours_by: Annotated[str | None, _neighbours("--neighbours-by", metavar="NETWORK", help=NEIGHBOURS_BY)] = None,
    neighbours_of: Annotated[
        int | None,
        _neighbours(
            "--neighbours-of", min=1, help=f"Look up the first so many fake images. Default: {Settings.num_queries}."
        ),
    ] = None,
    sheet: Annotated[
        Path | None, _neighbours("--sheet", metavar="PNG", help=f"Where the sheet goes. Default: {Settings.sheet}.")
    ] = None,
    plot: Annotated[
        Path | None,
        _diffusability("--plot", metavar="FILE", help="Draw spectra, VIV and histograms there: .png, .pdf or .svg."),
    ] = None,
    normalise: Annotated[str | None, _diffusability("--normalise", metavar="NAME", help=NORMALISE)] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    executor: options.Executor = "local",
    ray_address: options.RayAddress = None,
    cpus_per_worker: options.CpusPerWorker = None,
    max_retries: options.MaxRetries = None,
    workspace: options.Workspace = None,
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Measure reconstructions against their originals, or samples against a collection.

    **Pairs** (psnr, ssim, lpips, rfid): left out, `--fake` is the newest key-code store, decoded on the fly, of
    held-out images where there is one (else those that the autoencoder held out are measured), and `--real` the
    collection it was encoded from. Images are paired by key:
    equal keys, or one with directories in front.

    **Sets** (fid, clip-fid, kid, ...): left out, `--fake` is the newest samples, and `--real` the collection that the
    autoencoder behind them was trained on.

    The transform and size of the store or autoencoder behind one side apply to the collection on the other.

    **Drawing**: of a diffusion run, images are drawn while they are measured, as `brics sample` would.

    **Codes** (diffusability): how easily a store's codes are diffused, with the collection they were encoded from.

    **Reports** written with `--out` stand side by side in `brics eval compare A.json B.json`; stores do, too.

    Example: brics eval --metric fid --fake runs/diffusion/tiny --n 10000 --out report.json
    """
    if context.invoked_subcommand is not None:
        return ExitCode.DONE
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    real = options.part_of(real, real_subset, real_image_field, side="real")
    fake = options.part_of(fake, fake_subset, fake_image_field, side="fake")
    if self_test:
        return _self_test(session, real, fake, device=device)
    from brics_cli.api import evaluate
    from brics_cli.sampling.drawn import DrawSettings

    settings = _given(mode=mode, preset=preset, neighbours_by=neighbours_by, num_queries=neighbours_of, sheet=sheet)
    settings |= _given(normalise=normalise, plot=plot)
    draw = DrawSettings(
        num=num, seeds=seeds, seed=seed, sampler=sampler, steps=steps, guidance=guidance, guide=guide, class_=class_,
        class_balance=class_balance, clip=clip, ema=ema,
    )  # fmt: skip
    report = evaluate(
        metric,
        real=real,
        fake=fake,
        limit=limit,
        settings=Settings(**settings),
        draw=draw,
        autoencoder=ae,
        precision=dtype,
        by_class=by_class,
        num_workers=num_workers,
        statistics_by=statistics_by,
        allow_unverified=allow_unverified,
        use_cache=not no_cache,
        batch_size=batch_size,
        out=out,
        dry_run=dry_run,
        device=device,
        executor=executor_of(
            executor, ray_address=ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries
        ),
        overwrite=overwrite,
        workspace=session.workspace.root,
        reporter=session.reporter,
    )
    if dry_run:
        lines = [
            f"would measure {', '.join(each['metrics'])} of {each['fake']} against {each['real']}"
            for each in report.planned
        ]
        session.result({"planned": report.planned, "left_out": report.left_out}, lines)
        return ExitCode.DONE
    session.result(report.to_json(), [_results_table(report), *_class_tables(report), *_footnotes(report)])
    _say_what_was_not_measured(session, report, out)
    if plot is not None:
        session.reporter.message(f"plot: {plot}")
    store = next((source.path for source in report.sources if source.kind == "store"), None)
    if store is not None and not any(REGISTRY[result.metric].inputs == "samples" for result in report.results):
        session.next_step("brics", "train-diffusion", store)
    else:
        session.next_step("brics", "status")
    return ExitCode.SOME_FAILED if report.failures else ExitCode.DONE


@app.command("compare")
def compare_reports(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT|STORE ...",
            help="Files that `brics eval --out` wrote, or key-code stores, whose diffusability is measured.",
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            autocompletion=completion.metrics,
            help="What to plot: a metric against the training step of the model, or diffusability. Default: fid; of "
            "stores diffusability.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the plot there: .png, .pdf or .svg.")
    ] = None,
    real: Annotated[
        str | None, _diffusability("--real", metavar="PATH", help="The images of the stores. Default: what each names.")
    ] = None,
    limit: Annotated[
        int | None, _diffusability("--limit", min=1, help="Measure only the first so many codes of each store.")
    ] = None,
    normalise: Annotated[str | None, _diffusability("--normalise", metavar="NAME", help=NORMALISE)] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Print reports side by side, the best figure of each metric marked, and plot one against training steps.

    Figures that differ in definition, reference or number of images are not ranked: the last column says why. A
    key-code store stands for a report of its diffusability, which is measured first.

    Example: brics eval compare a.json b.json --plot fid.png
    """
    from brics_cli.evaluation.comparing import compare
    from brics_cli.jobs.compare import check_plot, load_or_measure, plot_comparison

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    wanted = None if plot is None else check_plot(plot, metric, reports, overwrite=overwrite)
    loaded = load_or_measure(
        reports,
        real=real,
        normalise=normalise or Settings.normalise,
        limit=limit,
        device=device,
        precision=dtype,
        workspace=session.workspace,
        reporter=session.reporter,
    )
    rows = compare(loaded)
    if plot is not None and wanted is not None:
        session.reporter.message(f"plot: {plot}, {plot_comparison(loaded, wanted, path=plot)}")
    value = {"reports": [asdict(report) for report in loaded], "metrics": [asdict(row) for row in rows]}
    session.result(value, _comparison_table(loaded, rows))
    session.next_step("brics", "status")
    return ExitCode.DONE


def _given(**values: Any) -> dict[str, Any]:
    """What was given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def _self_test(session: Session, real: str | None, fake: str | None, *, device: str) -> int:
    from brics_cli.jobs.self_test import self_test

    if real is not None and not real.endswith(".npz"):
        raise UsageError(f"--self-test --real {real}: give clean-fid's statistics, an .npz")
    statistics = None if real is None else Path(real)
    checks = self_test(statistics=statistics, images=fake, device=device, reporter=session.reporter)
    session.result([asdict(check) for check in checks], _checks_table(checks))
    session.next_step("brics", "eval")
    return ExitCode.MACHINE if any(check.passed is False for check in checks) else ExitCode.DONE


NUM_FAILURES_SHOWN = 10
_NOT_COMPARABLE = {
    OWN_WEIGHTS: "the weights are not the published file",
    UNKNOWN_STATISTICS: "it is unknown which network made the saved statistics",
}
NO_FIGURE = "-"


def _results_table(report: EvaluationReport) -> Table:
    """Metric, value, error bar, N, and what the figure is comparable with."""
    table = plain_table("metric", "value", "±", "N", "comparable with")
    table.columns[-1].justify = "left"
    for result in report.results:
        error = NO_FIGURE if result.standard_error is None else _figure(result, result.standard_error)
        with_ = result.definition
        if result.not_comparable is not None:
            with_ = f"nothing published ({result.not_comparable}): {with_}"
        title = f"{result.title} {_arrow(result.better)}".strip()
        table.add_row(title, _figure(result, result.value), error, _number(result), with_)
    return table


def _class_tables(report: EvaluationReport) -> list[Table]:
    """The figures of each class, where they were asked for: a row a class, a column a metric."""
    results = [result for result in report.results if "by_class" in (result.details or {})]
    if not results:
        return []
    of_each = [(result, (result.details or {})["by_class"]) for result in results]
    table = plain_table("class", *(result.title for result in results), "N")
    for name, row in of_each[0][1].items():
        table.add_row(name, *(_figure(result, found[name]["value"]) for result, found in of_each), f"{row['num']:,}")
    return [table]


def _footnotes(report: EvaluationReport) -> list[str]:
    """What a reader of the table must know besides."""
    notes = [f"{result.title}: {result.note}" for result in report.results if result.note]
    splits: dict[str, list[str]] = {}
    for source in report.sources:
        if source.split is not None and source.side not in splits.setdefault(source.split, []):
            splits[source.split].append(source.side)
    notes += [f"{' and '.join(sides)}: {SPLITS[split]}" for split, sides in splits.items()]
    kinds: dict[str, list[str]] = {}
    for result in report.results:
        if result.error_kind is not None:
            kinds.setdefault(result.error_kind, []).append(result.title)
    notes += [f"± of {', '.join(titles)}: {kind}" for kind, titles in kinds.items()]
    for obstacle, why in _NOT_COMPARABLE.items():
        of = [result.title for result in report.results if obstacle in (result.not_comparable or "")]
        if of:
            notes.append(f"not comparable with published figures, since {why}: {', '.join(of)}")
    return notes


def _comparison_table(reports: Sequence[LoadedReport], rows: Sequence[ComparedMetric]) -> Table:
    """One column per report, the best of each row marked."""
    table = plain_table("metric", *short_names(report.path for report in reports), "not ranked because of")
    table.columns[-1].justify = "left"
    for row in rows:
        cells: list[str | Text] = []
        for index, (value, error) in enumerate(zip(row.values, row.errors, strict=True)):
            text = NO_FIGURE if value is None else f"{value:.4f}"
            text += "" if error is None else f" ± {error:.4f}"
            cells.append(Text(f"{text} *", "bold green") if index == row.best else text)
        title = " ".join(filter(None, (row.title, row.unit, _arrow(row.better))))
        table.add_row(title, *cells, ", ".join(row.differences))
    return table


def _checks_table(checks: Sequence[Check]) -> Table:
    """One line per check of the self-test."""
    table = plain_table("check", "result", "expected", "found")
    table.columns[-1].justify = "left"
    said = {True: Text("passed", "green"), False: Text("FAILED", "red"), None: Text("not run", "yellow")}
    for check in checks:
        table.add_row(check.name, said[check.passed], check.expected, check.found)
    return table


def _say_what_was_not_measured(session: Session, report: EvaluationReport, out: Path | None) -> None:
    """Left-out metrics, images without a partner, images that failed: on stderr."""
    reporter = session.reporter
    for source in report.sources:
        if source.cached:
            reporter.message(f"{source.side}: features of {', '.join(source.cached)} from the cache")
    for name, reason in report.left_out.items():
        reporter.message(f"left out: {name}: {reason}")
    if report.num_pairs is not None:
        for side, keys in (("real", report.unmatched_real), ("fake", report.unmatched_fake)):
            if keys:
                listed = "first" if out is None else f"listed in {out}, first"
                reporter.warning(
                    f"{side}: {count(len(keys), 'image')} without a partner of the same key, {listed} {keys[0]}"
                )
    if report.failures:
        total = len(report.failures)
        first = f"first {min(total, NUM_FAILURES_SHOWN)}" if total > 1 else "namely"
        listed = f"listed in {out}" if out is not None else f"{first}:"
        reporter.warning(f"{count(total, 'image')} failed, left out of every figure, {listed}")
        for failure in report.failures[:NUM_FAILURES_SHOWN] if out is None else []:
            reporter.warning(f"{failure.side} {failure.key}: {failure.reason}")
    if out is not None:
        reporter.message(f"report: {out}")


def _number(result: MetricResult) -> str:
    real, fake = ("?" if num is None else f"{num:,}" for num in (result.num_real, result.num_fake))
    if result.num_real == result.num_fake:
        return real
    if REGISTRY[result.metric].one_sided:
        return fake
    return f"{real} real, {fake} fake"


def _figure(result: MetricResult, value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.{REGISTRY[result.metric].decimals}f} {result.unit}".strip()


def _arrow(better: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(better, "")
