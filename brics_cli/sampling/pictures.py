"""Pictures of a diffusion model: one grid of seeds, or the way from one seed to another.

B images at once, (H, W, 3) uint8; latent noise (C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.diffusion.diffusion import ImageNoise
from brics_cli.diffusion.samplers import SAMPLERS, Noise, listed
from brics_cli.errors import UsageError
from brics_cli.sampling.batch_sizes import OutOfMemory, attempt, halved
from brics_cli.sampling.sample_models import SampleModels


@dataclass(frozen=True)
class Grid:
    """`num_rows` x `num_columns` seeds from `first_seed` on; `classes`, one per row, called `class_names`, all have the
    same seeds."""

    num_rows: int
    num_columns: int
    first_seed: int
    classes: tuple[int, ...] | None
    class_names: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seed of each image, row by row."""
        if self.classes is not None:
            return list(range(self.first_seed, self.first_seed + self.num_columns)) * self.num_rows
        return list(range(self.first_seed, self.first_seed + self.num_rows * self.num_columns))

    def labels(self, models: SampleModels) -> list[int] | None:
        """The class of each image, row by row; None: the model has no classes."""
        if self.classes is None:
            return models.stream.labels(self.seeds)
        return [class_ for class_ in self.classes for _ in range(self.num_columns)]

    @property
    def row_labels(self) -> list[str]:
        """What stands above each row."""
        rows = [self.seeds[i : i + self.num_columns] for i in range(0, len(self.seeds), self.num_columns)]
        said = [f"seed {row[0]}" if len(row) == 1 else f"seeds {row[0]} to {row[-1]}" for row in rows]
        if self.classes is None:
            return said
        return [f"class {name}, {seeds}" for name, seeds in zip(self.class_names, said, strict=True)]

    def noise(self, places: Sequence[int], models: SampleModels) -> Noise:
        """What the images at `places` draw: the same as in any run."""
        return ImageNoise(
            [self.seeds[place] for place in places],
            shape=models.stream.denoiser.code_shape,
            device=models.stream.device,
        )

    def __len__(self) -> int:
        return self.num_rows * self.num_columns


@dataclass(frozen=True)
class Interpolation:
    """`num_frames` images from seed `start` to seed `stop`, both included, all of class `class_` (None: no classes)."""

    start: int
    stop: int
    num_frames: int
    class_: int | None

    def labels(self, models: SampleModels) -> list[int] | None:
        return None if self.class_ is None else [self.class_] * self.num_frames

    def noise(self, places: Sequence[int], models: SampleModels) -> Noise:
        """The latents on the way: drawn once, which is all that a deterministic sampler draws."""
        shape = models.stream.denoiser.code_shape
        start, stop = ImageNoise([self.start, self.stop], shape=shape)()  # (C, h, w) each
        between = [spherical(start, stop, place / (self.num_frames - 1)) for place in places]
        latent = torch.stack(between).to(models.stream.device)  # (B, C, h, w)
        return lambda: latent

    def __len__(self) -> int:
        return self.num_frames


def spherical(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From `a` at t = 0 to `b` at t = 1 along the great circle (Shoemake, SIGGRAPH 1985), both exact at the ends.

    Means of two normal draws are too short for what the model was trained on; points of this arc have their length.
    """
    x, y = a.double().flatten(), b.double().flatten()
    angle = torch.arccos((x @ y / (x.norm() * y.norm())).clamp(-1, 1))
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return between.to(a.dtype).reshape(a.shape)


def plan_grid(models: SampleModels, *, num_rows: int, num_columns: int, first_seed: int) -> Grid:
    """The grid. A model with classes shows one per row, unless all images are to be of one.

    Raises UsageError for more rows than classes.
    """
    denoiser = models.stream.denoiser
    if denoiser.num_classes == 0 or models.stream.class_ is not None:
        return Grid(num_rows, num_columns, first_seed, None)
    present = denoiser.classes.present
    if num_rows > len(present):
        raise UsageError(
            f"--grid {num_rows}x{num_columns} has a row per class, and {denoiser.path} knows {len(present)}",
            next=f"Use at most {len(present)} rows, or --class for a grid of one class.",
        )
    rows = tuple(present[:num_rows])
    return Grid(num_rows, num_columns, first_seed, rows, tuple(map(denoiser.classes.shown, rows)))


def plan_interpolation(models: SampleModels, *, start: int, stop: int, num_frames: int) -> Interpolation:
    """The interpolation; of the class of seed `start` unless one class was asked for.

    Raises UsageError for a sampler that draws noise on the way, and for a way of no length.
    """
    sampler = models.stream.settings.sampler
    if SAMPLERS[sampler].stochastic:
        names = [name for name, each in SAMPLERS.items() if not each.stochastic]
        raise UsageError(
            f"--interpolate with --sampler {sampler}: it draws new noise at every step, so nothing lies between seeds",
            next=f"Use a deterministic sampler: {listed(names)}.",
        )
    if start == stop:
        raise UsageError(f"--interpolate {start} {stop}: both ends are the same seed", next="Give two seeds.")
    labels = models.stream.labels([start])
    return Interpolation(start, stop, num_frames, None if labels is None else labels[0])


def draw_picture(
    models: SampleModels,
    picture: Grid | Interpolation,
    *,
    on_step: Callable[[], None],
    on_images: Callable[[int], None],
    on_shrink: Callable[[int, str], None],
) -> list[np.ndarray]:
    """The images of `picture` in order, (H, W, 3) uint8 each, in batches of at most the stream's size.

    `on_step` is called between two evaluations of the network, `on_images` with the number of images that a batch
    added, `on_shrink` with the new batch size and the reason when memory runs out.
    """
    labels, size = picture.labels(models), min(models.stream.batch_size, len(picture))
    images: list[np.ndarray] = []
    while len(images) < len(picture):
        # all batches are of one shape: the last one is padded
        places = [min(place, len(picture) - 1) for place in range(len(images), len(images) + size)]
        drawn = attempt(partial(_draw, models, picture, places, labels, on_step), device=models.stream.device)
        if isinstance(drawn, OutOfMemory):
            size = halved(size, drawn, device=models.stream.device)
            on_shrink(size, drawn.reason)
            continue
        before = len(images)
        images.extend(drawn[: len(picture) - before])
        on_images(len(images) - before)
    return images


@torch.inference_mode()
def _draw(
    models: SampleModels,
    picture: Grid | Interpolation,
    places: Sequence[int],
    labels: Sequence[int] | None,
    on_step: Callable[[], None],
) -> np.ndarray:
    codes = models.stream.codes(
        picture.noise(places, models),
        labels=None if labels is None else [labels[place] for place in places],
        on_step=on_step,
    )  # (B, C, h, w)
    return to_uint8(models.autoencoder.decode(codes))
