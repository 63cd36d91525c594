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
        typer.Option("--ae-steps", min=1, help="Train the autoencoder this long. Default: as recipe tiny says."),
    ] = None,
    diffusion_steps: Annotated[
        int | None,
        typer.Option("--diffusion-steps", min=1, help="Train the diffusion model this long. Default: likewise."),
    ] = None,
    dtype: options.Dtype = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run the whole pipeline on the bundled photographs, in minutes, on any machine.

    Photographs inside scikit-image are cut into 64 px crops, packed, used to train an autoencoder, encoded, decoded,
    used to train a diffusion model, sampled and measured, each by the command of that name. At the end all of it is in
    one page, `report.html`. What it leaves is an ordinary workspace: go there and go on.

    Example: brics demo --out brics-demo
    """
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    folder = out if out is not None else session.workspace.root / "brics-demo"
    if dry_run:
        from brics_cli.images.photographs import photograph_crops

        held_out = [crop.held_out for crop in photograph_crops()]
        value = {"workspace": folder, "num_train": held_out.count(False), "num_held_out": held_out.count(True)}
        session.result(
            value,
            f"would cut {held_out.count(False):,} training and {held_out.count(True)} held-out crops of 64 px, train "
            f"and measure on them, in {folder}; the README says how long that took and where",
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
    title = f"{result.num_held_out} held-out crops of 64 px, autoencoder trained on {result.num_train}"
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
