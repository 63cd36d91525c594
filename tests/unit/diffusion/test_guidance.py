"""Autoguidance: the formula on estimates and on whole samples in closed form, w = 1 to the bit, and misfits refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from brics_cli.config import DiffusionConfig, DiTConfig
from brics_cli.diffusion.classes import Classes
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.samplers import SamplerSettings, check_guide, estimate, sample_codes
from brics_cli.errors import ArtefactError
from brics_cli.sampling.models import ImageNoise

SHAPE = (3, 4, 4)
LOG_SNR = torch.zeros(2)
X_T = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0))


def random_dit(seed: int, *, num_classes: int = 0, mean: float = 0.4, shape=SHAPE, code_kind="bounded") -> Denoiser:
    torch.manual_seed(seed)
    denoiser = build_denoiser(
        DiTConfig(dim=32, depth=1, num_heads=2), DiffusionConfig(), code_shape=shape, num_classes=num_classes,
        store_mean=[mean] * shape[0], store_std=[0.2] * shape[0], code_kind=code_kind,
    )  # fmt: skip
    for parameter in denoiser.parameters():  # a fresh DiT's output is zero
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval().requires_grad_(False)


def closed_form(network: nn.Module, *, code_kind="bounded") -> Denoiser:
    """A denoiser whose estimate of x = 2z - 1 is what `network` says."""
    return Denoiser(
        network, config=DiTConfig(), diffusion=DiffusionConfig(objective="x0", normalise="none"), code_shape=SHAPE,
        num_classes=0, mean=[0.0] * 3, std=[1.0] * 3, code_kind=code_kind,
    )  # fmt: skip


class Always(nn.Module):
    """The same estimate, whatever it sees."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x_t, self.value)


class OfNormalData(nn.Module):
    """E[x | x_t] of data N(0, std^2): alpha std^2 / (alpha^2 std^2 + sigma^2) x_t."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x_t: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        snr = (-8 * c_noise).exp()[:, None, None, None]
        alpha2 = snr / (1 + snr)
        return alpha2.sqrt() * self.std**2 / (alpha2 * self.std**2 + 1 - alpha2) * x_t


@pytest.mark.parametrize("w", [0.0, 1.5, 3.0])
def test_the_estimate_is_extrapolated_from_the_guides(w):
    main, guide = random_dit(0), random_dit(1)
    apart = [estimate(each, X_T, LOG_SNR, clip=False) for each in (main, guide)]
    found = estimate(main, X_T, LOG_SNR, guidance=w, guide=guide, clip=False)
    torch.testing.assert_close(found, apart[1] + w * (apart[0] - apart[1]))
    assert not torch.allclose(apart[0], apart[1])


def test_the_guided_estimate_is_clipped_and_not_its_parts():
    main, guide = closed_form(Always(0.5)), closed_form(Always(1.5))
    found = estimate(main, X_T, LOG_SNR, guidance=2.0, guide=guide)
    assert torch.equal(found, torch.full_like(X_T, -0.5))  # clipped parts would give 0
    assert torch.equal(estimate(main, X_T, LOG_SNR, guidance=4.0, guide=guide), torch.full_like(X_T, -1.0))


def test_continuous_codes_are_guided_without_limits():
    main, guide = (closed_form(Always(value), code_kind="continuous") for value in (2.0, 1.0))
    assert torch.equal(estimate(main, X_T, LOG_SNR, guidance=5.0, guide=guide), torch.full_like(X_T, 6.0))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_scale_of_1_is_no_guide_to_the_bit(num_classes):
    main, guide = random_dit(0, num_classes=num_classes), random_dit(1)

    def codes(**how: object) -> Tensor:
        noise = ImageNoise([5, 6], shape=SHAPE)
        labels = torch.tensor(Classes(num_classes).draw([5, 6])) if num_classes else None
        settings = SamplerSettings(steps=4, guidance=float(how.pop("guidance", 1.0)))
        return sample_codes(main, noise=noise, settings=settings, labels=labels, **how)

    assert torch.equal(codes(guide=guide), codes())
    assert not torch.equal(codes(guide=guide, guidance=2.0), codes())


@pytest.mark.parametrize("sampler", ["heun", "dpmpp-2m", "ddim"])
def test_samples_of_a_guided_pair_are_those_of_the_closed_form(sampler):
    """The paths of guided estimates of N(0, s^2) and N(0, S^2) end at sigma_max eps (s / sqrt(s^2 + sigma_max^2))^w
    (S / sqrt(S^2 + sigma_max^2))^(1 - w): the guided score is a weighted sum, and so is the exponent."""
    own, broader, w = 0.5, 0.8, 2.0
    main, guide = (closed_form(OfNormalData(std), code_kind="continuous") for std in (own, broader))
    settings = SamplerSettings(sampler=sampler, steps=200, guidance=w, clip=False)
    codes = sample_codes(main, noise=ImageNoise(range(4), shape=SHAPE), settings=settings, guide=guide)

    high = DiffusionConfig().sigma_max
    first = ImageNoise(range(4), shape=SHAPE)() * high
    shrunk = [std / math.hypot(std, high) for std in (own, broader)]
    torch.testing.assert_close(2 * codes - 1, first * shrunk[0] ** w * shrunk[1] ** (1 - w), rtol=0.02, atol=1e-4)


def test_a_guide_without_classes_guides_a_model_with_classes():
    main, guide, labels = random_dit(0, num_classes=3), random_dit(1), torch.tensor([0, 2])
    found = estimate(main, X_T, LOG_SNR, guidance=2.0, guide=guide, labels=labels, clip=False)
    better = main.denoise(X_T, LOG_SNR, labels=labels, clip=False)
    worse = guide.denoise(X_T, LOG_SNR, clip=False)
    torch.testing.assert_close(found, 2 * better - worse)


@pytest.mark.parametrize(
    ("guide", "said"),
    [
        ({"shape": (3, 8, 8)}, "it makes codes of 3 x 8 x 8, the model of 3 x 4 x 4"),
        ({"code_kind": "continuous"}, "it makes continuous codes, the model bounded ones"),
        ({"mean": 0.41}, "it normalises codes by other statistics"),
        ({"num_classes": 2}, "it was trained with 2 classes, the model with 3"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(guide, said):
    with pytest.raises(ArtefactError, match=said):
        check_guide(random_dit(1, **guide), random_dit(0, num_classes=3))


def test_a_guide_of_another_autoencoder_is_refused():
    main, guide = random_dit(0), random_dit(1)
    main.lineage, guide.lineage = ({"autoencoder_sha256": letter * 64} for letter in "ab")
    with pytest.raises(ArtefactError, match="another autoencoder"):
        sample_codes(main, noise=ImageNoise([0], shape=SHAPE), settings=SamplerSettings(steps=2), guide=guide)
    guide.lineage = dict(main.lineage)
    check_guide(guide, main)
