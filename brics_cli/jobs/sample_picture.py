"""`brics sample --grid` and `--interpolate`: a few images of a diffusion model in one picture, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.errors import NothingSavedError, UsageError
from brics_cli.images import contact_sheet
from brics_cli.images.outputs import absent_unless_done, output_lock
from brics_cli.images.sinks import PNG
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.runtime.stopping import stop_signals
from brics_cli.sampling.pictures import Grid, Interpolation, draw_picture
from brics_cli.sampling.sample_models import SampleModels
from brics_cli.workspace import Artefact, Workspace, atomic_path, check_output, write_provenance
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import FOLDER, PICTURE, form_of_output

SHOWN_SIDE = 128
"""Smaller images are enlarged by whole pixels up to about this, so that they can be judged."""
STRIP, STRIP_COLUMNS = "strip.png", 16


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


def picture_path(
    picture: Grid | Interpolation, models: SampleModels, *, workspace: Workspace, out: Path | None
) -> Path:
    """Where the picture goes: a PNG file for a grid, a folder for an interpolation. Raises UsageError."""
    is_grid = isinstance(picture, Grid)
    if out is None:
        run = workspace.new_run_path("samples", models.recipe)
        return run.with_name(f"{run.name}-grid.png" if is_grid else f"{run.name}-interpolation")
    form_of_output(out, PICTURE if is_grid else {"the PNG files of an interpolation": (FOLDER,)})
    if not is_grid and out.is_file():
        raise UsageError(f"--out {out}: an interpolation is a folder of PNG files", next="Example: --out frames")
    return out


def draw(
    picture: Grid | Interpolation, models: SampleModels, *, out: Path, overwrite: bool = False, reporter: Reporter
) -> PictureResult:
    """Draw the picture and write it to `out`, with its provenance.

    Raises WouldOverwriteError when something is there, MachineError when memory holds not even one image or another
    process is writing `out`, NothingSavedError on Ctrl-C.
    """
    settings = {**models.settings, **describe(picture)}
    inputs = [parent.path for parent in models.parents]
    shrunk: list[int] = []
    split, total, step = TimeSplit(), models.stream.settings.num_evaluations, 0

    def on_shrink(size: int, reason: str) -> None:
        shrunk.append(size)
        reporter.warning(f"out of memory on {models.stream.device} ({reason}): going on with batches of {size}")

    out.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(out), stop_signals() as stop:
        check_output(out, overwrite=overwrite, what="the output", kind="pictures", inputs=inputs)
        with reporter.task("sample", total=len(picture), unit="img") as task:

            def on_step() -> None:
                nonlocal step
                if stop.signal is not None:
                    raise NothingSavedError(stop.signal, f"nothing is written to {out}")
                step = step % total + 1
                task.advance(0, note=f"step {step}/{total}")

            with split.phase("draw"):
                images = draw_picture(models, picture, on_step=on_step, on_images=task.advance, on_shrink=on_shrink)
        details: dict[str, Any] = {"settings": settings, "num_images": len(images), "seconds": split.seconds}
        details |= {"device": str(models.stream.device), "summary": summary(picture)}
        if shrunk:
            details["batch_sizes"] = shrunk
        artefact = Artefact("pictures", out, now(), True, models.parents, details)
        frames: list[str] = []
        if isinstance(picture, Grid):
            with absent_unless_done([out]):
                _write_sheet(images, picture, models, path=out)
                write_provenance(artefact)
        else:
            with atomic_path(out) as folder:
                folder.mkdir()
                frames = _write_frames(images, folder)
                _write_sheet(images, picture, models, path=folder / STRIP)
                write_provenance(replace(artefact, path=folder))
    return PictureResult(
        path=out if isinstance(picture, Grid) else out / STRIP,
        frames=[out / name for name in frames],
        num_images=len(images),
        seeds=picture.seeds if isinstance(picture, Grid) else [picture.start, picture.stop],
        labels=picture.labels(models),
        model=models.stream.denoiser.path,
        autoencoder=models.autoencoder.path,
        settings=settings,
    )


def describe(picture: Grid | Interpolation) -> dict[str, Any]:
    """What the images depend on beside the models' settings."""
    if isinstance(picture, Grid):
        return {"grid": f"{picture.num_rows}x{picture.num_columns}", "first_seed": picture.first_seed}
    return {"interpolate": [picture.start, picture.stop], "frames": picture.num_frames, "class": picture.class_}


def summary(picture: Grid | Interpolation) -> str:
    """The picture in a few words."""
    if isinstance(picture, Grid):
        per_class = f", classes 0 to {picture.num_rows - 1}" if picture.classes is not None else ""
        return f"grid of {picture.num_rows} x {picture.num_columns} from seed {picture.first_seed}{per_class}"
    of_class = f", class {picture.class_}" if picture.class_ is not None else ""
    return f"{picture.num_frames} frames from seed {picture.start} to seed {picture.stop}{of_class}"


def _write_frames(images: list[np.ndarray], folder: Path) -> list[str]:
    """Write `frame-00.png`, ... and return the names."""
    digits = max(2, len(str(len(images) - 1)))
    names = [f"frame-{number:0{digits}d}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(PNG.encode(np.ascontiguousarray(image)))
    return names


def _write_sheet(images: list[np.ndarray], picture: Grid | Interpolation, models: SampleModels, *, path: Path) -> None:
    num_columns = picture.num_columns if isinstance(picture, Grid) else min(STRIP_COLUMNS, len(images))
    rows = [images[first : first + num_columns] for first in range(0, len(images), num_columns)]
    sampler = models.stream.settings
    guided = f", guidance {sampler.guidance:g}" if sampler.guidance != 1.0 else ""
    contact_sheet(
        rows,
        path=path,
        row_labels=picture.row_labels if isinstance(picture, Grid) else None,
        title=f"{summary(picture)}; {sampler.sampler} {sampler.num_steps} steps{guided}",
        scale=max(1, SHOWN_SIDE // models.autoencoder.config.image_size),
    )
