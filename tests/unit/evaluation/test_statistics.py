"""Saved statistics: who made them is told from arrays and names, and what is no covariance is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.evaluation.statistics import NUM_FEATURES, check_network, read_statistics

TENSORFLOW = "inception-legacy-tensorflow"


def gaussian(num_features: int = 2048) -> dict[str, np.ndarray]:
    return {"mu": np.full(num_features, 0.4), "sigma": np.eye(num_features)}


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


MAKERS = [
    ("any.npz", 2048, {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, TENSORFLOW, None),
    ("ffhq_clean_trainval70k_256.npz", 2048, {"mu_s": np.zeros(3)}, TENSORFLOW, None),  # arrays say more than a name
    ("ffhq_clean_trainval70k_256.npz", 2048, {}, "inception-clean", 256),
    ("lsun_church_clean_trainfull_256.npz", 2048, {}, "inception-clean", 256),
    ("CIFAR10_clean_train_32.npz", 2048, {}, "inception-clean", 32),
    ("mine_clean_custom_na.npz", 2048, {}, "inception-clean", None),
    ("ffhq_legacy_tensorflow_trainval_1024.npz", 2048, {}, TENSORFLOW, 1024),
    ("ffhq_legacy_pytorch_trainval_1024.npz", 2048, {}, "inception-legacy-pytorch", 1024),
    ("ffhq_clean_clip_vit_b_32_trainval70k_256.npz", 512, {}, "clip", 256),
    ("ffhq_clean_clip_vit_b_32_trainval70k_256.npz", 2048, {}, None, 256),
    ("ffhq_clean_trainval70k_256.npz", 512, {}, None, 256),
    ("cifar10-32x32.npz", 2048, {}, TENSORFLOW, 32),
    ("imagenet-64x64.npz", 2048, {}, TENSORFLOW, 64),
    ("imagenet-64x32.npz", 2048, {}, None, None),
    ("adm_in256_stats.npz", 2048, {}, TENSORFLOW, 256),
    ("stats.npz", 2048, {}, None, None),
    ("stats.npz", 512, {}, None, None),
    ("stats.npz", 1024, {}, None, None),
    ("fid_stats_cifar10_train.npz", 2048, {}, None, None),
    ("clean.npz", 2048, {}, None, None),
]


@pytest.mark.parametrize(("name", "num_features", "more", "network", "size"), MAKERS)
def test_makers_are_known_by_arrays_and_names(name, num_features, more, network, size, tmp_path):
    found = read_statistics(saved(tmp_path / name, {**gaussian(num_features), **more}))
    assert (found.network, found.image_size) == (network, size)
    assert ("an unknown network" in found.describe()) == (network is None)
    for key, width in NUM_FEATURES.items():
        if network not in (None, key):
            with pytest.raises(ArtefactError, match=f"of {network} .*measured is {key}.*Use --m"):
                found.check_made_by(key)
        elif width != num_features:
            with pytest.raises(ArtefactError, match=f"{num_features:,} features, and {key} has {width:,}"):
                found.check_made_by(key)
        else:
            found.check_made_by(key)


@pytest.mark.parametrize("network", NUM_FEATURES)
def test_what_the_user_says_stands_unless_the_arrays_say_otherwise(network, tmp_path):
    path = saved(tmp_path / "a_clean_train_32.npz", gaussian(NUM_FEATURES[network]))
    found = read_statistics(path, network=network)
    assert found.network == network
    path = saved(tmp_path / "adm.npz", {**gaussian(8), "mu_s": np.zeros(3)})
    if network == TENSORFLOW:
        assert read_statistics(path, network=network).network == network
    else:
        with pytest.raises(UsageError, match=f"--statistics-by {network}: .*of {TENSORFLOW}"):
            read_statistics(path, network=network)


def test_a_network_that_has_none(tmp_path):
    with pytest.raises(UsageError, match="no network 'inception_clean'; did you mean 'inception-clean'"):
        check_network("inception_clean")


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6))).Q
BAD = [
    ({"mu": np.zeros(6), "sigma": -np.eye(6)}, "negative variances"),
    ({"mu": np.zeros(6), "sigma": ROTATION @ np.diag([1, 1, 1, 1, 1, -0.01]) @ ROTATION.T}, "negative variances"),
    ({"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))}, "not symmetric"),
    ({"mu": np.full(6, np.inf), "sigma": np.eye(6)}, "not finite"),
    ({"mu": np.zeros(6), "sigma": np.full((6, 6), np.nan)}, "not finite"),
    ({"mu": np.zeros((6, 1)), "sigma": np.eye(6)}, r"mu \(6, 1\)"),
    ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \(0,\)"),
    ({"mu": np.zeros(6), "sigma": np.eye(5)}, r"sigma \(5, 5\)"),
    ({"mu": np.float64(1), "sigma": np.eye(6)}, r"mu \(\)"),
    ({"mu": np.zeros(6, complex), "sigma": np.eye(6)}, "no real numbers"),
    ({"mu": np.zeros(6), "sigma": np.eye(6).astype(str)}, "no real numbers"),
    ({"mu": np.zeros(6)}, r"has no sigma \(it has mu\)"),
    ({"feats": np.zeros((9, 6))}, "clean-fid's features for KID"),
    ({"reps": np.zeros((9, 6))}, "dgm-eval's features of each image"),
    ({"x": np.zeros((9, 6))}, "has no mu and no sigma"),
]


@pytest.mark.parametrize(("arrays", "line"), BAD)
def test_what_is_no_gaussian_is_refused(arrays, line, tmp_path):
    with pytest.raises(ArtefactError, match=line):
        read_statistics(saved(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rounded_and_rank_deficient_covariances_are_none_the_less(dtype, rank, tmp_path):
    factor = np.random.default_rng(rank).normal(size=(64, rank)) * 3
    covariance = factor @ factor.T
    covariance = (covariance if dtype != np.int64 else np.eye(64)).astype(dtype)
    assert read_statistics(saved(tmp_path / "a.npz", {"mu": np.zeros(64, dtype), "sigma": covariance})).network is None


def test_zeros_are_a_covariance(tmp_path):
    read_statistics(saved(tmp_path / "a.npz", {"mu": np.ones(4), "sigma": np.zeros((4, 4))}))


class Touch:
    """A pickle that would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["ffhq.pkl", "edm2.PKL", "cache.pt", "cache.pth", "a.npz", "b.npz"])
def test_pickles_are_never_opened(name, tmp_path):
    path, owned = tmp_path / name, tmp_path / "owned"
    if name == "b.npz":
        np.savez(path, mu=np.array([Touch(owned)], object), sigma=np.eye(1))
    else:
        path.write_bytes(pickle.dumps(Touch(owned)))
    with pytest.raises(ArtefactError, match=r"pickle|no zip"):
        read_statistics(path)
    assert not owned.exists()
