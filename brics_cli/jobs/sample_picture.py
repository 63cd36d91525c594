"""`brics sample --out x.png`, `--grid` and `--interpolate`: a few images of a diffusion model in one picture.

Seeds in order, a grid of them, or the way from one seed to another. B images at once, (H, W, 3) uint8; latent noise
(C, h, w).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brics_cli.config.names import Precision
from brics_cli.diffusion.samplers import SAMPLERS, Noise, listed
from brics_cli.errors import NothingSavedError, UsageError
from brics_cli.images import contact_sheet
from brics_cli.images.sinks import PNG
from brics_cli.runtime.device import resolve_devices
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.runtime.stopping import stop_signals
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.engine import Engine
from brics_cli.sampling.models import CodesOfSeeds, ImageNoise, Models, OnStep, load_models
from brics_cli.sampling.tasks import DEFAULT_BATCH_SIZE, DEFAULT_FRAMES, Task, check_seed, seed_range
from brics_cli.wording import count
from brics_cli.workspace import Artefact, Workspace, atomic_path, check_output, write_provenance
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import FOLDER, PICTURE, form_of_output
from brics_cli.workspace.outputs import absent_unless_done, output_lock

MAX_GRID_SIDE = 256
STRIP, STRIP_COLUMNS = "strip.png", 16


@dataclass(frozen=True)
class Picture:
    """`num_images` images of `models` to be looked at together, in rows of `num_columns`.

    `noise(places)` draws for the images at these places, and `labels` are the classes of all (None: no classes).
    `seeds` are those of the images of a grid, with `row_labels`, or the two ends of an interpolation, whose images are
    also `frames` on their own. `settings` is what the images depend on besides the models' settings.
    """

    models: Models
    batch_size: int
    num_images: int
    num_columns: int
    seeds: list[int]
    labels: list[int] | None
    noise: Callable[[Sequence[int]], Noise]
    summary: str
    settings: dict[str, Any]
    row_labels: list[str] | None = None
    frames: bool = False

    def compute(self, places: Sequence[int], on_step: OnStep | None = None) -> CodesOfSeeds:
        """The codes of the images at `places`; beyond the end, those of the last image."""
        places = [min(place, self.num_images - 1) for place in places]
        labels = None if self.labels is None else [self.labels[place] for place in places]
        return self.models.codes(self.noise(places), labels=labels, on_step=on_step), labels


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
    num: int | None = None,
    seeds: str | range | None = None,
    seed: int | None = None,
    out: Path | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: str = "auto",
    precision: Precision | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
    **how: Any,
) -> tuple[Picture, Path]:
    """The picture that was asked for, with its models loaded, and where it goes.

    It is a `grid`, `ROWSxCOLS`, of seeds from `seed` on, `interpolate`, the way between two seeds, or, with neither,
    the images of the seeds that `num`, `seeds` and `seed` say (see `brics_cli.api.sample`). `out` is a PNG file, or for
    an interpolation a folder; None: a new one in the workspace. `how` are the settings that `load_models`
    takes, which also says what is raised.
    """
    match = re.fullmatch(r"([0-9]+)[xX]([0-9]+)", grid or "1x1")
    rows, columns = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= rows <= MAX_GRID_SIDE and 1 <= columns <= MAX_GRID_SIDE):
        raise UsageError(f"--grid {grid} is not ROWSxCOLS, each from 1 to {MAX_GRID_SIDE}", next="Example: --grid 4x8")
    wanted = seed_range(num=num, seeds=seeds, seed=seed)
    if len(wanted) > MAX_GRID_SIDE**2:
        raise UsageError(
            f"{len(wanted):,} images are too many for one picture, which holds {MAX_GRID_SIDE**2:,} at most",
            next="Sample them into files: --out samples, or samples.zip.",
        )
    for end in interpolate or (seed or 0,):
        check_seed(end, option=f"--interpolate {interpolate[0]} {interpolate[1]}" if interpolate else f"--seed {seed}")
    if out is not None:
        form_of_output(out, {"the PNG files of an interpolation": (FOLDER,)} if interpolate else PICTURE)
        if interpolate and out.is_file():
            raise UsageError(f"--out {out}: an interpolation is a folder of PNG files", next="Example: --out frames")
    devices = resolve_devices(device)
    if len(devices) > 1:
        raise UsageError(f"--device {device}: a picture is drawn on one device", next="Name one.")
    if out is not None:
        check_output(out, overwrite=overwrite, what="the output", kind="pictures", remove=False)
    how["precision"] = precision_on(devices[0], precision)
    models = load_models(model, **how, workspace=workspace, device=devices[0], reporter=reporter)
    if interpolate is not None:
        num_frames = num_frames or DEFAULT_FRAMES
        picture = interpolation(models, *interpolate, num_frames=num_frames, batch_size=batch_size, reporter=reporter)
    elif grid is None:
        picture = pictured(models, wanted, batch_size=batch_size)
    else:
        picture = grid_of_seeds(models, rows, columns, first_seed=seed or 0, batch_size=batch_size)
    if out is None:
        run = workspace.new_run_path("samples", models.name)
        out = run.with_name(run.name + ("-interpolation" if picture.frames else "-grid.png"))
    return picture, out


def pictured(models: Models, seeds: range, *, batch_size: int) -> Picture:
    """The images of `seeds`, as `brics sample` draws them, in about as many rows as columns."""
    num_columns, wanted = math.ceil(math.sqrt(len(seeds))), list(seeds)

    def noise(places: Sequence[int]) -> Noise:
        return ImageNoise([wanted[place] for place in places], shape=models.denoiser.code_shape, device=models.device)

    rows = [wanted[first : first + num_columns] for first in range(0, len(wanted), num_columns)]
    return Picture(
        models,
        batch_size,
        len(wanted),
        num_columns,
        wanted,
        models.labels(wanted),
        noise,
        f"{count(len(wanted), 'image')}, {_named(wanted)}",
        settings={"seeds": f"{wanted[0]}-{wanted[-1]}"},
        row_labels=[_named(row) for row in rows],
    )


def _named(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def grid_of_seeds(models: Models, num_rows: int, num_columns: int, *, first_seed: int, batch_size: int) -> Picture:
    """A grid of seeds from `first_seed` on. A model with classes shows one per row, all of the same seeds, unless all
    images are to be of one class.

    Raises UsageError for more rows than classes.
    """
    denoiser, num_images = models.denoiser, num_rows * num_columns
    per_class = denoiser.num_classes > 0 and models.class_ is None
    seeds = list(range(first_seed, first_seed + num_images))
    if per_class:
        present = denoiser.classes.present
        if num_rows > len(present):
            raise UsageError(
                f"--grid {num_rows}x{num_columns} needs a class for each row, and {denoiser.path} has {len(present)}",
                next=f"Use at most {len(present)} rows, or --class for a grid of one class.",
            )
        seeds = seeds[:num_columns] * num_rows
        labels = [class_ for class_ in present[:num_rows] for _ in range(num_columns)]
    row_labels = [_named(seeds[first : first + num_columns]) for first in range(0, num_images, num_columns)]
    summary = f"grid of {num_rows} x {num_columns} from seed {first_seed}"
    if per_class:
        names = [denoiser.classes.shown(class_) for class_ in present[:num_rows]]
        row_labels = [f"class {name}, {label}" for name, label in zip(names, row_labels, strict=True)]
        summary += f", classes {labels[0]} to {labels[-1]}"

    def noise(places: Sequence[int]) -> Noise:
        return ImageNoise([seeds[place] for place in places], shape=denoiser.code_shape, device=models.device)

    return Picture(
        models,
        batch_size,
        num_images,
        num_columns,
        seeds,
        labels if per_class else models.labels(seeds),
        noise,
        summary,
        settings={"grid": f"{num_rows}x{num_columns}", "first_seed": first_seed},
        row_labels=row_labels,
    )


def interpolation(
    models: Models, start: int, stop: int, *, num_frames: int, batch_size: int, reporter: Reporter
) -> Picture:
    """`num_frames` images from seed `start` to seed `stop`, both included, of the class of `start` unless one was asked
    for.

    Raises UsageError for a sampler that draws noise on the way, and for a way of no length.
    """
    sampler, denoiser = models.settings.sampler, models.denoiser
    if SAMPLERS[sampler].stochastic:
        names = [name for name, each in SAMPLERS.items() if not each.stochastic]
        raise UsageError(
            f"--interpolate with --sampler {sampler}: it draws new noise at every step, so nothing lies between seeds",
            next=f"Use a deterministic sampler: {listed(names)}.",
        )
    if start == stop:
        raise UsageError(f"--interpolate {start} {stop}: both ends are the same seed", next="Give two seeds.")
    labels = models.labels([start])
    class_ = None if labels is None else labels[0]
    if class_ is not None and models.class_ is None:
        shown = denoiser.classes.shown(class_)
        reporter.message(f"--class not given: class {shown}, that of seed {start}, for all frames")

    def noise(places: Sequence[int]) -> Noise:
        """The latents on the way: drawn once, which is all that a deterministic sampler draws."""
        first, last = ImageNoise([start, stop], shape=denoiser.code_shape)()  # (C, h, w) each
        between = [spherical(first, last, place / (num_frames - 1)) for place in places]
        latent = torch.stack(between).to(models.device)  # (B, C, h, w)
        return lambda: latent

    return Picture(
        models,
        batch_size,
        num_frames,
        min(STRIP_COLUMNS, num_frames),
        [start, stop],
        None if class_ is None else [class_] * num_frames,
        noise,
        f"{num_frames} frames from seed {start} to seed {stop}" + ("" if class_ is None else f", class {class_}"),
        settings={"interpolate": [start, stop], "frames": num_frames, "class": class_},
        frames=True,
    )


def spherical(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From `a` at t = 0 to `b` at t = 1 along the great circle (Shoemake, SIGGRAPH 1985), both exact at the ends.

    Means of two normal draws are too short for what the model was trained on; points of this arc have their length.
    """
    x, y = a.double().flatten(), b.double().flatten()
    angle = torch.arccos((x @ y / (x.norm() * y.norm())).clamp(-1, 1))
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return between.to(a.dtype).reshape(a.shape)


