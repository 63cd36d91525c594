"""The figures of `--metric diffusability`, each against what is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic import MIXTURE

from brics_cli.evaluation.diffusability import distribution, velocity
from brics_cli.evaluation.diffusability.decoding import Decoded
from brics_cli.evaluation.diffusability.spectrum import Spectra, energies, zigzag

T = np.array(velocity.TIMES)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def agree(found: velocity.Viv, expected: np.ndarray, *, rel: float = 0.04, where: np.ndarray = T > 0) -> None:
    within = np.abs(found.by_time - expected) < 4 * found.errors + rel * expected + 1e-6
    assert within[where].all(), (found.by_time, expected)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_viv_of_a_gaussian(std: float) -> None:
    expected = std**2 / ((1 - T) ** 2 * std**2 + T**2)
    x = std * normal(5000, 2)
    agree(velocity.empirical(x), expected, where=0.16 * std < T / (1 - T))  # nearer, 5,000 points are too far apart
    agree(velocity.linear(x), expected)
    assert velocity.empirical(x).mean == pytest.approx(expected.mean(), rel=0.05)


def test_viv_of_two_points_is_exact() -> None:
    """x = ±1: E[x | x_t] = tanh(a x_t / t²), so that Var(x | x_t) = 1 - tanh²."""
    grid = np.linspace(-8, 8, 20_001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi) * (grid[1] - grid[0])
    a = 1 - T[:, None]
    expected = (density * (1 - np.tanh(a * (a + T[:, None] * grid) / T[:, None] ** 2) ** 2)).sum(axis=1) / T**2
    found = velocity.empirical(np.array([[1.0], [-1.0]]), num_queries=20_000)
    agree(found, expected, rel=1e-3)


def test_viv_of_a_mixture_is_the_error_of_its_exact_denoiser() -> None:
    x = MIXTURE.draw(20_000, seed=1)
    eps = torch.from_numpy(normal(*x.shape, seed=2))
    expected = []
    for t in T:
        estimate = MIXTURE.denoise(((1 - t) * x + t * eps) / (1 - t), t / (1 - t))
        expected.append(float((x - estimate).square().mean()) / t**2)
    found = velocity.empirical(MIXTURE.draw(8_000, seed=3).numpy())
    agree(found, np.array(expected), rel=0.06, where=T > 0.15)  # before, 8,000 points in 3 dimensions are too few
    assert (velocity.linear(x.numpy()).by_time >= np.array(expected) * 0.99).all()


def test_viv_lies_between_its_bounds_in_many_dimensions() -> None:
    x = normal(600, 64) * np.linspace(0.2, 2, 64)
    variances = np.linspace(0.2, 2, 64) ** 2
    expected = np.array([(variances / ((1 - t) ** 2 * variances + t * t)).mean() for t in T])
    assert (velocity.empirical(x).by_time <= expected * 1.02).all()
    assert (velocity.linear(x).by_time >= expected * 0.98).all()
    assert velocity.linear(x).mean < 1.3 * expected.mean()


def test_zigzag_is_jpegs() -> None:
    first = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0), (4, 0)]
    assert zigzag(8, 8)[:11] == first and zigzag(8, 8)[-1] == (7, 7)
    maps = normal(3, 2, 4, 6)
    np.testing.assert_allclose(energies(maps).sum(axis=1), np.square(maps).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("exponent", [0.0, -2.0])
def test_the_slope_of_a_spectrum_is_its_exponent(exponent: float) -> None:
    from scipy.fft import idctn

    u, v = np.mgrid[:8, :8]
    frequency = np.hypot(u, v)
    frequency[0, 0] = 1
    maps = idctn(normal(400, 3, 8, 8) * frequency ** (exponent / 2), axes=(2, 3), norm="ortho")
    spectra = Spectra(8, 8)
    pixels = np.clip(128 + 12 * maps, 0, 255).transpose(0, 2, 3, 1).repeat(2, axis=1).repeat(2, axis=2)
    for part in range(0, 400, 100):
        spectra.add(maps[part : part + 100].astype(np.float32), pixels[part : part + 100].round().astype(np.uint8))
    slope, error = spectra.slope(0)
    assert abs(slope - exponent) < 4 * error + 0.03 and 0 < error < 0.1
    assert spectra.slope(1)[0] == pytest.approx(exponent, abs=0.15)  # the same maps, as images
    excess, error = spectra.excess()
    assert abs(excess) < 4 * error + 0.3


def test_white_codes_have_more_at_high_frequencies_than_smooth_images() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 16)[:, None, None], (30, 16, 16, 3)).astype(np.uint8)
    spectra = Spectra(8, 8)
    spectra.add(normal(30, 4, 8, 8).astype(np.float32), smooth)
    assert spectra.excess()[0] > 10


def test_dimensions_without_the_bias_of_few_rows() -> None:
    white = normal(300, 10, 8, 8)
    value, error = distribution.effective_dimension(white)
    assert abs(value - 640) < 4 * error and error < 40  # 300 rows of 640 dimensions; the plain ratio would be 204
    plane = (normal(500, 2) @ normal(2, 64, seed=1)).reshape(500, 4, 4, 4)
    assert 1 < distribution.effective_dimension(plane)[0] < 2.1


def test_marginals_of_known_distributions() -> None:
    gaussian, uniform = normal(800, 2, 8, 8), np.random.default_rng(0).random((800, 2, 8, 8))
    assert distribution.entropy(3 * gaussian)[0][0] == pytest.approx(np.log2(2 * np.pi * np.e) / 2, abs=0.02)
    assert distribution.entropy(uniform)[0][0] == pytest.approx(np.log2(12) / 2, abs=0.01)
    levels = np.rint(uniform * 255) / 255
    assert distribution.entropy(levels)[0][0] == pytest.approx(np.log2(12) / 2, abs=0.02)
    for x, expected in ((gaussian, 3.0), (uniform, 1.8)):
        value, error = distribution.kurtosis(x)
        assert abs(value - expected) < 4 * error and error < 0.05
    (share, _), by_channel = distribution.saturation(np.where(uniform < 0.25, 0.0, 0.5))
    assert share == pytest.approx(0.25, abs=0.01) and by_channel.shape == (2,)


def test_correlations() -> None:
    x = normal(400, 3, 6, 6)
    assert abs(distribution.channel_correlation(x)[0]) < 0.03  # absolute values of noise
    x[:, 1] = -x[:, 0]
    assert distribution.channel_correlation(x)[0] == pytest.approx(1 / 3, abs=0.03)
    mixed = normal(400, 2, 6, 6)
    running = np.stack([mixed[:, :, 0], *(mixed[:, :, i] + mixed[:, :, i - 1] for i in range(1, 6))], axis=2)
    value, error = distribution.neighbour_correlation(
        running[:, :, 1:]
    )  # half along one direction, none along the other
    assert abs(value - 0.25) < 4 * error + 0.01


@pytest.mark.parametrize("num", [1, 4])
def test_modes_are_counted_on_codes_not_seen(num: int) -> None:
    x = 0.3 * normal(800, 4, 2, 2) + 3 * normal(num, 4, 2, 2, seed=5)[np.arange(800) % num]
    found = distribution.modes(x)
    assert found.figure[0] == pytest.approx(num, rel=0.2)


def test_a_decoder_that_enlarges_is_equivariant() -> None:
    def decode(codes: torch.Tensor) -> torch.Tensor:
        return F.interpolate(2 * codes[:, :3] - 1, scale_factor=4)

    bottleneck = SimpleNamespace(admissible=lambda codes: codes)
    config = SimpleNamespace(downsampling=4)
    autoencoder = SimpleNamespace(decode=decode, bottleneck=bottleneck, config=config)
    std, device = np.full(4, 0.5, np.float32), torch.device("cpu")
    decoded = Decoded(autoencoder, code_shape=(4, 8, 8), std=std, device=device)
    codes = torch.from_numpy(np.random.default_rng(0).random((60, 4, 2, 2), np.float32))
    codes = F.interpolate(codes, scale_factor=4)  # so smooth that nothing is lost when they are averaged
    images = decode(codes) + 0.02 * torch.from_numpy(normal(60, 3, 32, 32)).float()
    decoded.add(codes[:30], images[:30], list(range(30)))
    decoded.add(codes[30:], images[30:], list(range(30, 60)))
    for name, expected in (("flip", 1), ("turn", 1), ("shift", 1), ("down2", 1 / 4), ("down4", 1 / 16)):
        value, error = decoded.ratio(name)
        assert value == pytest.approx(expected, rel=0.05), name  # of averaged noise less is left
        assert error < 0.02
    for kind, level, noise in (("absolute", 0.05, 0.05), ("relative", 0.2, 0.1)):
        assert decoded.psnr(kind, level)[0] == pytest.approx(-10 * np.log10(noise**2 + 0.01**2), abs=0.1)


def test_maps_that_cannot_be_halved_twice_are_not() -> None:
    autoencoder, std = SimpleNamespace(config=SimpleNamespace(downsampling=4)), np.ones(4, np.float32)
    decoded = Decoded(autoencoder, code_shape=(4, 6, 6), std=std, device=torch.device("cpu"))
    assert list(decoded.transforms) == ["down2", "flip", "turn", "shift"]
