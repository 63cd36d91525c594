"""Held-out images are no copies of training images."""

from __future__ import annotations

import numpy as np
import pytest

from brics_cli.errors import UsageError
from brics_cli.training import holdout
from brics_cli.training.holdout import hold_out_look_alikes, look_alikes


@pytest.fixture
def images() -> np.ndarray:
    """Forty images of nothing in common, (40, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def test_only_look_alikes_share_a_cluster(images: np.ndarray) -> None:
    darker = (images[3] * 0.97).astype(np.uint8)
    mirrored = images[5][:, ::-1]
    clusters = look_alikes(np.concatenate([images, darker[None], mirrored[None]]))

    assert clusters[40] == clusters[3]
    assert clusters[41] == clusters[5]
    assert len(set(clusters.tolist())) == 40


def test_likeness_is_passed_on(images: np.ndarray) -> None:
    """a ~ b and b ~ c put a and c into one cluster, though they do not look alike themselves."""
    chain = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (100, 115, 130)])
    assert len(set(look_alikes(chain).tolist())) == 1
    assert len(set(look_alikes(chain[[0, 2]]).tolist())) == 2


def test_pairs_across_blocks_are_compared(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = np.concatenate([images, images])
    whole = look_alikes(doubled)
    monkeypatch.setattr(holdout, "ROWS_AT_ONCE", 7)
    assert np.array_equal(look_alikes(doubled), whole)
    assert np.array_equal(whole[:40], whole[40:])


def test_whole_clusters_are_held_out(images: np.ndarray) -> None:
    doubled = np.concatenate([images, images])
    held_out = hold_out_look_alikes(doubled, [f"{i:03d}" for i in range(80)], fraction=0.25)

    assert 0 < len(held_out) <= 20
    assert set(held_out % 40) == set(held_out[held_out < 40]) == set(held_out[held_out >= 40] - 40)


def test_the_split_follows_keys_not_order(images: np.ndarray) -> None:
    keys = [f"{i:03d}" for i in range(40)]
    held_out = {keys[i] for i in hold_out_look_alikes(images, keys, fraction=0.2)}
    backwards = hold_out_look_alikes(images[::-1], keys[::-1], fraction=0.2)
    assert {keys[::-1][i] for i in backwards} == held_out


def test_nothing_to_hold_out_is_said(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match="all images look alike"):
        hold_out_look_alikes(images[:1].repeat(9, axis=0), [str(i) for i in range(9)], fraction=0.1)


def test_too_many_images_are_refused(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout, "MAX_IMAGES", 39)
    with pytest.raises(UsageError, match="too many"):
        look_alikes(images)
