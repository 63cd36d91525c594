"""The log-SNR algebra: every objective says the same thing, every schedule and weighting is the paper's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from brics_cli.config import DiffusionConfig
from brics_cli.diffusion.diffusion import (
    LEVEL_NAMES,
    LOG_SNR_LIMIT,
    alpha_sigma,
    draws_for,
    karras_sigma,
    loss_by_level,
    parametrisation,
    sampling_log_snr,
    training_log_snr,
    weight,
)
from brics_cli.sampling.models import ImageNoise

OBJECTIVES = ("eps", "v", "x0", "edm", "flow")
SCHEDULES = ("cosine", "cosine-shifted", "edm-lognormal", "logit-normal")
WEIGHTINGS = ("none", "min-snr", "soft-min-snr", "edm")
LEVELS = torch.linspace(-12, 12, 25, dtype=torch.float64)


def example(log_snr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, eps, x_t) with log_snr's shape in front."""
    rng = np.random.default_rng(0)
    x, eps = (torch.from_numpy(rng.standard_normal((len(log_snr), 7))) for _ in range(2))
    alpha, sigma = (part[:, None] for part in alpha_sigma(log_snr))
    return x, eps, alpha * x + sigma * eps


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_a_perfect_network_gives_back_x0_at_every_level(objective, sigma_data):
    x, eps, x_t = example(LEVELS)
    p = parametrisation(DiffusionConfig(objective=objective, sigma_data=sigma_data), LEVELS)
    target = p.target_x[:, None] * x + p.target_eps[:, None] * eps
    torch.testing.assert_close(p.skip[:, None] * x_t + p.out[:, None] * target, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_targets_are_those_of_the_papers(objective):
    x, eps, _ = example(LEVELS)
    alpha, sigma = (part[:, None] for part in alpha_sigma(LEVELS))
    sigma_e = sigma / alpha
    noisy = x + sigma_e * eps  # EDM's form, sigma_data 1
    wanted = {
        "eps": eps,
        "x0": x,
        "v": alpha * eps - sigma * x,
        "flow": eps - x,
        "edm": (x - noisy / (1 + sigma_e**2)) * (1 + sigma_e**2).sqrt() / sigma_e,  # (x - c_skip noisy) / c_out
    }[objective]
    p = parametrisation(DiffusionConfig(objective=objective), LEVELS)
    torch.testing.assert_close(p.target_x[:, None] * x + p.target_eps[:, None] * eps, wanted, rtol=1e-6, atol=1e-6)


def test_edm_with_unit_data_is_v_with_the_other_sign():
    edm, v = (parametrisation(DiffusionConfig(objective=name), LEVELS) for name in ("edm", "v"))
    torch.testing.assert_close(edm.out, -v.out)
    torch.testing.assert_close(edm.skip, v.skip)
    torch.testing.assert_close(edm.in_, v.in_)


def test_edm_network_input_and_target_have_unit_variance():
    for data in (0.5, 1.0, 2.0):
        p = parametrisation(DiffusionConfig(objective="edm", sigma_data=data), LEVELS)
        alpha, sigma = alpha_sigma(LEVELS)
        torch.testing.assert_close(p.in_**2 * ((alpha * data) ** 2 + sigma**2), torch.ones_like(LEVELS))
        torch.testing.assert_close((p.target_x * data) ** 2 + p.target_eps**2, torch.ones_like(LEVELS))


def test_edm_weighting_makes_the_edm_objective_uniform():
    for data in (0.5, 1.0):
        w = weight(DiffusionConfig(objective="edm", weighting="edm", sigma_data=data), LEVELS)
        torch.testing.assert_close(w, torch.ones_like(w))


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_weights_on_x_do_not_depend_on_the_objective(weighting):
    on_x = [
        weight(config, LEVELS) / parametrisation(config, LEVELS).out ** 2
        for config in (DiffusionConfig(objective=name, weighting=weighting) for name in ("eps", "v", "edm", "flow"))
    ]
    for other in on_x[1:]:
        torch.testing.assert_close(other, on_x[0], rtol=1e-9, atol=0)


def test_min_snr_on_eps_is_the_papers_formula():
    w = weight(DiffusionConfig(objective="eps", weighting="min-snr", min_snr_gamma=5), LEVELS)
    snr = LEVELS.exp()
    torch.testing.assert_close(w, torch.minimum(snr, torch.full_like(snr, 5)) / snr)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_everything_is_finite_at_the_ends(objective, schedule, weighting):
    config = DiffusionConfig(objective=objective, schedule=schedule, weighting=weighting)
    ends = torch.tensor([0.0, 1e-7, 0.5, 1 - 1e-7, 1.0])
    for log_snr in (training_log_snr(config, ends), sampling_log_snr(config, ends)):
        assert torch.isfinite(log_snr).all()
        assert (log_snr[1:] <= log_snr[:-1]).all()
        assert torch.isfinite(weight(config, log_snr)).all()
        assert all(torch.isfinite(part).all() for part in parametrisation(config, log_snr))


def test_cosine_is_alpha_cos():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    alpha, _ = alpha_sigma(sampling_log_snr(DiffusionConfig(schedule="cosine"), t))
    torch.testing.assert_close(alpha, torch.cos(t * math.pi / 2))


def test_cosine_shifted_is_chens_gamma():
    """The function of arXiv 2301.10972, algorithm 1, as printed there."""

    def gamma(t: float, start: float = 0.2, end: float = 1.0, tau: float = 1.5) -> float:
        v_start = math.cos(start * math.pi / 2) ** (2 * tau)
        v_end = math.cos(end * math.pi / 2) ** (2 * tau)
        output = math.cos((t * (end - start) + start) * math.pi / 2) ** (2 * tau)
        return (v_end - output) / (v_end - v_start)

    t = torch.linspace(0.01, 0.97, 20, dtype=torch.float64)
    alpha, _ = alpha_sigma(sampling_log_snr(DiffusionConfig(schedule="cosine-shifted"), t))
    wanted = torch.tensor([gamma(float(each)) for each in t], dtype=torch.float64)
    torch.testing.assert_close(alpha**2, wanted, rtol=1e-9, atol=1e-12)


def test_lognormal_training_levels_have_the_configured_moments():
    config = DiffusionConfig(schedule="edm-lognormal", p_mean=-0.7, p_std=1.3)
    log_sigma = -training_log_snr(config, (torch.arange(20_000) + 0.5) / 20_000) / 2
    assert float(log_sigma.mean()) == pytest.approx(-0.7, abs=1e-3)
    assert float(log_sigma.std()) == pytest.approx(1.3, abs=5e-3)


def test_karras_levels_run_from_sigma_min_to_sigma_max():
    ends = karras_sigma(DiffusionConfig(), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0], dtype=torch.float64))
    assert sampling_log_snr(DiffusionConfig(schedule="cosine"), torch.tensor([1.0])).item() == -LOG_SNR_LIMIT


