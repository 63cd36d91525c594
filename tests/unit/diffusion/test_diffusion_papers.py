"""Every schedule, objective and weighting against somebody else's arithmetic: diffusers, scipy, the papers' formulas.

And what training needs of all their combinations: finite gradients at both ends of the noise levels.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from brics_cli.config import DiffusionConfig, DiTConfig
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.diffusion.diffusion import (
    Draws,
    alpha_sigma,
    parametrisation,
    sampling_log_snr,
    training_log_snr,
    weight,
)

OBJECTIVES = ("eps", "v", "x0", "edm", "flow")
SCHEDULES = ("cosine", "cosine-shifted", "edm-lognormal", "logit-normal")
WEIGHTINGS = ("none", "min-snr", "soft-min-snr", "edm")
SIGMAS = torch.logspace(-2, 2, 21, dtype=torch.float64)
LOG_SNR = -2 * SIGMAS.log()
QUANTILES = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)


def test_cosine_is_diffusers_but_for_the_offset():
    """diffusers has the paper's offset s = 0.008 in t -> (t + s) / (1 + s), and divides by alpha^2 at t = 0."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()[:990]  # then capped
    t = (torch.arange(1, 991, dtype=torch.float64) / 1000 + 0.008) / 1.008
    alpha, _ = alpha_sigma(sampling_log_snr(DiffusionConfig(schedule="cosine"), t))
    at_0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(alpha**2 / at_0, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", ["x0", "eps", "v"])
def test_min_snr_is_what_diffusers_trains_with(objective):
    """min(snr, gamma), over snr for eps and over snr + 1 for v, as its training scripts have it."""
    diffusers = pytest.importorskip("diffusers")
    alphas2 = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()[:990:10]
    snr = alphas2 / (1 - alphas2)
    clamped = torch.stack([snr, 5 * torch.ones_like(snr)]).amin(dim=0)
    theirs = {"x0": clamped, "eps": clamped / snr, "v": clamped / (snr + 1)}[objective]
    config = DiffusionConfig(objective=objective, weighting="min-snr", min_snr_gamma=5)
    torch.testing.assert_close(weight(config, snr.log()), theirs)


def test_soft_min_snr_is_hdits():
    """arXiv 2401.11605: 1 / (sigma^2 + 1 / gamma) on x; on the output of EDM's preconditioning with sigma_data^2 =
    1 / gamma, k-diffusion has (sigma data)^2 / (sigma^2 + data^2)^2."""
    gamma = 4.0
    on_x = weight(DiffusionConfig(objective="x0", weighting="soft-min-snr", min_snr_gamma=gamma), LOG_SNR)
    torch.testing.assert_close(on_x, 1 / (SIGMAS**2 + 1 / gamma))
    data = gamma**-0.5
    config = DiffusionConfig(objective="edm", weighting="soft-min-snr", min_snr_gamma=gamma, sigma_data=data)
    torch.testing.assert_close(weight(config, LOG_SNR), (SIGMAS * data) ** 2 / (SIGMAS**2 + data**2) ** 2)


def test_edm_is_table_1_as_diffusers_has_it():
    """Input, output and noise conditioning of EDMEulerScheduler on EDM's x = x0 + sigma eps."""
    diffusers = pytest.importorskip("diffusers")
    theirs, config = diffusers.EDMEulerScheduler(sigma_data=0.5), DiffusionConfig(objective="edm", sigma_data=0.5)
    generator = torch.Generator().manual_seed(0)
    x, f = (torch.randn(21, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, _ = alpha_sigma(LOG_SNR)
    p = parametrisation(config, LOG_SNR)
    torch.testing.assert_close(p.in_ * alpha * x, theirs.precondition_inputs(x, SIGMAS))
    torch.testing.assert_close(p.skip * alpha * x + p.out * f, theirs.precondition_outputs(x, f, SIGMAS))

    seen: list[Tensor] = []
    denoiser = small_denoiser(objective="edm")
    denoiser.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    denoiser.predict(torch.zeros(21, 1, 2, 2), LOG_SNR.float())
    torch.testing.assert_close(seen[0].double(), theirs.precondition_noise(SIGMAS), rtol=1e-6, atol=1e-6)


def test_edm_weight_is_its_lambda():
    """On x: (sigma^2 + data^2) / (sigma data)^2."""
    config = DiffusionConfig(objective="x0", weighting="edm", sigma_data=0.5)
    torch.testing.assert_close(weight(config, LOG_SNR), (SIGMAS**2 + 0.25) / (SIGMAS * 0.5) ** 2)


def test_edm_noise_levels_are_lognormal():
    config = DiffusionConfig(schedule="edm-lognormal", p_mean=-1.2, p_std=1.2)
    sigma = (-training_log_snr(config, QUANTILES) / 2).exp()
    theirs = scipy.stats.lognorm(s=1.2, scale=math.exp(-1.2)).ppf(QUANTILES.numpy())
    torch.testing.assert_close(sigma, torch.from_numpy(theirs))


def test_flow_times_are_sd3s_logit_normal():
    """arXiv 2403.03206: the density of t of z = (1 - t) x + t eps, against the rate at which quantiles pass t."""
    mean, std = 0.3, 0.8
    config = DiffusionConfig(schedule="logit-normal", p_mean=mean, p_std=std)

    def time_at(u: Tensor) -> Tensor:
        sigma = (-training_log_snr(config, u) / 2).exp()
        return sigma / (1 + sigma)

    t = time_at(QUANTILES)
    logit = (t / (1 - t)).log()
    density = (-((logit - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    step = 1e-5
    rate = 2 * step / (time_at(QUANTILES + step) - time_at(QUANTILES - step))
    torch.testing.assert_close(rate, density, rtol=1e-3, atol=0)
    assert time_at(torch.tensor([0.5], dtype=torch.float64)).item() == pytest.approx(1 / (1 + math.exp(-mean)))


def test_flow_samples_evenly_in_t():
    config = DiffusionConfig(schedule="logit-normal", sigma_min=0.01, sigma_max=99)
    sigma = (-sampling_log_snr(config, torch.linspace(0, 1, 11, dtype=torch.float64)) / 2).exp()
    t = sigma / (1 + sigma)
    torch.testing.assert_close(t, torch.linspace(0.01 / 1.01, 0.99, 11, dtype=torch.float64))


class Pointwise(nn.Module):
    """The smallest network there is: a 1 x 1 convolution, shifted by the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        shifted: Tensor = self.conv(x) + c_noise[:, None, None, None]
        return shifted


def small_denoiser(**diffusion: object) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(
        Pointwise(), config=DiTConfig(), diffusion=DiffusionConfig(**diffusion), code_shape=(1, 2, 2), num_classes=0,
        mean=[0.1], std=[0.5],
    )  # fmt: skip


@pytest.mark.parametrize("end", [0.0, 1 - 2**-24])
def test_gradients_are_finite_at_both_ends(end):
    """In float32, at the least and the largest quantile that is ever drawn."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(2, 1, 2, 2, generator=generator)
    draws = Draws(torch.tensor([end, 0.5]), torch.randn(2, 1, 2, 2, generator=generator), torch.zeros(2))
    for objective, schedule, weighting in product(OBJECTIVES, SCHEDULES, WEIGHTINGS):
        denoiser = small_denoiser(objective=objective, schedule=schedule, weighting=weighting)
        loss = denoiser.loss(codes, draws).per_sample
        loss.sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in denoiser.parameters()])
        name = f"{objective}, {schedule}, {weighting}"
        assert loss.isfinite().all() and gradients.isfinite().all(), name
        assert gradients.any(), name