def draw(picture: Picture, *, out: Path, overwrite: bool = False, reporter: Reporter) -> PictureResult:
    """Draw the picture and write it to `out`, with its provenance.

    Raises WouldOverwriteError when something is there, MachineError when memory holds not even one image or another
    process is writing `out`, NothingSavedError on Ctrl-C.
    """
    models = picture.models
    settings = {**models.record(batch_size=picture.batch_size), **picture.settings}
    sizes, places = BatchSizes(min(picture.batch_size, picture.num_images)), range(picture.num_images)
    images: dict[int, np.ndarray] = {}
    shrunk: list[int] = []
    split, total, step = TimeSplit(), models.settings.num_evaluations, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(out), stop_signals() as stop:
        inputs = [parent.path for parent in models.parents]
        check_output(out, overwrite=overwrite, what="the output", kind="pictures", inputs=inputs)
        with reporter.task("sample", total=picture.num_images, unit="img") as task:

            def on_step() -> None:
                nonlocal step
                if stop.signal is not None:
                    raise NothingSavedError(stop.signal, f"nothing is written to {out}")
                step = step % total + 1
                task.advance(0, note=f"step {step}/{total}")

            engine = Engine(models, sizes=sizes, sheet=places, compute=picture.compute, on_step=on_step)
            with split.phase("draw"):
                for done in engine.run([Task(None, places)]):
                    images |= done.shown
                    task.advance(len(done.shown))
                    if done.out_of_memory is not None:
                        shrunk.append(done.batch_size)
                        reporter.warning(
                            f"out of memory on {done.out_of_memory}: going on with batches of {done.batch_size}"
                        )
        details: dict[str, Any] = {"settings": settings, "num_images": len(images), "seconds": split.seconds}
        details |= {"device": str(models.device), "computed_in": models.precision, "summary": picture.summary}
        if shrunk:
            details["batch_sizes"] = shrunk
        artefact = Artefact("pictures", out, now(), True, models.parents, details)
        frames: list[str] = []
        if picture.frames:
            digits = max(2, len(str(len(images) - 1)))
            frames = [f"frame-{number:0{digits}d}.png" for number in range(len(images))]
            with atomic_path(out) as folder:
                folder.mkdir()
                for name, image in zip(frames, images.values(), strict=True):
                    (folder / name).write_bytes(PNG.encode(np.ascontiguousarray(image)))
                _write_sheet(list(images.values()), picture, path=folder / STRIP)
                write_provenance(replace(artefact, path=folder))
        else:
            with absent_unless_done([out]):
                _write_sheet(list(images.values()), picture, path=out)
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
    )
