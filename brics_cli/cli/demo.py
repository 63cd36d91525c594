"""`brics demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.runtime.reporting import command_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from brics_cli.demo import DemoResult

app = options.command_app()


@app.command()
def demo(
    out: Annotated[
        Path | None,
        options.out_option("DIR", "The workspace it makes. Default: brics-demo in the workspace."),
    ] = None,
    ae_steps: Annotated[
        int | None,
        typer.Option("--ae-steps", min=1, help="Fine-tune the autoencoder this long. Default: 150."),
    ] = None,
    diffusion_steps: Annotated[
        int | None,
        typer.Option(
            "--diffusion-steps", min=1, help="Train the diffusion model this long. Default: as recipe tiny says."
        ),
    ] = None,
    dtype: options.Dtype = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run the whole pipeline on pictures that it draws, in minutes, on any machine.

    Landscapes of 64 px, four hours of the day as classes, are drawn, packed, used to fine-tune `brics-mini`, encoded,
    decoded, used to train a diffusion model, sampled and measured, each by the command of that name. At the end all of
    it is in one page, `report.html`. What it leaves is an ordinary workspace: go there and go on.

    Example: brics demo --out brics-demo
    """
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    folder = out if out is not None else session.workspace.root / "brics-demo"
    if dry_run:
        from brics_cli.images.landscapes import NUM_HELD_OUT, NUM_TRAIN

        session.result(
            {"workspace": folder, "num_train": NUM_TRAIN, "num_held_out": NUM_HELD_OUT},
            f"would draw {NUM_TRAIN:,} training and {NUM_HELD_OUT} held-out landscapes of 64 px, train and measure on "
            f"them, in {folder}; the README says how long that took and where",
        )
        return
    session.reporter.message("loading torch")
    from brics_cli.demo import run_demo

    result = run_demo(
        folder,
        device=device,
        precision=dtype,
        ae_steps=ae_steps,
        diffusion_steps=diffusion_steps,
        overwrite=overwrite,
        reporter=session.reporter,
    )
    value = {
        **vars(result),
        "quality": [asdict(row) for row in result.quality],
        "reports": [report.to_json() for report in result.reports],
    }
    session.result(value, _tables(result))
    session.reporter.message(f"next: cd {command_line(result.workspace)} && brics status")


def _tables(result: DemoResult) -> list[RenderableType]:
    title = f"{result.num_held_out} held-out landscapes of 64 px, fine-tuned on {result.num_train:,}"
    quality = plain_table("", "PSNR dB", "SSIM", "pixel values per number kept", title=title)
    for row in result.quality:
        quality.add_row(row.name, f"{row.psnr_db:.2f}", f"{row.ssim:.4f}", f"{row.pixel_ratio:.0f}")
    parts: list[RenderableType] = [quality]
    others = [each for report in result.reports for each in report.results if each.metric not in ("psnr", "ssim")]
    if others:
        more = plain_table("metric", "value", "N")
        for each in others:
            more.add_row(each.title, f"{each.value:.3f}", f"{each.num_fake:,}")
        parts.append(more)
    if result.left_out:
        parts.append(f"not measured, weights missing: {', '.join(result.left_out)} (brics weights list)")
    spent = "  ".join(f"{'all' if name == 'total' else name} {s:.0f} s" for name, s in result.seconds.items())
    return [*parts, f"time: {spent}", f"sheet: {result.sheet}", f"report: {result.page}"]
