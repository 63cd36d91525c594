"""`brics eval`: the figures of reconstructions and samples; `brics eval compare`: reports side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli.cli import options
from brics_cli.cli.evaluation import checks_table, comparison_table, footnotes, results_table, say_what_was_not_measured
from brics_cli.cli.output import Session
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER, SAMPLER_NAMES
from brics_cli.errors import ExitCode, UsageError
from brics_cli.evaluation.registry import MODES, NEIGHBOUR_NETWORKS, PRESETS, Settings, metrics_help

app = options.command_app()

FEATURES = "Features"
DRAWN = "Images drawn from a diffusion run"
NEIGHBOURS = "Nearest neighbours"


@app.callback(invoke_without_command=True)
def eval(
    context: typer.Context,
    metric: Annotated[list[str] | None, typer.Option("--metric", help=metrics_help())] = None,
    real: Annotated[
        str | None,
        typer.Option(
            "--real",
            metavar="PATH",
            help="The originals: a collection, a key-code store, or saved statistics (.npz with mu and sigma; one "
            "with images, ADM's arr_0, is a collection).",
        ),
    ] = None,
    fake: Annotated[
        str | None,
        typer.Option(
            "--fake",
            metavar="PATH",
            help="What is measured: the same kinds (a store is decoded on the fly), or a diffusion run, of which "
            "images are drawn on the fly.",
        ),
    ] = None,
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
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the report, with its provenance, as JSON.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Measure only the first so many pairs, or images of each side.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per batch of the networks. Default: 32.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="NAME",
            help=f"How images are resized for Inception (clean-fid's): {', '.join(MODES)}. Default: {Settings.mode}.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help=f"Features, k and numbers of precision, recall, density, coverage: {', '.join(PRESETS)}. Default: "
            f"{Settings.preset}, whose published figures need --mode legacy-tensorflow.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    statistics_by: Annotated[
        str | None,
        typer.Option(
            "--statistics-by",
            metavar="NETWORK",
            help="What made the saved statistics, where neither their arrays nor their name tell: inception-clean, "
            "inception-legacy-tensorflow (ADM, EDM), inception-legacy-pytorch (pytorch-fid), clip or dinov2.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="Compute the features of --real anew and keep none; see brics cache.",
            rich_help_panel=FEATURES,
        ),
    ] = False,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Use weights of unknown sha256 that were imported so. Their figures are marked not comparable.",
            rich_help_panel=FEATURES,
        ),
    ] = False,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Check this machine's numbers against closed forms, clean-fid's code and, given --real and --fake, "
            "clean-fid's published statistics of CIFAR-10.",
            rich_help_panel=FEATURES,
        ),
    ] = False,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples", min=1, help="Images to draw, from seed 0 on. Default: 1000.", rich_help_panel=DRAWN
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            help=f"{SAMPLER_NAMES}. Default: {DEFAULT_SAMPLER}.",
            rich_help_panel=DRAWN,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Sampler steps. Default: the sampler's own.", rich_help_panel=DRAWN),
    ] = None,
    neighbours_by: Annotated[
        str | None,
        typer.Option(
            "--neighbours-by",
            metavar="NETWORK",
            help=f"In whose features: {', '.join(NEIGHBOUR_NETWORKS)}. Default: the first whose weights are there.",
            rich_help_panel=NEIGHBOURS,
        ),
    ] = None,
    neighbours_of: Annotated[
        int | None,
        typer.Option(
            "--neighbours-of",
            min=1,
            help=f"Look up the first so many fake images. Default: {Settings.num_queries}.",
            rich_help_panel=NEIGHBOURS,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="PNG",
            help=f"Where the sheet goes. Default: {Settings.sheet}.",
            rich_help_panel=NEIGHBOURS,
        ),
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Measure reconstructions against their originals, or samples against a collection.

    **Pairs** (psnr, ssim, lpips, rfid): left out, `--fake` is the newest key-code store, decoded on the fly, and
    `--real` the collection it was encoded from. Images are paired by key: equal keys, or one with directories in
    front.

    **Sets** (fid, clip-fid, kid, ...): left out, `--fake` is the newest samples, and `--real` the collection that the
    autoencoder behind them was trained on.

    The transform and size of the store or autoencoder behind one side apply to the collection on the other.

    **Reports** written with `--out` stand side by side in `brics eval compare A.json B.json`.
    """
    if context.invoked_subcommand is not None:
        return ExitCode.DONE
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    real = _chosen(real, real_subset, real_image_field, side="real")
    fake = _chosen(fake, fake_subset, fake_image_field, side="fake")
    if self_test:
        return _self_test(session, real, fake, device=device)
    from brics_cli.api import evaluate
    from brics_cli.sampling.drawn import DrawSettings

    settings = {
        "mode": mode,
        "preset": preset,
        "neighbours_by": neighbours_by,
        "num_queries": neighbours_of,
        "sheet": sheet,
    }
    draw = {"num_images": num_samples, "sampler": sampler, "steps": steps}
    report = evaluate(
        metric,
        real=real,
        fake=fake,
        limit=limit,
        settings=Settings(**_given(settings)),
        draw=DrawSettings(**_given(draw)),
        statistics_by=statistics_by,
        allow_unverified=allow_unverified,
        use_cache=not no_cache,
        batch_size=batch_size,
        out=out,
        dry_run=dry_run,
        device=device,
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
    session.result(report.to_json(), [results_table(report), *footnotes(report)])
    say_what_was_not_measured(session, report, out)
    store = next((source.path for source in report.sources if source.kind == "store"), None)
    if store is not None and "fid" not in {result.metric for result in report.results}:
        session.next_step("brics", "train-diffusion", store)
    else:
        session.next_step("brics", "status")
    return ExitCode.SOME_FAILED if report.failures else ExitCode.DONE


@app.command("compare")
def compare_reports(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="Files that `brics eval --out` wrote.")],
    metric: Annotated[
        str, typer.Option("--metric", help="What to plot against the training step of the model.")
    ] = "fid",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the plot there: .png, .pdf or .svg.")
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Print reports side by side, the best figure of each metric marked, and plot one against training steps.

    Figures that differ in definition, reference or number of images are not ranked: the last column says why.
    """
    from brics_cli.evaluation.comparing import compare, load_report, plot_against_steps
    from brics_cli.evaluation.registry import metric as known_metric
    from brics_cli.workspace import check_output, check_writable

    session = Session(quiet=quiet, as_json=as_json)
    loaded = [load_report(path) for path in reports]
    rows = compare(loaded)
    if plot is not None:
        check_output(plot, overwrite=overwrite, what="the plot", flag="--plot")
        check_writable(plot)
        num_points = plot_against_steps(loaded, known_metric(metric).name, path=plot)
        session.reporter.message(f"plot: {plot}, {num_points} points")
    value = {"reports": [asdict(report) for report in loaded], "metrics": [asdict(row) for row in rows]}
    session.result(value, comparison_table(loaded, rows))
    session.next_step("brics", "status")
    return ExitCode.DONE


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def _chosen(path: str | None, subset: str | None, image_field: str | None, *, side: str) -> str | None:
    """The path of `subset` of the collections at `path`, and of its images `image_field`."""
    if subset is None and image_field is None:
        return path
    from brics_cli.images.opening import subset_path

    if path is None:
        option = f"--{side}-subset {subset}" if subset is not None else f"--{side}-image-field {image_field}"
        raise UsageError(f"{option} goes with --{side} PATH")
    return subset_path(path, subset, image_field)


def _self_test(session: Session, real: str | None, fake: str | None, *, device: str) -> int:
    from brics_cli.jobs.self_test import self_test

    if real is not None and not real.endswith(".npz"):
        raise UsageError(f"--self-test --real {real}: give clean-fid's statistics, an .npz")
    statistics = None if real is None else Path(real)
    checks = self_test(statistics=statistics, images=fake, device=device, reporter=session.reporter)
    session.result([asdict(check) for check in checks], checks_table(checks))
    session.next_step("brics", "eval")
    return ExitCode.MACHINE if any(check.passed is False for check in checks) else ExitCode.DONE
