"""Samplers on a Gaussian mixture, whose denoiser is exact: the right distribution, and the right order of convergence.

Tolerances of distributions are four standard errors of what is compared, estimated from as many exact draws; the
error of the steps is well below that.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import MIXTURE, normals
from scipy.integrate import solve_ivp

from brics_cli.config import DiffusionConfig
from brics_cli.diffusion.samplers import SAMPLERS, ddim, dpmpp_2m, heun, karras_steps, schedule_steps

COUNT = 20_000
STANDARD_ERRORS = 4


@pytest.mark.parametrize(
    ("name", "steps", "levels", "schedule"),
    [
        ("heun", 64, karras_steps, "edm-lognormal"),
        ("dpmpp-2m", 64, karras_steps, "edm-lognormal"),
        ("ddim", 250, schedule_steps, "cosine"),
        ("ddpm", 250, schedule_steps, "cosine"),
    ],
)
def test_samples_have_the_mean_the_covariance_and_the_weights(name, steps, levels, schedule):
    sigmas = levels(DiffusionConfig(schedule=schedule), steps)
    seeds = iter(range(1, 10_000))
    latent = normals(0, COUNT, 3)
    drawn = SAMPLERS[name].walk(
        MIXTURE.denoise, latent * sigmas[0], sigmas, noise=lambda: normals(next(seeds), COUNT, 3)
    )
    assert_drawn_from_the_mixture(drawn)


def assert_drawn_from_the_mixture(drawn: torch.Tensor) -> None:
    centred = MIXTURE.draw(COUNT, seed=99) - MIXTURE.mean
    error = STANDARD_ERRORS / math.sqrt(COUNT)
    assert ((drawn.mean(0) - MIXTURE.mean).abs() < error * centred.std(0)).all()
    products = centred[:, :, None] * centred[:, None]  # (N, D, D), whose mean is the covariance
    assert ((torch.cov(drawn.T) - MIXTURE.covariance).abs() < error * products.std(0)).all()
    spread = MIXTURE.shares(MIXTURE.draw(COUNT, seed=98))[:, 0].std()
    assert abs(MIXTURE.shares(drawn)[:, 0].mean() - MIXTURE.weights[0]) < error * spread


def test_the_tolerances_tell_a_wrong_mixture():
    """Exact draws pass; draws with the weights off by 2%, or a little too narrow, do not."""
    right = MIXTURE.draw(COUNT, seed=97)
    assert_drawn_from_the_mixture(right)
    narrower = MIXTURE.mean + 0.97 * (right - MIXTURE.mean)
    lighter = torch.cat([right[MIXTURE.shares(right)[:, 0] < 0.5], right])[:COUNT]
    for wrong in (narrower, lighter):
        with pytest.raises(AssertionError):
            assert_drawn_from_the_mixture(wrong)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(sampler, order):
    """The slope of ln error against ln steps, over levels even in ln sigma, against scipy's eighth-order solution."""
    high, low = 20.0, 0.05
    latent = normals(1, 16, 3) * high

    def slope_of_path(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(latent.shape)  # dx / d ln sigma = x - E[x0 | x]
        return (x - MIXTURE.denoise(x, math.exp(log_sigma))).flatten().numpy()

    span = (math.log(high), math.log(low))
    solved = solve_ivp(slope_of_path, span, latent.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    exact = torch.from_numpy(solved.y[:, -1]).reshape(latent.shape)
    num_steps, errors = (40, 80, 160, 320), []
    for number in num_steps:
        sigmas = torch.logspace(math.log10(high), math.log10(low), number + 1, dtype=torch.float64)
        errors.append(float((sampler(MIXTURE.denoise, latent, sigmas) - exact).square().mean().sqrt()))
    measured = -np.polyfit(np.log(num_steps), np.log(errors), 1)[0]
    assert measured == pytest.approx(order, abs=0.15)
