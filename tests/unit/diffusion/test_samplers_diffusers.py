"""Samplers against diffusers' schedulers, step by step: the same path over the same noise levels.

Both go by the exact denoiser of a Gaussian mixture. Paths are in EDM's form, x = x0 + sigma eps; schedulers that are
variance preserving hold alpha x. Tolerance: diffusers keeps its noise levels in float32, and some of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from analytic import MIXTURE, normals
from torch import Tensor

from brics_cli.config import DiffusionConfig
from brics_cli.diffusion.samplers import ddim, ddpm, dpmpp_2m, heun, karras_steps

diffusers = pytest.importorskip("diffusers")

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
COUNT = 16
STEPS = (5, 20)


def path_of(sampler: Callable[..., Tensor], latent: Tensor, sigmas: Tensor, **settings: object) -> list[Tensor]:
    """x (N, D) at every evaluation of the denoiser, and at the end."""
    path: list[Tensor] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        path.append(x)
        return MIXTURE.denoise(x, sigma)

    end = sampler(denoise, latent, sigmas.double(), **settings)
    return [*path, end]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, their.double(), **CLOSE)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim(steps):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=False, set_alpha_to_one=True, prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps].sqrt()
    sigmas = torch.cat([(1 / alphas**2 - 1).sqrt(), torch.zeros(1)])
    x = normals(0, COUNT, 3) / alphas[0]
    ours, theirs = path_of(ddim, x, sigmas), [x]
    for number, t in enumerate(scheduler.timesteps):
        x0 = MIXTURE.denoise(theirs[-1], float(sigmas[number]))
        following = scheduler.step(x0, t, theirs[-1] * alphas[number]).prev_sample
        theirs.append(following / (alphas[number + 1] if number + 1 < steps else 1))
    assert_same(ours, theirs)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_with_the_same_noise(steps, schedule):
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=schedule, clip_sample=False, variance_type="fixed_small", prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps].sqrt()
    sigmas = torch.cat([(1 / alphas**2 - 1).sqrt(), torch.zeros(1)])
    x = normals(1, COUNT, 3) / alphas[0]
    own_noise, their_noise = (torch.Generator().manual_seed(7) for _ in range(2))
    ours = path_of(ddpm, x, sigmas, noise=lambda: torch.randn(COUNT, 3, dtype=torch.float64, generator=own_noise))
    theirs = [x]
    for number, t in enumerate(scheduler.timesteps):
        x0 = MIXTURE.denoise(theirs[-1], float(sigmas[number]))
        following = scheduler.step(x0, t, theirs[-1] * alphas[number], generator=their_noise).prev_sample
        theirs.append(following / (alphas[number + 1] if number + 1 < steps else 1))
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        lower_order_final=False, final_sigmas_type="zero", prediction_type="sample",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    alphas = 1 / (1 + sigmas**2).sqrt()
    x = normals(2, COUNT, 3) * sigmas[0]
    ours, theirs = path_of(dpmpp_2m, x, sigmas), [x]
    for number, t in enumerate(scheduler.timesteps):
        x0 = MIXTURE.denoise(theirs[-1], float(sigmas[number]))
        following = scheduler.step(x0, t, theirs[-1] * alphas[number]).prev_sample
        theirs.append(following / alphas[number + 1])
    assert_same(ours, theirs)


def edm_output(x: Tensor, sigma: float, *, data: float) -> Tensor:
    """What EDM's network says when its estimate is the mixture's: F = (x0 - c_skip x) / c_out (table 1)."""
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
    return (MIXTURE.denoise(x, sigma) - skip * x) / out


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("sampler", "scheduler_name", "options"),
    [
        (ddim, "EDMEulerScheduler", {}),
        (dpmpp_2m, "EDMDPMSolverMultistepScheduler", {"solver_order": 2, "lower_order_final": False}),
    ],
)
def test_edm_schedulers_over_karras_levels(sampler, scheduler_name, options, steps):
    config, data = DiffusionConfig(), 0.5
    scheduler = getattr(diffusers, scheduler_name)(
        sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=data, **options
    )
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(karras_steps(config, steps), scheduler.sigmas.double(), rtol=1e-4, atol=0)
    sigmas = scheduler.sigmas.double()
    x = normals(3, COUNT, 3) * sigmas[0]
    ours, theirs = path_of(sampler, x, sigmas), [x]
    for number, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(theirs[-1], t)  # it insists
        out = edm_output(theirs[-1].double(), float(sigmas[number]), data=data)
        theirs.append(scheduler.step(out, t, theirs[-1]).prev_sample)
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("sampler", "scheduler_name"), [(ddim, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler")]
)
def test_euler_and_heun(sampler, scheduler_name, steps):
    """Heun's scheduler is called twice per step, once for the last: as often as ours evaluates."""
    scheduler = getattr(diffusers, scheduler_name)(
        beta_schedule="scaled_linear", use_karras_sigmas=True, prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    at_call = scheduler.sigmas.double()  # Heun's: every level but the first and the last twice
    sigmas = torch.unique_consecutive(at_call)
    assert len(sigmas) == steps + 1
    x = normals(4, COUNT, 3) * sigmas[0]
    ours, theirs = path_of(sampler, x, sigmas), [x]
    for number, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(theirs[-1], t)
        x0 = MIXTURE.denoise(theirs[-1].double(), float(at_call[number]))
        theirs.append(scheduler.step(x0, t, theirs[-1]).prev_sample)
    assert_same(ours, theirs)


def test_flow_matching_is_ddim():
    """Euler's method in flow time t, z = (1 - t) x0 + t eps, is ddim's over sigma = t / (1 - t)."""
    times = torch.linspace(0.98, 0.02, 20, dtype=torch.float64)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=times.numpy())
    times = scheduler.sigmas.double()  # and 0
    sigmas = times / (1 - times)
    x = normals(5, COUNT, 3) * sigmas[0]
    ours, theirs = path_of(ddim, x, sigmas), [x]
    for number, t in enumerate(scheduler.timesteps):
        sigma = float(sigmas[number])
        x0 = MIXTURE.denoise(theirs[-1].double(), sigma)
        velocity = (theirs[-1] - x0) / sigma - x0  # eps - x0
        z = scheduler.step(velocity, t, theirs[-1] * (1 - times[number])).prev_sample
        theirs.append(z / (1 - times[number + 1]))
    assert_same(ours, theirs)
