"""`brics bench sample`: seconds and GFLOP of an image by sampler and steps, and images per second by batch size.

GFLOP are torch's count (2 per multiply-add) on meta tensors: one estimate of the codes as samplers make it, with its
guidance, times the estimates of a sampler, and one decoding. Seconds are those of `brics sample` up to the pixels in
memory: float32, noise drawn per image, codes decoded to uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.bench.sample_models import decoding_gflop, estimate_gflop
from brics_cli.bench.timing import device_name, median_seconds, peak_bytes
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.diffusion.samplers import SAMPLERS, SamplerSettings
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.batch_sizes import OutOfMemory, attempt
from brics_cli.sampling.models import Models

RELEASE_GFLOP = 301_000.0
"""The authors' release as counted for it: 1000 ancestral steps of its U-Net at 64 x 64 x 4, 301 GFLOP each."""
RELEASE_STEPS = 1000
TARGET_GFLOP, TARGET_IMAGE_SIZE = 1000.0, 256
"""What an image of 256 px shall cost at most."""
SHORT_STEPS = 2
"""Steps of the walk that tells how long an estimate takes."""


@dataclass(frozen=True)
class SamplerCost:
    """An image from one sampler: `num_evaluations` estimates of its codes, and one decoding.

    `of_release` is the share of the release's GFLOP. `timed_in_full`: the seconds are those of whole walks; else of
    the walk of SHORT_STEPS, scaled.
    """

    sampler: str
    steps: int
    num_evaluations: int
    gflop: float
    of_release: float
    decoder_share_of_gflop: float
    s_per_img: float
    decoder_share_of_time: float
    timed_in_full: bool


@dataclass(frozen=True)
class BatchSpeed:
    """Images per second in batches of `batch_size`; None where memory ran out. Peak memory is of CUDA devices alone,
    above the models'."""

    batch_size: int
    img_per_s: float | None
    peak_memory_mib: float | None


@dataclass(frozen=True)
class SampleCosts:
    """What `bench_sample` found. `speeds` are of `speeds_sampler` with `speeds_steps`."""

    device: str
    image_size: int
    code_shape: tuple[int, int, int]
    batch_size: int
    evaluation_gflop: float
    decoder_gflop: float
    costs: list[SamplerCost]
    speeds_sampler: str
    speeds_steps: int
    speeds: list[BatchSpeed]


