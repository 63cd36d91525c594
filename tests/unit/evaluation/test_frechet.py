"""The Fréchet distance against closed forms and against clean-fid's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import standin_weights
from oracles import clean_fid

from brics_cli.errors import UsageError
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.networks.inception import load_inception


def gathered(rows: np.ndarray, *, num_batches: int = 3) -> FeatureMoments:
    moments = FeatureMoments(rows.shape[1])
    for batch in np.array_split(rows, num_batches):
        moments.update(batch)
    return moments


def features(num: int, num_features: int, *, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(num_features, num_features)) / np.sqrt(num_features)
    return generator.normal(size=(num, num_features)) @ mixing + generator.normal(size=num_features)


@pytest.mark.parametrize("num", [20, 64, 65, 500])  # below, at, just above and far above the number of features
def test_moments_equal_numpys_however_they_arrive(num: int) -> None:
    rows = features(num, 64, seed=0) + 1e3  # far from zero: unshifted sums would lose digits
    for num_batches in (1, 7):
        moments = gathered(rows, num_batches=num_batches)
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), atol=1e-11)
        factor = moments.gaussian().factor()
        np.testing.assert_allclose(factor @ factor.T, moments.covariance, atol=1e-11)


@pytest.mark.parametrize(("num_a", "num_b"), [(500, 400), (30, 500), (500, 30), (30, 40)])
def test_equals_clean_fids_distance(num_a: int, num_b: int) -> None:
    a, b = features(num_a, 64, seed=0), features(num_b, 64, seed=1)
    ours = frechet_distance(gathered(a), gathered(b))
    assert ours == pytest.approx(clean_fid(a, b), rel=1e-6)
    assert ours == pytest.approx(frechet_distance(gathered(b), gathered(a)), rel=1e-10)


@pytest.mark.parametrize("num", [40, 500])
def test_closed_forms(num: int) -> None:
    rows = features(num, 64, seed=0)
    offset, scale = np.linspace(-1, 1, 64), 1.3
    moments = gathered(rows)
    assert frechet_distance(moments, gathered(rows)) < 1e-9
    assert frechet_distance(moments, gathered(rows + offset)) == pytest.approx(offset @ offset, rel=1e-9)
    mean, trace = rows.mean(axis=0), np.trace(np.cov(rows, rowvar=False))
    expected = (1 - scale) ** 2 * (mean @ mean + trace)
    assert frechet_distance(moments, gathered(scale * rows)) == pytest.approx(expected, rel=1e-9)


def test_a_singular_covariance_of_many_images_is_exact() -> None:
    rows = features(300, 8, seed=0)
    wide = np.concatenate([rows, np.zeros((300, 56))], axis=1)  # 300 rows, rank 8 of 64
    other = np.concatenate([features(200, 8, seed=1), np.zeros((200, 56))], axis=1)
    narrow = frechet_distance(gathered(rows), gathered(other[:, :8]))
    assert frechet_distance(gathered(wide), gathered(other)) == pytest.approx(narrow, rel=1e-6)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UsageError, match="at least 2 images"):
        frechet_distance(gathered(features(1, 4, seed=0), num_batches=1), gathered(features(9, 4, seed=0)))


def test_wrong_or_bad_rows_are_refused() -> None:
    moments = FeatureMoments(4)
    with pytest.raises(ValueError, match="shape"):
        moments.update(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(np.full((2, 4), np.nan))
    assert moments.num == 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_fid_of_flat_colours_is_the_distance_of_the_colours(tmp_path: Path) -> None:
    """Through the resize and the network: orthonormal features of the mean colour keep all distances."""
    network = load_inception(standin_weights.save_colour_inception(tmp_path))
    generator = np.random.default_rng(0)
    sides = {"real": generator.integers(40, 200, (12, 3)), "fake": generator.integers(0, 256, (15, 3))}
    moments = {}
    for side, colours in sides.items():
        images = [np.full((8, 8, 3), colour, np.uint8) for colour in colours]
        moments[side] = FeatureMoments(2048)
        moments[side].update(network.features(images))
    real, fake = ((colours - 128) / 128 for colours in sides.values())
    expected = frechet_distance(gathered(real), gathered(fake))
    assert expected > 0.01
    assert frechet_distance(moments["real"], moments["fake"]) == pytest.approx(expected, rel=1e-5)
