"""Moments in groups: the jackknife's leave-one-out distances, in bounded memory and without the rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from brics_cli.evaluation import moments as moments_module
from brics_cli.evaluation.frechet import NUM_GROUPS, FrechetReference, frechet_distance
from brics_cli.evaluation.moments import FeatureMoments

D = 24


def rows(num: int, num_features: int = D, *, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(num, num_features)) + shift).astype(np.float32)


def gathered(features: np.ndarray, *, num_groups: int, batch: int = 7) -> FeatureMoments:
    moments = FeatureMoments(features.shape[1], num_groups=num_groups)
    for start in range(0, len(features), batch):
        moments.update(features[start : start + batch])
    return moments


def groups_of(num: int, num_groups: int) -> np.ndarray:
    """The group of each of `num` rows: rows are told apart by a one of their own."""
    moments = gathered(np.eye(num, dtype=np.float32), num_groups=num_groups)
    assert not moments.is_full
    left_out = np.stack([moments.gaussian(without=group).mean == 0 for group in range(num_groups)])  # (G, N)
    assert (left_out.sum(axis=0) == 1).all()
    return left_out.argmax(axis=0)


@pytest.mark.parametrize("num", [23, 26, 200])  # rows kept; just folded, D or fewer left without a group; far beyond
@pytest.mark.parametrize("waiting", [1, 50])
def test_the_jackknife_is_the_spread_of_distances_without_a_group(
    num: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "NUM_WAITING", waiting)
    reference, fake = gathered(rows(150, seed=0), num_groups=1), rows(num, seed=1, shift=0.5)
    groups = groups_of(num, NUM_GROUPS)
    distances = [
        frechet_distance(reference, gathered(fake[groups != group], num_groups=1)) for group in range(NUM_GROUPS)
    ]
    expected = np.sqrt(0.9 * np.square(np.array(distances) - np.mean(distances)).sum())
    assert expected > 1e-3
    moments = gathered(fake, num_groups=NUM_GROUPS)
    assert FrechetReference(reference).standard_error(moments) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(reference, moments) == pytest.approx(
        FrechetReference(gathered(fake, num_groups=1)).distance(reference), rel=1e-9
    )


def test_there_is_no_error_bar_of_too_few_images_or_without_groups() -> None:
    reference = FrechetReference(gathered(rows(150, seed=0), num_groups=1))
    assert reference.standard_error(gathered(rows(19, seed=1), num_groups=NUM_GROUPS)) is None
    assert reference.standard_error(gathered(rows(100, seed=1), num_groups=1)) is None


def test_groups_are_of_equal_size_and_follow_no_order_of_the_images() -> None:
    groups = groups_of(200, NUM_GROUPS)
    np.testing.assert_array_equal(np.bincount(groups), 20)
    for of_a_class in groups.reshape(20, NUM_GROUPS).T:  # every tenth image: classes often come round like that
        assert len(set(of_a_class)) > 5


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    num_features, peaks = 256, []
    for num in (5_000, 20_000):
        features = rows(num, num_features, seed=0)
        tracemalloc.start()
        moments = gathered(features, num_groups=NUM_GROUPS, batch=32)
        assert moments.gaussian(without=0).covariance.shape == (num_features, num_features)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < features.nbytes / 2
