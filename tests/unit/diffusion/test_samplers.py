"""Samplers against closed forms: Gaussian data, whose denoiser and whose paths are exact; settings and noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from analytic import normals

from brics_cli.config import DiffusionConfig
from brics_cli.diffusion.samplers import (
    DEFAULT_STEPS,
    SAMPLER_NAMES,
    SAMPLERS,
    Sampler,
    SamplerSettings,
    ddim,
    ddpm,
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


def test_heun_reaches_the_exact_solution():
    sigmas = karras_steps(DiffusionConfig(), 72)
    latent = normals(2, 256, 2) * sigmas[0]
    got = heun(gaussian_denoiser, latent, sigmas)
    assert float((got - exact_solution(latent, float(sigmas[0]))).abs().max()) < 0.01


@pytest.mark.parametrize("name", ["dpmpp-2m", "heun"])
def test_default_steps_keep_the_variance_of_data(name):
    """Within 6% for standard deviations from 0.1 to 2, exactly computed: the path of one-dimensional Gaussian data is
    linear in its start. The 18 steps that EDM took for CIFAR do not."""
    std = torch.tensor([0.1, 0.25, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)

    def error_of_variance(num_steps: int) -> torch.Tensor:
        sigmas = karras_steps(DiffusionConfig(), num_steps)
        start = torch.full_like(std, float(sigmas[0]))
        end = SAMPLERS[name].walk(lambda x, sigma: std**2 / (std**2 + sigma**2) * x, start, sigmas)
        return (end**2 / std**2 - 1).abs()

    assert error_of_variance(SamplerSettings(sampler=name).num_steps).max() < 0.06
    assert error_of_variance(18).min() > 0.06


def test_churn_keeps_the_distribution_and_changes_the_path():
    sigmas = karras_steps(DiffusionConfig(), 60)
    rng = iter(range(10, 10_000))
    latent = normals(3, 20_000, 2) * sigmas[0]
    plain = heun(gaussian_denoiser, latent, sigmas)
    churned = heun(gaussian_denoiser, latent, sigmas, churn=20, noise=lambda: normals(next(rng), len(latent), 2))
    assert float((churned - plain).abs().mean()) > 0.1
    torch.testing.assert_close(torch.cov(churned.T), COV, rtol=0, atol=0.03)


def test_ddpm_step_is_the_posterior():
    """One step of ddpm against the product of Gaussians: x_s | x_t, x0 in EDM's form."""
    x, x0, noise = normals(5, 4, 2), normals(6, 4, 2), normals(7, 4, 2)
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
    sampler.walk(denoise, normals(8, 2, 2), sampler.levels(DiffusionConfig(), 6), noise=lambda: normals(9, 2, 2))
    assert len(calls) == settings.num_evaluations


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(UsageError, match=r"heum.*heun"):
        SamplerSettings(sampler="heum")


def test_a_scale_that_is_not_finite_is_refused():
    with pytest.raises(UsageError, match="--guidance inf is not a number"):
        SamplerSettings(guidance=math.inf)
    with pytest.raises(UsageError, match="--steps 0 is not at least 1"):
        SamplerSettings(steps=0)


def test_help_is_made_from_the_registry():
    assert SAMPLER_NAMES == "dpmpp-2m, heun, ddim or ddpm"
    assert DEFAULT_STEPS == "dpmpp-2m and heun 32, ddim 50, ddpm 250"


def test_another_sampler_is_one_line(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "euler", Sampler(ddim, karras_steps, 40, 80))
    assert SamplerSettings(sampler="euler").num_evaluations == 40
    with pytest.raises(UsageError, match="did you mean 'euler'"):
        SamplerSettings(sampler="eular")


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_only_stochastic_samplers_draw_on_the_way(name):
    draws = []

    def noise() -> torch.Tensor:
        draws.append(1)
        return normals(9, 2, 2)

    sampler = SAMPLERS[name]
    sampler.walk(gaussian_denoiser, normals(8, 2, 2), sampler.levels(DiffusionConfig(), 6), noise=noise)
    assert bool(draws) == sampler.stochastic