def bench_sample(
    denoiser: Denoiser,
    autoencoder: Autoencoder,
    *,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    samplers: Sequence[str] = tuple(SAMPLERS),
    steps: Sequence[int] = (),
    batch_size: int,
    repeats: int,
    budget_s: float,
    reporter: Reporter,
) -> SampleCosts:
    """Time and count each of `samplers` with each number of `steps` (none: its default, and one for comparison).

    The models stand on the device to be measured. Images per second are those of the first sampler (with the first of
    `steps`, or its default), in batches of 1, of a quarter of `batch_size`, of `batch_size`, and of four times as many.
    A figure takes about `budget_s` seconds at most; where two walks take longer than that, it is scaled from a shorter
    one. Raises UsageError for guidance that the model cannot have, ArtefactError for a guide that does not fit.
    """
    timer = _Timer(denoiser, autoencoder, guide=guide, guidance=guidance, repeats=repeats, budget_s=budget_s)
    timer.models(samplers[0], None)  # what cannot be meant is said before anything is timed
    evaluation_gflop = estimate_gflop(denoiser, guide=guide, guidance=guidance)
    decoder_gflop = decoding_gflop(autoencoder)
    reporter.message(f"timing {', '.join(samplers)} in batches of {batch_size}")
    decoding_s = timer.decoding_s(batch_size)
    costs = []
    for name in samplers:
        estimate_s = timer.estimate_s(name, batch_size)
        for number in sorted(steps or {SAMPLERS[name].default_steps, SAMPLERS[name].compared_steps}):
            evaluations = SamplerSettings(sampler=name, steps=number).num_evaluations
            walk_s = evaluations * estimate_s
            in_full = 2 * walk_s <= budget_s
            if in_full:
                walk_s = timer.walk_s(name, number, batch_size)
            gflop = evaluations * evaluation_gflop + decoder_gflop
            costs.append(
                SamplerCost(
                    sampler=name,
                    steps=number,
                    num_evaluations=evaluations,
                    gflop=gflop,
                    of_release=gflop / RELEASE_GFLOP,
                    decoder_share_of_gflop=decoder_gflop / gflop,
                    s_per_img=(walk_s + decoding_s) / batch_size,
                    decoder_share_of_time=decoding_s / (walk_s + decoding_s),
                    timed_in_full=in_full,
                )
            )
    settings = SamplerSettings(sampler=samplers[0], steps=steps[0] if steps else None)
    speeds: list[BatchSpeed] = []
    for size in sorted({1, max(1, batch_size // 4), batch_size, 4 * batch_size}):
        measured = attempt(partial(timer.speed, settings, size), device=timer.device)
        if isinstance(measured, OutOfMemory):
            speeds.append(BatchSpeed(size, None, None))
            break
        speeds.append(measured)
    return SampleCosts(
        device=device_name(timer.device),
        image_size=autoencoder.config.image_size,
        code_shape=denoiser.code_shape,
        batch_size=batch_size,
        evaluation_gflop=evaluation_gflop,
        decoder_gflop=decoder_gflop,
        costs=costs,
        speeds_sampler=settings.sampler,
        speeds_steps=settings.num_steps,
        speeds=speeds,
    )


class _Timer:
    """Seconds of the parts of sampling a batch, each the median of repeats."""

    def __init__(
        self,
        denoiser: Denoiser,
        autoencoder: Autoencoder,
        *,
        guide: Denoiser | None,
        guidance: float,
        repeats: int,
        budget_s: float,
    ) -> None:
        self.denoiser, self.autoencoder, self.guide, self.guidance = denoiser, autoencoder, guide, guidance
        self.repeats, self.budget_s, self.device = repeats, budget_s, denoiser.mean.device

    def models(self, sampler: str, steps: int | None) -> Models:
        settings = SamplerSettings(sampler=sampler, steps=steps, guidance=self.guidance)
        return Models(self.denoiser, self.autoencoder, settings, self.guide)

    def walk_s(self, sampler: str, steps: int, size: int) -> float:
        """From seeds to the codes of `size` images."""
        models = self.models(sampler, steps)
        return self._seconds(lambda: models.compute(range(size)))

    def estimate_s(self, sampler: str, size: int) -> float:
        """One estimate of `size` images, as part of a walk of SHORT_STEPS."""
        settings = SamplerSettings(sampler=sampler, steps=SHORT_STEPS)
        return self.walk_s(sampler, SHORT_STEPS, size) / settings.num_evaluations

    def decoding_s(self, size: int) -> float:
        """From codes to the pixels of `size` images, in the memory of the machine."""
        codes = torch.full((size, *self.denoiser.code_shape), 0.5, device=self.device)
        models = Models(self.denoiser, self.autoencoder)
        return self._seconds(lambda: models.pixels(codes))

    def speed(self, settings: SamplerSettings, size: int) -> BatchSpeed:
        """Images per second in batches of `size`, scaled from a short walk."""
        estimate_s = self.estimate_s(settings.sampler, size)
        img_per_s = size / (settings.num_evaluations * estimate_s + self.decoding_s(size))
        models = self.models(settings.sampler, 1)
        peak = peak_bytes(lambda: models.pixels(models.compute(range(size))[0]), device=self.device)
        return BatchSpeed(size, img_per_s, None if peak is None else peak / 2**20)

    def _seconds(self, work: Callable[[], object]) -> float:
        return median_seconds(work, device=self.device, repeats=self.repeats, warmup=1, budget_s=self.budget_s)
