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

from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.diffusion.samplers import DEFAULT_SAMPLER, SamplerSettings
from brics_cli.images.reading import Image, ImageStream
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.sampling.sample_plan import SamplePlan, plan_sampling
from brics_cli.sampling.sample_tasks import key_of
from brics_cli.workspace import Workspace


@dataclass(frozen=True)
class DrawSettings:
    """How many images, from seed 0 on, and how."""

    num_images: int = 1000
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None


class DrawnStream(ImageStream):
    """The images of seeds 0 to N - 1 of a diffusion model; the key of an image is its seed."""

    kind = "diffusion"

    def __init__(self, plan: SamplePlan, *, path: str, batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self.plan = plan
        self.path = path
        self.keys = [key_of(seed) for seed in plan.seeds]
        denoiser = plan.stream.denoiser
        identity = {"settings": plan.settings, "model": denoiser.weights_sha256}
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        settings, balance = self.plan.stream.settings, self.plan.stream.balance
        classes = {"proportional": ", classes as often as in training", "even": ", each class alike"}.get(balance or "")
        return (
            f"{len(self):,} images drawn from a diffusion model, {settings.sampler}, "
            f"{settings.num_evaluations} evaluations each, seeds {self.plan.settings['seeds']}{classes or ''}"
        )

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        """The images at `positions`, in that order. A batch of seeds is computed whole, and once if they rise."""
        drawn: dict[int, Image] = {}
        waiting: list[Image | None] = []
        for position in range(len(self)) if positions is None else positions:
            if position not in drawn:
                drawn = self._batch_of(position)
            waiting.append(drawn[position])
            if len(waiting) == self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _batch_of(self, seed: int) -> dict[int, Image]:
        """The images of the batch that `seed` is computed in, by seed."""
        stream = self.plan.stream
        first = seed - seed % stream.batch_size
        seeds = range(first, first + stream.batch_size)
        codes, _ = stream.compute(seeds)
        with torch.inference_mode():
            images = to_uint8(self.plan.autoencoder.decode(codes))  # (B, H, W, 3)
        return dict(zip(seeds, images, strict=True))


def draw_images(
    model: Path,
    settings: DrawSettings,
    *,
    workspace: Workspace,
    device: torch.device,
    batch_size: int,
    reporter: Reporter | None = None,
) -> DrawnStream:
    """The stream of the diffusion run (or its `model` directory) `model`.

    Raises ArtefactError and UsageError as `plan_sampling` does.
    """
    plan = plan_sampling(
        model,
        seeds=range(settings.num_images),
        settings=SamplerSettings(sampler=settings.sampler, steps=settings.steps),
        batch_size=batch_size,
        workspace=workspace,
        device=device,
        out=Path("drawn.h5"),  # nothing is written: a plan is of samples that go somewhere
        format="h5",
        reporter=reporter or SilentReporter(),
    )
    return DrawnStream(plan, path=str(model.resolve()), batch_size=batch_size)
