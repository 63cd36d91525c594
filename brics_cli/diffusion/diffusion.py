"""Objectives, schedules and weightings of diffusion, all as functions of the log signal-to-noise ratio.

The canonical form is variance preserving: x_t = alpha x + sigma eps, alpha^2 + sigma^2 = 1, with
log_snr = ln(alpha^2 / sigma^2) (Kingma et al., arXiv 2107.00630). EDM's x + sigma_e eps and flow matching's
(1 - t) x + t eps are x_t / alpha and x_t / (alpha + sigma) at the same log_snr, with
sigma_e = t / (1 - t) = exp(-log_snr / 2). So functions of the log-SNR say everything, and each choice is a few lines.

Shapes: x, eps, x_t (B, C, h, w); log_snr (B,) or any; random draws (B,) or (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brics_cli.config import DiffusionConfig
from brics_cli.runtime.randomness import Stream, keyed_generator, keyed_normal, step_generator

LOG_SNR_LIMIT = 15.0
"""The cosine schedules reach infinite log-SNR at their ends; they are cut here, as in arXiv 2301.11093."""


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of x_t = alpha x + sigma eps, each of `log_snr`'s shape; precise at both ends."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def log_snr_of_sigma(sigma_e: Tensor) -> Tensor:
    """The log-SNR of EDM's noise level: x + sigma_e eps."""
    return -2 * sigma_e.log()


class Parametrisation(NamedTuple):
    """What the network F sees and what its output means (EDM, arXiv 2206.00364, equation 7).

    x0 estimate = skip x_t + out F(in_ x_t); F's training target = target_x x + target_eps eps. Shapes of log_snr.
    """

    in_: Tensor
    skip: Tensor
    out: Tensor
    target_x: Tensor
    target_eps: Tensor


def parametrisation(config: DiffusionConfig, log_snr: Tensor) -> Parametrisation:
    """The parametrisation of `config.objective` at `log_snr`."""
    alpha, sigma = alpha_sigma(log_snr)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match config.objective:
        case "eps":  # DDPM, arXiv 2006.11239: F = eps, x = (x_t - sigma eps) / alpha
            return Parametrisation(one, 1 / alpha, -sigma / alpha, zero, one)
        case "x0":  # F = x
            return Parametrisation(one, zero, one, one, zero)
        case "v":  # Progressive distillation, arXiv 2202.00512: F = alpha eps - sigma x, x = alpha x_t - sigma v
            return Parametrisation(one, alpha, -sigma, -sigma, alpha)
        case "flow":  # Flow matching, arXiv 2210.02747: z = (1 - t) x + t eps, F = dz/dt = eps - x, x = z - t F
            scale = 1 / (alpha + sigma)
            return Parametrisation(scale, scale, -sigma * scale, -one, one)
        case "edm":  # EDM, table 1, with every sigma_e written as sigma / alpha so that nothing is divided by alpha
            data = config.sigma_data
            norm = (sigma**2 + (alpha * data) ** 2).sqrt()
            skip, out = alpha * data**2 / norm**2, sigma * data / norm
            return Parametrisation(1 / norm, skip, out, sigma / (data * norm), -alpha * data / norm)


def weight(config: DiffusionConfig, log_snr: Tensor) -> Tensor:
    """The factor of the squared error of F at `log_snr`, same shape.

    Papers weight the error of x; the error of F is 1/out^2 as large, so a weight w on x is w out^2 on F.
    """
    snr, out = log_snr.exp(), parametrisation(config, log_snr).out
    match config.weighting:
        case "none":  # the plain error of what the network predicts, DDPM's L_simple for eps
            return torch.ones_like(log_snr)
        case "min-snr":  # arXiv 2303.09556: w = min(snr, gamma)
            return snr.clamp(max=config.min_snr_gamma) * out**2
        case "soft-min-snr":  # arXiv 2401.11605: w = snr gamma / (snr + gamma) = 1 / (sigma_e^2 + 1 / gamma)
            return out**2 * snr * config.min_snr_gamma / (snr + config.min_snr_gamma)
        case "edm":  # arXiv 2206.00364: w = (sigma_e^2 + data^2) / (sigma_e data)^2 = 1 / data^2 + snr
            return (config.sigma_data**-2 + snr) * out**2


def training_log_snr(config: DiffusionConfig, u: Tensor) -> Tensor:
    """The log-SNR at quantile `u` (uniform in (0, 1)) of the training distribution; u near 1 is the noisy end."""
    if config.schedule in ("edm-lognormal", "logit-normal"):
        # EDM draws ln sigma_e ~ N(p_mean, p_std^2). SD3 (arXiv 2403.03206) draws logit(t) from the same normal, and
        # logit(t) = ln(t / (1 - t)) = ln sigma_e: one distribution, two ways to walk through it when sampling.
        # The clamp keeps a draw of exactly 0 finite (float32 draws come in steps of 2^-24).
        normal: Tensor = torch.special.ndtri(u.double().clamp(2**-25, 1 - 2**-25))
        return -2 * (config.p_mean + config.p_std * normal).to(u.dtype)
    return sampling_log_snr(config, u)


