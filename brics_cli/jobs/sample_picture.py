"""`brics sample --grid` and `--interpolate`: a few images of a diffusion model in one picture, to be looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.errors import NothingSavedError, UsageError
from brics_cli.images import contact_sheet
from brics_cli.images.sinks import PNG
from brics_cli.runtime.device import resolve_devices
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.runtime.stopping import stop_signals
from brics_cli.sampling.models import load_models
from brics_cli.sampling.pictures import Picture, draw_images, grid_of_seeds, interpolation
from brics_cli.sampling.tasks import DEFAULT_BATCH_SIZE, DEFAULT_FRAMES, check_seed
from brics_cli.workspace import Artefact, Workspace, atomic_path, check_output, write_provenance
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import FOLDER, PICTURE, form_of_output
from brics_cli.workspace.outputs import absent_unless_done, output_lock

MAX_GRID_SIDE = 256
SHOWN_SIDE = 128
"""Smaller images are enlarged by whole pixels up to about this, so that they can be judged."""
STRIP = "strip.png"


@dataclass(frozen=True)
class PictureResult:
    """A picture at `path`; `frames` are the single images of an interpolation, in order."""

    path: Path
    frames: list[Path]
    num_images: int
    seeds: list[int]
    labels: list[int] | None
    model: Path
    autoencoder: Path
    settings: dict[str, Any]


def plan_picture(
    model: Path | None = None,
    *,
    grid: str | None = None,
    interpolate: tuple[int, int] | None = None,
    num_frames: int | None = None,
    seed: int | None = None,
    out: Path | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: str = "auto",
    workspace: Workspace,
    reporter: Reporter,
    **how: Any,
) -> tuple[Picture, Path]:
    """The picture that was asked for, with its models loaded, and where it goes.

    It is a `grid`, `ROWSxCOLS`, of seeds from `seed` on, or `interpolate`, the way between two seeds. `out` is a PNG
    file, or for an interpolation a folder; None: a new one in the workspace. `how` are the settings that `load_models`
    takes, which also says what is raised.
    """
    match = re.fullmatch(r"([0-9]+)[xX]([0-9]+)", grid or "1x1")
    rows, columns = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= rows <= MAX_GRID_SIDE and 1 <= columns <= MAX_GRID_SIDE):
        raise UsageError(f"--grid {grid} is not ROWSxCOLS, each from 1 to {MAX_GRID_SIDE}", next="Example: --grid 4x8")
    for end in interpolate or (seed or 0,):
        check_seed(end, option=f"--interpolate {interpolate[0]} {interpolate[1]}" if interpolate else f"--seed {seed}")
    if out is not None:
        form_of_output(out, {"the PNG files of an interpolation": (FOLDER,)} if interpolate else PICTURE)
        if interpolate and out.is_file():
            raise UsageError(f"--out {out}: an interpolation is a folder of PNG files", next="Example: --out frames")
    devices = resolve_devices(device)
    if len(devices) > 1:
        raise UsageError(f"--device {device}: a picture is drawn on one device", next="Name one.")
    models = load_models(model, **how, workspace=workspace, device=devices[0], reporter=reporter)
    if interpolate is not None:
        num_frames = num_frames or DEFAULT_FRAMES
        picture = interpolation(models, *interpolate, num_frames=num_frames, batch_size=batch_size, reporter=reporter)
    else:
        picture = grid_of_seeds(models, rows, columns, first_seed=seed or 0, batch_size=batch_size)
    if out is None:
        run = workspace.new_run_path("samples", models.recipe)
        out = run.with_name(run.name + ("-interpolation" if picture.frames else "-grid.png"))
    return picture, out


def draw(picture: Picture, *, out: Path, overwrite: bool = False, reporter: Reporter) -> PictureResult:
    """Draw the picture and write it to `out`, with its provenance.

    Raises WouldOverwriteError when something is there, MachineError when memory holds not even one image or another
    process is writing `out`, NothingSavedError on Ctrl-C.
    """
    models = picture.models
    settings = {**models.record(batch_size=picture.batch_size), **picture.settings}
    shrunk: list[int] = []
    split, total, step = TimeSplit(), models.settings.num_evaluations, 0

    def on_shrink(size: int, reason: str) -> None:
        shrunk.append(size)
        reporter.warning(f"out of memory on {models.device} ({reason}): going on with batches of {size}")

    out.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(out), stop_signals() as stop:
        inputs = [parent.path for parent in models.parents]
        check_output(out, overwrite=overwrite, what="the output", kind="pictures", inputs=inputs)
        images: list[np.ndarray] = []
        with reporter.task("sample", total=picture.num_images, unit="img") as task:

            def on_step() -> None:
                nonlocal step
                if stop.signal is not None:
                    raise NothingSavedError(stop.signal, f"nothing is written to {out}")
                step = step % total + 1
                task.advance(0, note=f"step {step}/{total}")

            with split.phase("draw"):
                for some in draw_images(picture, on_step=on_step, on_shrink=on_shrink):
                    images += some
                    task.advance(len(some))
        details: dict[str, Any] = {"settings": settings, "num_images": len(images), "seconds": split.seconds}
        details |= {"device": str(models.device), "summary": picture.summary}
        if shrunk:
            details["batch_sizes"] = shrunk
        artefact = Artefact("pictures", out, now(), True, models.parents, details)
        frames: list[str] = []
        if picture.frames:
            digits = max(2, len(str(len(images) - 1)))
            frames = [f"frame-{number:0{digits}d}.png" for number in range(len(images))]
            with atomic_path(out) as folder:
                folder.mkdir()
                for name, image in zip(frames, images, strict=True):
                    (folder / name).write_bytes(PNG.encode(np.ascontiguousarray(image)))
                _write_sheet(images, picture, path=folder / STRIP)
                write_provenance(replace(artefact, path=folder))
        else:
            with absent_unless_done([out]):
                _write_sheet(images, picture, path=out)
                write_provenance(artefact)
    return PictureResult(
        path=out / STRIP if picture.frames else out,
        frames=[out / name for name in frames],
        num_images=len(images),
        seeds=picture.seeds,
        labels=picture.labels,
        model=models.denoiser.path,
        autoencoder=models.autoencoder.path,
        settings=settings,
    )


def _write_sheet(images: list[np.ndarray], picture: Picture, *, path: Path) -> None:
    how, num_columns = picture.models.settings, picture.num_columns
    guided = f", guidance {how.guidance:g}" if how.guidance != 1.0 else ""
    contact_sheet(
        [images[first : first + num_columns] for first in range(0, len(images), num_columns)],
        path=path,
        row_labels=picture.row_labels,
        title=f"{picture.summary}; {how.sampler} {how.num_steps} steps{guided}",
        scale=max(1, SHOWN_SIDE // picture.models.autoencoder.config.image_size),
    )