def test_training_draws_do_not_depend_on_the_batch():
    shape = (3, 2, 2)
    whole = draws_for(7, step=5, indices=[10, 11, 12, 13], shape=shape)
    halves = [draws_for(7, step=5, indices=part, shape=shape) for part in ([10, 11], [12, 13])]
    for name in ("u", "eps", "drop"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
    for other in (draws_for(8, step=5, indices=[10], shape=shape), draws_for(7, step=6, indices=[10], shape=shape)):
        assert not torch.equal(other.eps[0], whole.eps[0])
    assert not torch.equal(whole.eps[0], whole.eps[1])


def test_training_draws_are_standard():
    draws = draws_for(0, step=0, indices=range(400), shape=(4, 8, 8))
    assert float(draws.eps.mean()) == pytest.approx(0, abs=0.02)
    assert float(draws.eps.std()) == pytest.approx(1, abs=0.02)
    assert 0 <= float(draws.u.min()) < 0.02 and 0.98 < float(draws.u.max()) < 1


def test_image_noise_depends_on_the_seed_alone():
    first, again = ImageNoise([3, 4], shape=(2, 2, 2)), ImageNoise([4, 9], shape=(2, 2, 2))
    a1, b1 = first(), again()
    assert torch.equal(a1[1], b1[0]) and not torch.equal(a1[0], a1[1])
    a2, b2 = first(), again()
    assert torch.equal(a2[1], b2[0]) and not torch.equal(a1, a2)


def test_loss_by_level_adds_up():
    loss, log_snr = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([-9.0, -1.0, -0.5, 1.0, 9.0, -4.0])
    sums, counts = loss_by_level(loss.double(), log_snr).tolist()
    assert dict(zip(LEVEL_NAMES, zip(sums, counts, strict=True), strict=True)) == {
        "logsnr<-4": (7.0, 2),
        "logsnr-4..0": (5.0, 2),
        "logsnr0..4": (4.0, 1),
        "logsnr>4": (5.0, 1),
    }
    loss[0] = float("nan")  # one sample's is not everybody's
    assert loss_by_level(loss, log_snr)[0].isnan().tolist() == [True, False, False, False]
