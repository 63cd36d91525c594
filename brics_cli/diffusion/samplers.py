"""Samplers: one function each, in the manner of k-diffusion; paper and algorithm in the docstring.

All work on EDM's form, x = x0 + sigma eps, of which the variance-preserving x_t is alpha x (alpha = 1 / sqrt(1 +
sigma^2)): in it DDIM is Euler's method and DPM-Solver++ has the same exponentials. `sigmas` (N + 1,) fall to 0 at the
end, x starts as sigmas[0] times the latent noise, and `denoise(x, sigma)` gives the estimate of x0 (B, C, h, w) for a
float `sigma`. Every sampler is deterministic unless it is given `noise`, which draws another (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from brics_cli.config import DiffusionConfig
from brics_cli.config.suggestions import did_you_mean
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.diffusion.diffusion import karras_sigma, sampling_log_snr
from brics_cli.diffusion.guidance import check_guide, estimate
from brics_cli.errors import UsageError

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, churn: float = 0.0) -> Tensor:
    """EDM (Karras et al., arXiv 2206.00364): algorithm 1, or with `churn` algorithm 2 (S_tmin 0, S_tmax infinite).

    Second order: two evaluations per step, one for the last. `churn` is S_churn and needs `noise`.
    """
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for sigma, sigma_next in _pairs(sigmas):
        if gamma > 0:
            assert noise is not None
            sigma_hat = sigma * (1 + gamma)
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * noise()
            sigma = sigma_hat
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
    return x


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DDIM (Song et al., arXiv 2010.02502), equation 12 with eta = 0: x0 plus the next level of the same noise."""
    for sigma, sigma_next in _pairs(sigmas):
        x0 = denoise(x, sigma)
        x = x0 + (sigma_next / sigma) * (x - x0)
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DDPM (Ho et al., arXiv 2006.11239), algorithm 2 with the posterior's variance, equation 7; needs `noise`."""
    assert noise is not None
    for sigma, sigma_next in _pairs(sigmas):
        x0 = denoise(x, sigma)
        kept = (sigma_next / sigma) ** 2  # of the noise that is there
        x = x0 + kept * (x - x0)
        if sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - kept) * noise()
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095), algorithm 2, in lambda = -ln sigma.

    Second order with one evaluation per step: the estimate of x0 is extrapolated from the one before.
    """
    previous: tuple[Tensor, float] | None = None  # the last estimate and the last step's length in lambda
    for sigma, sigma_next in _pairs(sigmas):
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            return x0
        length = math.log(sigma / sigma_next)
        target = x0
        if previous is not None:
            before, length_before = previous
            target = x0 + (length / length_before) / 2 * (x0 - before)
        x = (sigma_next / sigma) * x - math.expm1(-length) * target
        previous = (x0, length)
    return x


def _pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    return list(pairwise(sigmas.tolist()))


def karras_steps(config: DiffusionConfig, num_steps: int) -> Tensor:
    """EDM's noise levels, equation 5 (rho 7): (num_steps + 1,) float64 from sigma_max over sigma_min to 0."""
    sigmas = karras_sigma(config, torch.linspace(1, 0, num_steps, dtype=torch.float64))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def schedule_steps(config: DiffusionConfig, num_steps: int) -> Tensor:
    """Noise levels even in the time of the training schedule: (num_steps + 1,) float64, falling to 0."""
    log_snr = sampling_log_snr(config, torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)[:-1])
    sigmas = (-log_snr / 2).exp()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


class Sampler(NamedTuple):
    """One entry of `--sampler`: how it walks, along which levels, and how many steps it takes when not told."""

    walk: Callable[..., Tensor]
    levels: Callable[[DiffusionConfig, int], Tensor]
    default_steps: int
    num_evaluations: Callable[[int], int]
    """Of the network, for a number of steps."""
    about: str


SAMPLERS: dict[str, Sampler] = {
    "dpmpp-2m": Sampler(dpmpp_2m, karras_steps, 32, int, "DPM-Solver++(2M), second order, deterministic"),
    "heun": Sampler(heun, karras_steps, 32, lambda steps: 2 * steps - 1, "EDM's second-order method, deterministic"),
    "ddim": Sampler(ddim, schedule_steps, 50, int, "first order, deterministic"),
    "ddpm": Sampler(ddpm, schedule_steps, 250, int, "ancestral, draws noise at every step"),
}
"""Steps of finite length are what these get wrong, where the noise is about as strong as the data. The variance of data
N(0, s^2), s from 0.1 to 2, comes out 2 to 6% too large after 32 steps of either second-order method (32 evaluations of
dpmpp-2m, 63 of heun), 7 to 19% after the 18 of heun (35 evaluations) that EDM took for CIFAR. It falls as steps^-2."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample: what images depend on beside the model, its guide, the noise and the class.

    `steps` None is the sampler's own default. `guidance` is the scale w of classifier-free guidance or, with a guide,
    of autoguidance; 1 is none. `clip`: estimates are limited to what codes can be. Raises UsageError for a sampler
    that there is not.
    """

    sampler: str = "dpmpp-2m"
    steps: int | None = None
    guidance: float = 1.0
    clip: bool = True

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UsageError(
                f"--sampler {self.sampler!r} is not one{did_you_mean(self.sampler, SAMPLERS)}",
                next=f"There are: {', '.join(SAMPLERS)}.",
            )

    @property
    def num_steps(self) -> int:
        """Sampler steps, the default resolved."""
        return self.steps or SAMPLERS[self.sampler].default_steps

    @property
    def num_evaluations(self) -> int:
        """Estimates of x0 per image. With guidance each takes two networks, or one network twice."""
        return SAMPLERS[self.sampler].num_evaluations(self.num_steps)


DEFAULT_SETTINGS = SamplerSettings()


def sample_codes(
    denoiser: Denoiser,
    *,
    noise: Noise,
    settings: SamplerSettings = DEFAULT_SETTINGS,
    labels: Tensor | None = None,
    guide: Denoiser | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Codes (B, C, h, w) in [0, 1] from the latent noise that `noise` draws first.

    `labels` (B,) int64 or None; `guide`: the weaker model of autoguidance; `on_step` is called after every estimate.
    The caller chooses inference mode and autocast. Raises ArtefactError for a guide that does not fit the denoiser.
    """
    if guide is not None:
        check_guide(guide, denoiser)
    sampler = SAMPLERS[settings.sampler]
    sigmas = sampler.levels(denoiser.diffusion, settings.num_steps)
    latent = noise()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        alpha = 1 / math.sqrt(1 + sigma**2)
        log_snr = torch.full((len(x),), -2 * math.log(sigma), dtype=x.dtype, device=x.device)
        x0 = estimate(
            denoiser, x * alpha, log_snr, guidance=settings.guidance, guide=guide, labels=labels, clip=settings.clip
        )
        if on_step is not None:
            on_step()
        return x0

    return denoiser.to_codes(sampler.walk(denoise, latent * float(sigmas[0]), sigmas, noise=noise))
