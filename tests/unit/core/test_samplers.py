"""Samplers against closed forms (Gaussian data, whose denoiser is exact) and against diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from brics_cli.config import DiffusionConfig
from brics_cli.core.samplers import (
    SAMPLERS,
    SamplerSettings,
    ddim,
    ddpm,
    dpmpp_2m,
    heun,
    karras_steps,
    schedule_steps,
)
from brics_cli.errors import UsageError

MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def gaussian_denoiser(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[x0 | x0 + sigma eps = x] of N(MEAN, COV), exactly; x (B, 2)."""
    gain = COV @ torch.linalg.inv(COV + sigma**2 * torch.eye(2, dtype=torch.float64))
    return MEAN + (x - MEAN) @ gain.T


def exact_solution(x: torch.Tensor, sigma_max: float) -> torch.Tensor:
    """Where the probability-flow ODE takes x from sigma_max to 0: each principal axis shrinks by itself."""
    variances, axes = torch.linalg.eigh(COV)
    along = (x - MEAN) @ axes * (variances / (variances + sigma_max**2)).sqrt()
    return MEAN + along @ axes.T


def normals(seed: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 2)))


@pytest.mark.parametrize(
    ("name", "steps", "levels"),
    [
        ("heun", 50, karras_steps),
        ("dpmpp-2m", 50, karras_steps),
        ("ddim", 200, schedule_steps),
        ("ddpm", 400, karras_steps),
        ("ddpm", 200, schedule_steps),
    ],
)
def test_gaussian_data_come_out_with_their_mean_and_covariance(name, steps, levels):
    config = DiffusionConfig(schedule="cosine" if levels is schedule_steps else "edm-lognormal")
    sigmas = levels(config, steps)
    rng = iter(range(1, 10_000))
    latent = normals(0, 20_000)
    drawn = SAMPLERS[name].walk(
        gaussian_denoiser, latent * sigmas[0], sigmas, noise=lambda: normals(next(rng), len(latent))
    )
    torch.testing.assert_close(drawn.mean(0), MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(drawn.T), COV, rtol=0, atol=0.02)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(sampler, order):
    """The error against the exact ODE solution falls as steps^-order, over a smooth grid of levels down to 0.05."""
    latent = normals(1, 64) * 20.0

    def error(num_steps: int) -> float:
        sigmas = torch.logspace(math.log10(20), math.log10(0.05), num_steps + 1, dtype=torch.float64)
        at_end = sampler(gaussian_denoiser, latent, sigmas)
        variances, axes = torch.linalg.eigh(COV)
        exact = (latent - MEAN) @ axes * ((variances + 0.05**2) / (variances + 400)).sqrt()
        return float((at_end - (MEAN + exact @ axes.T)).abs().max())

    slope = math.log2(error(40) / error(80))
    assert slope == pytest.approx(order, abs=0.3)


def test_heun_reaches_the_exact_solution():
    sigmas = karras_steps(DiffusionConfig(), 72)
    latent = normals(2, 256) * sigmas[0]
    got = heun(gaussian_denoiser, latent, sigmas)
    assert float((got - exact_solution(latent, float(sigmas[0]))).abs().max()) < 0.01


def test_churn_keeps_the_distribution_and_changes_the_path():
    sigmas = karras_steps(DiffusionConfig(), 60)
    rng = iter(range(10, 10_000))
    latent = normals(3, 20_000) * sigmas[0]
    plain = heun(gaussian_denoiser, latent, sigmas)
    churned = heun(gaussian_denoiser, latent, sigmas, churn=20, noise=lambda: normals(next(rng), len(latent)))
    assert float((churned - plain).abs().mean()) > 0.1
    torch.testing.assert_close(torch.cov(churned.T), COV, rtol=0, atol=0.03)


@pytest.mark.parametrize("num_steps", [5, 10])
def test_ddim_agrees_with_diffusers_step_by_step(num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=False, set_alpha_to_one=True, prediction_type="epsilon"
    )
    scheduler.set_timesteps(num_steps)
    alphas2 = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    sigmas = torch.cat([((1 - alphas2) / alphas2).sqrt(), torch.zeros(1, dtype=torch.float64)])
    x_t = normals(4, 32)  # variance preserving
    path = []
    ours = x_t / alphas2[0].sqrt()

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        path.append(x / math.sqrt(1 + sigma**2))
        return gaussian_denoiser(x, sigma)

    ours = ddim(denoise, ours, sigmas)
    for number, (t, alpha2) in enumerate(zip(scheduler.timesteps, alphas2, strict=True)):
        torch.testing.assert_close(path[number], x_t, rtol=1e-5, atol=1e-5)
        sigma = float(((1 - alpha2) / alpha2).sqrt())
        x = x_t / alpha2.sqrt()
        eps = (x - gaussian_denoiser(x, sigma)) / sigma
        x_t = scheduler.step(eps, t, x_t).prev_sample
    torch.testing.assert_close(ours, x_t, rtol=1e-5, atol=1e-5)


def test_ddpm_step_is_the_posterior():
    """One step of ddpm against the product of Gaussians: x_s | x_t, x0 in EDM's form."""
    x, x0, noise = normals(5, 4), normals(6, 4), normals(7, 4)
    high, low = 3.0, 1.2
    got = ddpm(lambda x, sigma: x0, x, torch.tensor([high, low, 0.0], dtype=torch.float64)[:2], noise=lambda: noise)
    # x_s ~ N(x0, low^2), x_t | x_s ~ N(x_s, high^2 - low^2)
    precision = 1 / low**2 + 1 / (high**2 - low**2)
    mean = (x0 / low**2 + x / (high**2 - low**2)) / precision
    torch.testing.assert_close(got, mean + noise / math.sqrt(precision))


def test_levels_fall_to_zero():
    for schedule in ("cosine", "cosine-shifted", "edm-lognormal", "logit-normal"):
        config = DiffusionConfig(schedule=schedule)
        for levels in (karras_steps(config, 7), schedule_steps(config, 7)):
            assert levels.shape == (8,) and levels[-1] == 0
            assert (levels[1:] < levels[:-1]).all() and torch.isfinite(levels).all()
    assert karras_steps(DiffusionConfig(), 1).tolist() == pytest.approx([80.0, 0.0])


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_num_evaluations_is_what_is_evaluated(name):
    settings, calls = SamplerSettings(sampler=name, steps=6), []

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        calls.append(sigma)
        return gaussian_denoiser(x, sigma)

    sampler = SAMPLERS[name]
    sampler.walk(denoise, normals(8, 2), sampler.levels(DiffusionConfig(), 6), noise=lambda: normals(9, 2))
    assert len(calls) == settings.num_evaluations


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(UsageError, match=r"heum.*heun"):
        SamplerSettings(sampler="heum")
