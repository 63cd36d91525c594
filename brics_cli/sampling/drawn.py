"""Images drawn from a diffusion model while they are measured: nothing is written, image i is that of seed i.

B images per batch, (H, W, 3) uint8 RGB; the same pixels as the PNGs of `brics sample` with the same settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from brics_cli.diffusion.samplers import DEFAULT_SAMPLER
from brics_cli.images.loader import Image, ImageStream
from brics_cli.sampling.models import Models, load_models
from brics_cli.sampling.tasks import key_of
from brics_cli.workspace import Workspace


@dataclass(frozen=True)
class DrawSettings:
    """How many images, from seed 0 on, and how."""

    num_images: int = 1000
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None


class DrawnStream(ImageStream):
    """The images of seeds 0 to `num_images` - 1 of a diffusion model; the key of an image is its seed."""

    kind = "diffusion"

    def __init__(self, models: Models, num_images: int, *, path: str, batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self.models = models
        self.path = path
        self.keys = [key_of(seed) for seed in range(num_images)]
        settings = {**models.record(batch_size=batch_size), "seeds": f"0-{num_images - 1}"}
        identity = {"settings": settings, "model": models.denoiser.weights_sha256}
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        how = {"proportional": ", classes as often as in training", "even": ", each class alike"}
        return (
            f"{len(self):,} images drawn from a diffusion model, {self.models.settings.sampler}, "
            f"{self.models.settings.num_evaluations} evaluations each, seeds 0-{len(self) - 1}"
            f"{how.get(self.models.balance or '', '')}"
        )

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        """The images at `positions`, in that order. A batch of seeds is computed whole, and once if they rise."""
        drawn: dict[int, Image] = {}
        waiting: list[Image | None] = []
        for position in range(len(self)) if positions is None else positions:
            if position not in drawn:
                first = position - position % self.batch_size
                seeds = range(first, first + self.batch_size)
                codes, _ = self.models.compute(seeds)
                drawn = dict(zip(seeds, self.models.pixels(codes), strict=True))  # (H, W, 3) each
            waiting.append(drawn[position])
            if len(waiting) == self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting


def draw_images(
    model: Path, settings: DrawSettings, *, workspace: Workspace, device: torch.device, batch_size: int
) -> DrawnStream:
    """The stream of the diffusion run (or its `model` directory) `model`. Raises what `load_models` raises."""
    models = load_models(model, sampler=settings.sampler, steps=settings.steps, workspace=workspace, device=device)
    return DrawnStream(models, settings.num_images, path=str(model.resolve()), batch_size=batch_size)
