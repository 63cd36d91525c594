"""Random convolutions: the same network everywhere, and a Fréchet distance that rises with what is wrong."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from brics_cli.evaluation.frechet import FrechetReference
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.images.photographs import photograph_crops
from brics_cli.networks.random_features import RandomConvolutions

SHA256 = "1d88d08b14d0865c081386eb620a1c3385f7f8d604d48aa4dd8ea8d7538bc6b4"
"""Of the drawn weights: figures of two machines are comparable as long as it stays."""


@pytest.fixture(scope="module")
def network() -> RandomConvolutions:
    return RandomConvolutions()


def halves() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two samples of one distribution: every other crop of the photographs, 150 each."""
    crops = [np.ascontiguousarray(crop.pixels) for crop in photograph_crops()]
    crops = [crops[index] for index in np.random.default_rng(0).permutation(len(crops))]
    return crops[:150], crops[150:300]


def moments(network: RandomConvolutions, images: list[np.ndarray]) -> FeatureMoments:
    found = FeatureMoments(network.num_features)
    found.update(network.features(images))
    return found


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def test_the_weights_are_the_same_everywhere(network: RandomConvolutions) -> None:
    assert network.weights_sha256 == SHA256
    torch.manual_seed(1)
    again = RandomConvolutions()
    assert all(torch.equal(a, b) for a, b in zip(network.filters, again.filters, strict=True))
    for filters in network.filters:
        torch.testing.assert_close(filters.sum((2, 3)), torch.zeros(filters.shape[:2]), rtol=0, atol=1e-5)


def test_features_do_not_depend_on_the_batch_and_see_no_edges_in_a_plain_image(network: RandomConvolutions) -> None:
    images, _ = halves()
    together = network.features(images[:5])
    assert together.shape == (5, network.num_features)
    np.testing.assert_allclose(network.features(images[3:4]), together[3:4], rtol=0, atol=1e-4)
    plain = network.features([np.full((64, 64, 3), 90, np.uint8)])[0]
    np.testing.assert_allclose(plain[:64], np.log(0.01), atol=1e-3)
    np.testing.assert_allclose(plain[64:], 90 / 127.5 - 1, atol=1e-5)


def test_the_distance_rises_with_blur_noise_and_collapse(network: RandomConvolutions) -> None:
    """The same order that an eye would give; the other half of the photographs is nearest of all."""
    ours, theirs = halves()
    reference = FrechetReference(moments(network, ours))
    same = reference.distance(moments(network, theirs))
    for worse, amounts in ((blurred, (0.7, 1.2, 2.0)), (noisy, (4, 8, 16))):
        distances = [same]
        distances += [reference.distance(moments(network, [worse(x, amount) for x in theirs])) for amount in amounts]
        assert all(b > 1.3 * a for a, b in pairwise(distances)), (worse.__name__, distances)
    collapsed = reference.distance(moments(network, theirs[:15] * 10))
    assert collapsed > 3 * same