def sampling_log_snr(config: DiffusionConfig, t: Tensor) -> Tensor:
    """The log-SNR at time `t` in [0, 1] of the schedule, falling from data (0) to noise (1); same shape."""
    match config.schedule:
        case "cosine":  # arXiv 2102.09672, equation 17 without its offset (what is cut replaces it): cos(pi t / 2)
            angle = (t.double() * (math.pi / 2)).clamp(1e-12, math.pi / 2 - 1e-12)
            log_snr = -2 * angle.tan().log()
        case "cosine-shifted":  # arXiv 2301.10972: alpha^2 = (c(end) - c(t)) / (c(end) - c(start)), c = cos^(2 tau)
            start, end = config.cosine_start, config.cosine_end
            angle = (t.double() * (end - start) + start) * (math.pi / 2)
            power = 2 * config.cosine_tau
            at_start, at_end = math.cos(start * math.pi / 2) ** power, math.cos(end * math.pi / 2) ** power
            alpha2 = (at_end - angle.cos().clamp(min=0) ** power) / (at_end - at_start)
            log_snr = torch.logit(alpha2, eps=1e-12)
        case "edm-lognormal":  # arXiv 2206.00364, equation 5
            return log_snr_of_sigma(karras_sigma(config, t))
        case "logit-normal":  # flow time t itself: sigma_e = t / (1 - t)
            low, high = (sigma / (1 + sigma) for sigma in (config.sigma_min, config.sigma_max))
            log_snr = -2 * torch.logit(t.double() * (high - low) + low)
    return log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).to(t.dtype)


def karras_sigma(config: DiffusionConfig, t: Tensor, *, rho: float = 7.0) -> Tensor:
    """EDM's noise level at time `t` in [0, 1], from sigma_min to sigma_max, even in sigma_e^(1/rho); same shape."""
    low, high = config.sigma_min ** (1 / rho), config.sigma_max ** (1 / rho)
    sigmas: Tensor = (low + t.double() * (high - low)) ** rho
    return sigmas.to(t.dtype)


class Draws(NamedTuple):
    """Everything random in one diffusion training step."""

    u: Tensor
    """(B,) in [0, 1): the quantile of the noise level."""
    eps: Tensor
    """(B, C, h, w) standard normal."""
    drop: Tensor
    """(B,) in [0, 1): a label is dropped where it is below class_dropout."""


def draws_for(
    seed: int, *, step: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Draws:
    """The draws of the samples `indices` of training step `step`, for codes of `shape` (C, h, w).

    Sample i's draws depend on (seed, step, i) alone: not on the batch it is in, nor on the device.
    """
    u, drop = np.empty(len(indices), np.float32), np.empty(len(indices), np.float32)
    eps = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        generator = keyed_generator(seed, int(index), step, stream=Stream.DIFFUSION_TRAINING)
        u[row], drop[row] = generator.random(2, dtype=np.float32)
        generator.standard_normal(out=eps[row], dtype=np.float32)
    return Draws(*(torch.from_numpy(array).to(device, non_blocking=True) for array in (u, eps, drop)))


def draws_of_step(seed: int, *, step: int, num: int, shape: Sequence[int], device: torch.device) -> Draws:
    """The draws of all `num` samples of training step `step`, on `device`, by the one stream of that step there."""
    generator = step_generator(seed, step=step, stream=Stream.DIFFUSION_TRAINING, device=device)
    u, drop = torch.rand(2, num, generator=generator, device=device)
    return Draws(u, torch.randn(num, *shape, generator=generator, device=device), drop)


def draws_for_validation(seed: int, *, places: Sequence[int], num: int, shape: Sequence[int]) -> Draws:
    """The draws at `places` of `num`, for codes of `shape` (C, h, w): the same at every validation of a run.

    Noise levels are spread evenly over the quantiles, so that a mean over all has little noise of its own; no label is
    dropped.
    """
    u = torch.tensor([(place + 0.5) / num for place in places], dtype=torch.float32)
    eps = keyed_normal(seed, step=0, indices=places, shape=shape, stream=Stream.DIFFUSION_VALIDATION)
    return Draws(u, eps, torch.ones(len(places)))


LEVEL_EDGES = (-4.0, 0.0, 4.0)
"""Edges of the log-SNR ranges whose mean loss is logged: mostly noise, more noise, more signal, mostly signal."""


LEVEL_NAMES = (
    f"logsnr<{LEVEL_EDGES[0]:g}",
    *(f"logsnr{low:g}..{high:g}" for low, high in pairwise(LEVEL_EDGES)),
    f"logsnr>{LEVEL_EDGES[-1]:g}",
)


def loss_by_level(loss: Tensor, log_snr: Tensor) -> Tensor:
    """(2, 4): the sum of loss (B,) and the number of samples in each range of `LEVEL_NAMES`; batches and ranks add up.

    Nothing waits for the device.
    """
    level = torch.stack([log_snr > edge for edge in LEVEL_EDGES]).sum(dim=0)  # (B,) in 0 ... 3
    inside = level == torch.arange(len(LEVEL_NAMES), device=level.device)[:, None]  # (4, B)
    return torch.stack([torch.where(inside, loss, 0).sum(dim=1), inside.sum(dim=1).to(loss.dtype)])
