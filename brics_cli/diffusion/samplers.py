"""Samplers: one function each, in the manner of k-diffusion, and the registry that names them; guidance.

All samplers work on EDM's form, x = x0 + sigma eps, of which the variance-preserving x_t is alpha x (alpha = 1 / sqrt(1
+ sigma^2)): in it DDIM is Euler's method and DPM-Solver++ has the same exponentials. `sigmas` (N + 1,) fall to 0 at the
end, x starts as sigmas[0] times the latent noise, and `denoise(x, sigma)` gives the estimate of x0 (B, C, h, w) for a
float `sigma`. Every sampler is deterministic unless it is given `noise`, which draws another (B, C, h, w).

Both kinds of guidance go from a worse estimate through a better one and beyond: worse + w (better - worse); w = 1 is no
guidance. Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): without the class -> with it. Autoguidance
(Karras et al., arXiv 2406.02507): a guide (a smaller model, or one trained for less) -> the model itself, same class.

Importing this module needs no torch: the command line makes its help from the registry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from brics_cli.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from brics_cli.config import DiffusionConfig
    from brics_cli.diffusion.denoisers import Denoiser

Denoise = Callable[["Tensor", float], "Tensor"]
Noise = Callable[[], "Tensor"]


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
    import torch

    from brics_cli.diffusion.diffusion import karras_sigma

    sigmas = karras_sigma(config, torch.linspace(1, 0, num_steps, dtype=torch.float64))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def schedule_steps(config: DiffusionConfig, num_steps: int) -> Tensor:
    """Noise levels even in the time of the training schedule: (num_steps + 1,) float64, falling to 0."""
    import torch

    from brics_cli.diffusion.diffusion import sampling_log_snr

    log_snr = sampling_log_snr(config, torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)[:-1])
    sigmas = (-log_snr / 2).exp()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


class Sampler(NamedTuple):
    """One entry of `--sampler`."""

    walk: Callable[..., Tensor]
    levels: Callable[[DiffusionConfig, int], Tensor]
    """The noise levels that it walks along."""
    default_steps: int
    compared_steps: int
    """What `brics bench sample` shows besides the default."""
    num_evaluations: Callable[[int], int] = int
    """Evaluations of the network for a number of steps."""
    stochastic: bool = False
    """Whether it draws noise at every step, so that the latent noise alone does not fix the image."""


SAMPLERS: dict[str, Sampler] = {
    "dpmpp-2m": Sampler(dpmpp_2m, karras_steps, 32, 20),
    "heun": Sampler(heun, karras_steps, 32, 18, lambda steps: 2 * steps - 1),
    "ddim": Sampler(ddim, schedule_steps, 50, 250),
    "ddpm": Sampler(ddpm, schedule_steps, 250, 1000, stochastic=True),
}
"""The first is the default.

Steps of finite length are what these get wrong, where the noise is about as strong as the data. The variance of data
N(0, s^2), s from 0.1 to 2, comes out 2 to 6% too large after 32 steps of either second-order method (32 evaluations of
dpmpp-2m, 63 of heun), 7 to 19% after the 18 of heun (35 evaluations) that EDM took for CIFAR. It falls as steps^-2."""
DEFAULT_SAMPLER = next(iter(SAMPLERS))


def listed(names: list[str], *, word: str = "or") -> str:
    """`dpmpp-2m, heun or ddim`."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


