"""Pictures of a diffusion model: one grid of seeds, or the way from one seed to another.

B images at once, (H, W, 3) uint8; latent noise (C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brics_cli.diffusion.diffusion import ImageNoise
from brics_cli.diffusion.samplers import SAMPLERS, Noise, listed
from brics_cli.errors import UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.batch_sizes import OutOfMemory, attempt, halved
from brics_cli.sampling.models import Models, OnStep

STRIP_COLUMNS = 16


@dataclass(frozen=True)
class Picture:
    """`num_images` images of `models` to be looked at together, in rows of `num_columns`.

    `noise(places)` draws for the images at these places, and `labels` are the classes of all (None: no classes).
    `seeds` are those of the images of a grid, with `row_labels`, or the two ends of an interpolation, whose images are
    also `frames` on their own. `settings` is what the images depend on beside the models' settings.
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
                f"--grid {num_rows}x{num_columns} has a row per class, and {denoiser.path} knows {len(present)}",
                next=f"Use at most {len(present)} rows, or --class for a grid of one class.",
            )
        seeds = seeds[:num_columns] * num_rows
        labels = [class_ for class_ in present[:num_rows] for _ in range(num_columns)]
    ends = [(seeds[first], seeds[first + num_columns - 1]) for first in range(0, num_images, num_columns)]
    row_labels = [f"seed {first}" if first == last else f"seeds {first} to {last}" for first, last in ends]
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


def draw_images(
    picture: Picture, *, on_step: OnStep, on_shrink: Callable[[int, str], None]
) -> Iterator[list[np.ndarray]]:
    """The images of `picture` in order, (H, W, 3) uint8 each, batch by batch.

    `on_step` is called between two evaluations of the network, `on_shrink` with the new batch size and the reason when
    memory runs out.
    """
    models, size, num_done = picture.models, min(picture.batch_size, picture.num_images), 0

    def draw(places: Sequence[int]) -> np.ndarray:
        labels = None if picture.labels is None else [picture.labels[place] for place in places]
        return models.pixels(models.codes(picture.noise(places), labels=labels, on_step=on_step))

    while num_done < picture.num_images:
        # all batches are of one shape: the last one is padded
        places = [min(place, picture.num_images - 1) for place in range(num_done, num_done + size)]
        drawn = attempt(partial(draw, places), device=models.device)
        if isinstance(drawn, OutOfMemory):
            size = halved(size, drawn, device=models.device)
            on_shrink(size, drawn.reason)
            continue
        yield list(drawn[: picture.num_images - num_done])
        num_done += size
