"""Images drawn from a diffusion model while they are measured: nothing is written, each is that of its seed.

B images per batch, (H, W, 3) uint8 RGB; the same pixels as the PNGs of `brics sample` with the same settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch

from brics_cli.config.names import ClassBalance, Precision
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER
from brics_cli.images.loader import Image, ImageStream
from brics_cli.sampling.models import Models, load_models
from brics_cli.sampling.tasks import DEFAULT_NUM_DRAWN, key_of, seed_range
from brics_cli.workspace import Workspace
from brics_cli.workspace.places import reference


@dataclass(frozen=True)
class DrawSettings:
    """Which images are drawn, and how: what `brics_cli.api.sample` calls so. `num` None: 1000, or as `seeds` says."""

    num: int | None = None
    seeds: str | range | None = None
    seed: int | None = None
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    guidance: float = 1.0
    guide: Path | None = None
    class_: int | str | None = None
    class_balance: ClassBalance | None = None
    clip: bool = True
    ema: float | None = None

    @property
    def options(self) -> list[str]:
        """Those that are not as they are when nobody asks, as the command line spells them."""
        changed = (each.name for each in fields(self) if getattr(self, each.name) != each.default)
        return [f"--{'n' if name == 'num' else name.strip('_').replace('_', '-')}" for name in changed]

    def drawn(self) -> range:
        """The seeds. Raises UsageError as `seed_range`."""
        num = DEFAULT_NUM_DRAWN if self.num is None and self.seeds is None else self.num
        return seed_range(num=num, seeds=self.seeds, seed=self.seed)


class DrawnStream(ImageStream):
    """The images of `seeds` of a diffusion model; the key of an image is its seed."""

    kind = "diffusion"

    def __init__(self, models: Models, seeds: range, *, path: str, batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self.models = models
        self.path = path
        self.seeds = seeds
        self.keys = [key_of(seed) for seed in seeds]
        settings = {**models.record(batch_size=batch_size), "seeds": self._named}
        identity = {"settings": settings, "models": models.sha256s}
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def on(self, device: torch.device, *, num_workers: int) -> Self:
        self.models.to(device)
        return self

    @property
    def _named(self) -> str:
        return f"{self.seeds.start}-{self.seeds.stop - 1}"

    def describe(self) -> str:
        how = {"proportional": ", classes as often as in training", "even": ", each class alike"}
        return (
            f"{len(self):,} images drawn from a diffusion model, {self.models.settings.sampler}, "
            f"{self.models.settings.num_evaluations} evaluations each, seeds {self._named}"
            f"{how.get(self.models.balance or '', '')}"
        )

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        """The images at `positions`, in that order. A batch of seeds is computed whole, and once if they rise."""
        drawn: dict[int, Image] = {}
        waiting: list[Image | None] = []
        for position in range(len(self)) if positions is None else positions:
            if (seed := self.seeds[position]) not in drawn:
                first = seed - seed % self.batch_size
                seeds = range(first, first + self.batch_size)
                codes, _ = self.models.compute(seeds)
                drawn = dict(zip(seeds, self.models.pixels(codes), strict=True))  # (H, W, 3) each
            waiting.append(drawn[seed])
            if len(waiting) == self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting


def draw_images(
    model: Path,
    settings: DrawSettings,
    *,
    autoencoder: Path | None = None,
    precision: Precision = "fp32",
    workspace: Workspace,
    device: torch.device,
    batch_size: int,
) -> DrawnStream:
    """The stream of the diffusion run (or its `model` directory) `model`. Raises what `load_models` raises."""
    how = {name: value for name, value in vars(settings).items() if name not in ("num", "seeds", "seed")}
    models = load_models(model, **how, autoencoder=autoencoder, precision=precision, workspace=workspace, device=device)
    return DrawnStream(models, settings.drawn(), path=reference(models.denoiser.path), batch_size=batch_size)