SAMPLER_NAMES = listed(list(SAMPLERS))
DEFAULT_STEPS = ", ".join(
    f"{listed(list(names), word='and')} {steps}"
    for steps, names in groupby(SAMPLERS, key=lambda name: SAMPLERS[name].default_steps)
)
"""What help says: `dpmpp-2m and heun 32, ddim 50, ddpm 250`."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample: what images depend on besides the model, its guide, the noise and the class.

    `steps` None is the sampler's own default. `guidance` is the scale w of classifier-free guidance or, with a guide,
    of autoguidance; 1 is none. `clip`: estimates are limited to what codes can be. Raises UsageError for an unknown
    sampler, for less than one step, and for a scale that is not finite.
    """

    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    guidance: float = 1.0
    clip: bool = True

    def __post_init__(self) -> None:
        from brics_cli.config.suggestions import check_known

        check_known(self.sampler, SAMPLERS, option="--sampler", what="sampler")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps {self.steps} is not at least 1")
        if not math.isfinite(self.guidance):
            raise UsageError(
                f"--guidance {self.guidance} is not a number", next="1 means no guidance; 1.5 to 4 are usual."
            )

    @property
    def num_steps(self) -> int:
        """Sampler steps, the default resolved."""
        return self.steps or SAMPLERS[self.sampler].default_steps

    @property
    def num_evaluations(self) -> int:
        """Estimates of x0 per image. With guidance each takes two networks, or one network twice."""
        return SAMPLERS[self.sampler].num_evaluations(self.num_steps)

    @property
    def record(self) -> dict[str, Any]:
        """What an artefact says of them."""
        return {"sampler": self.sampler, "steps": self.num_steps, "guidance": self.guidance, "clip": self.clip}


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
        log_snr = x.new_full((len(x),), -2 * math.log(sigma))
        x0 = estimate(
            denoiser, x * alpha, log_snr, guidance=settings.guidance, guide=guide, labels=labels, clip=settings.clip
        )
        if on_step is not None:
            on_step()
        return x0

    return denoiser.to_codes(sampler.walk(denoise, latent * float(sigmas[0]), sigmas, noise=noise))


def estimate(
    denoiser: Denoiser,
    x_t: Tensor,
    log_snr: Tensor,
    *,
    guidance: float = 1.0,
    guide: Denoiser | None = None,
    labels: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """The estimate of x from x_t = alpha x + sigma eps (B, C, h, w) at log_snr (B,).

    `guidance` is w: of autoguidance when there is a `guide`, else of classifier-free guidance. `labels` (B,) int64 or
    None go to both models. `clip`: the guided estimate is limited to what codes can be. At w = 1 the denoiser alone is
    evaluated. Raises ValueError for classifier-free guidance without labels.
    """
    if guide is None or guidance == 1.0:
        return denoiser.denoise(x_t, log_snr, labels=labels, guidance=guidance, clip=clip)
    better = denoiser.denoise(x_t, log_snr, labels=labels, clip=False)
    worse = guide.denoise(x_t, log_snr, labels=labels if guide.num_classes else None, clip=False)
    x = worse + guidance * (better - worse)
    return denoiser.clip(x) if clip else x


def check_guide(guide: Denoiser, denoiser: Denoiser) -> None:
    """Raise ArtefactError unless `guide` can guide `denoiser`.

    Both make codes of one shape and kind, under one normalisation and, where both say it, of one autoencoder; the guide
    has the same classes, or none.
    """
    made_by = [getattr(each, "lineage", {}).get("autoencoder_sha256") for each in (guide, denoiser)]  # of loaded models
    shapes = [" x ".join(map(str, each.code_shape)) for each in (guide, denoiser)]
    if guide.code_shape != denoiser.code_shape:
        misfit = f"it makes codes of {shapes[0]}, the model of {shapes[1]}"
    elif guide.code_kind != denoiser.code_kind:
        misfit = f"it makes {guide.code_kind} codes, the model {denoiser.code_kind} ones"
    elif None not in made_by and made_by[0] != made_by[1]:
        misfit = "its codes are of another autoencoder"
    elif not (guide.mean.equal(denoiser.mean) and guide.std.equal(denoiser.std) and _same_levels(guide, denoiser)):
        misfit = "it normalises codes by other statistics"
    elif guide.num_classes not in (0, denoiser.num_classes):
        misfit = f"it was trained with {guide.num_classes} classes, the model with {denoiser.num_classes}"
    else:
        return
    raise ArtefactError(
        f"the guide {getattr(guide, 'path', 'given')} does not fit {getattr(denoiser, 'path', 'the model')}: {misfit}",
        next="Train a guide on the same store, with a smaller recipe or fewer steps.",
    )


def _same_levels(guide: Denoiser, denoiser: Denoiser) -> bool:
    if guide.levels is None or denoiser.levels is None:
        return guide.levels is denoiser.levels
    return guide.levels.equal(denoiser.levels)
