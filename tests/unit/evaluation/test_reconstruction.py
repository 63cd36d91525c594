"""PSNR and SSIM against scikit-image, and the conventions that others get wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from brics_cli.errors import UsageError
from brics_cli.evaluation import psnr as of_pairs
from brics_cli.evaluation.family import Context, Score
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.evaluation.reconstruction import Psnr, psnr, scores_on_device, ssim
from brics_cli.evaluation.registry import REGISTRY, Settings
from brics_cli.runtime.reporting import SilentReporter


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    photograph = data.astronaut()
    images = np.stack([photograph[top : top + 48, left : left + 40] for top, left in ((60, 180), (200, 60), (0, 400))])
    noise = np.random.default_rng(0).normal(0, [[[[5]]], [[[20]]], [[[60]]]], images.shape)
    return images, np.clip(images + noise, 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_images_per_image(
    pairs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*pairs, strict=True)]
    found = psnr(*pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    monkeypatch.setattr(of_pairs, "BLOCK_VALUES", 1000)  # a few rows at a time
    assert np.array_equal(psnr(*pairs), found)


def test_ssim_equals_scikit_images_gaussian_version(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    expected = [
        structural_similarity(
            a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(*pairs, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_allclose(ssim(*pairs, pool=pool), expected, rtol=1e-12)
    assert expected[0] > expected[1] > expected[2]


def test_scores_where_the_images_are_equal_those_of_the_cpu(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = (np.concatenate([side, pairs[0][:1]]) for side in pairs)  # the last two are identical
    found = scores_on_device(*map(torch.from_numpy, (real, fake)))
    np.testing.assert_allclose(found[0], capped_psnr(real, fake), atol=1e-9)
    np.testing.assert_allclose(found[1], ssim(real, fake), atol=1e-4)
    assert float(found[0][-1]) == 100 and float(found[1][-1]) == 1


def test_ssim_by_its_definition(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Wang et al. 2004, equation 13, with a dense 11 x 11 window: what the registry's definition promises."""
    a, b = (images[0, :20, :20, 0].astype(np.float64) for images in pairs)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(10):
        for x in range(10):
            u, v = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mu, nu = (window * u).sum(), (window * v).sum()
            var_u, var_v = (window * u**2).sum() - mu**2, (window * v**2).sum() - nu**2
            covariance = (window * u * v).sum() - mu * nu
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * mu * nu + c1) * (2 * covariance + c2) / ((mu**2 + nu**2 + c1) * (var_u + var_v + c2)))
    grey = [np.repeat(images[:1, :20, :20, :1], 3, axis=3) for images in pairs]
    assert ssim(*grey)[0] == pytest.approx(np.mean(values), rel=1e-10)


def psnr_score(real: np.ndarray, fake: np.ndarray) -> Score:
    with ThreadPoolExecutor(1) as pool:
        family = Psnr(Context(Settings(), torch.device("cpu"), pool, SilentReporter()), None, {})
        family.add(real, fake)
        return family.result(REGISTRY["psnr"])


def test_psnr_is_averaged_over_images_and_not_taken_of_the_whole() -> None:
    a = np.zeros((2, 16, 16, 3), np.uint8)
    b = a.copy()
    b[0] += 1
    b[1] += 100
    per_image = 20 * np.log10(255 / np.array([1.0, 100.0]))
    score = psnr_score(a, b)
    assert score.value == pytest.approx(per_image.mean())
    assert score.standard_error == pytest.approx(per_image.std(ddof=1) / np.sqrt(2))
    of_the_whole = 10 * np.log10(255**2 / 5000.5)
    assert abs(score.value - of_the_whole) > 5


def test_identical_pairs_are_infinite_and_said_so(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images = pairs[0]
    assert np.isinf(psnr(images, images)).all()
    np.testing.assert_allclose(ssim(images, images), 1)
    score = psnr_score(images, images)
    assert (score.value, score.standard_error) == (np.inf, None)
    assert score.note is not None and "3 pairs are identical" in score.note


def test_what_cannot_be_compared_is_refused(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images = pairs[0]
    with pytest.raises(ValueError, match="uint8"):
        psnr(images / 255, images)
    with pytest.raises(ValueError, match="uint8"):
        ssim(images[:, :20], images)
    with pytest.raises(UsageError, match="at least 11 px, these are 10 x 48"):
        ssim(images[:, :, :10], images[:, :, :10])
