"""KID, IS, precision, recall, density and coverage: closed forms, brute force, and the peers on the same features."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from brics_cli.errors import UsageError
from brics_cli.evaluation.inception_score import inception_score
from brics_cli.evaluation.kernel import kernel_distance
from brics_cli.evaluation.manifold import manifold_scores
from brics_cli.evaluation.registry import MODES, PRESETS, REGISTRY, Settings, caveat_of
from brics_cli.evaluation.rows import ArrayRows, SpooledRows

SCORES = ("precision", "recall", "density", "coverage")


def rows(num: int, num_features: int = 24, *, seed: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(num, num_features)) + shift).astype(np.float32)


def test_kid_of_two_points_is_the_kernels_sum() -> None:
    a, b = (ArrayRows(np.tile(np.float32([at, 0, 0, 0]), (10, 1))) for at in (2, 0))
    assert kernel_distance(a, b).value == pytest.approx((4 / 4 + 1) ** 3 + 1 - 2, rel=1e-12)


@pytest.mark.parametrize(("num_real", "num_fake", "size"), [(60, 60, 60), (90, 70, 40)])
def test_kid_equals_torch_fidelitys_on_the_same_subsets(num_real: int, num_fake: int, size: int) -> None:
    real, fake = rows(num_real, seed=0), rows(num_fake, seed=1, shift=0.3)
    ours = kernel_distance(ArrayRows(real), ArrayRows(fake), num_subsets=20, subset_size=size)
    theirs = kid_features_to_metric(
        torch.from_numpy(real.astype(np.float64)),
        torch.from_numpy(fake.astype(np.float64)),
        kid_subsets=20,
        kid_subset_size=size,
        rng_seed=2020,
        verbose=False,
    )
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    if size < num_real:
        assert ours.deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    else:
        assert (ours.num_subsets, ours.deviation) == (1, None)


def test_kid_equals_clean_fids_where_no_choice_is_left() -> None:
    real, fake = rows(50, seed=0), rows(50, seed=1, shift=0.3)
    theirs = cleanfid.kernel_distance(fake.astype(np.float64), real.astype(np.float64), num_subsets=2)
    assert kernel_distance(ArrayRows(real), ArrayRows(fake)).value == pytest.approx(theirs, rel=1e-9)


def test_kid_by_subsets_read_from_disk_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = ArrayRows(rows(90, seed=0)), ArrayRows(rows(70, seed=1))
    whole = kernel_distance(real, fake, num_subsets=5, subset_size=40)
    monkeypatch.setattr("brics_cli.evaluation.kernel.MAX_WHOLE_KERNEL", 0)
    assert kernel_distance(real, fake, num_subsets=5, subset_size=40).value == pytest.approx(whole.value, rel=1e-9)
    with pytest.raises(UsageError, match="KID needs at least 2 images on each side, there are 1 and 70"):
        kernel_distance(ArrayRows(rows(1, seed=0)), fake)


def test_inception_score_closed_forms() -> None:
    assert inception_score(np.zeros((50, 7), np.float32)).value == pytest.approx(1, abs=1e-12)
    one_hot = 1e4 * np.eye(8, dtype=np.float32)[np.arange(80) % 8]
    assert inception_score(one_hot, num_splits=1).value == pytest.approx(8, rel=1e-12)
    single = inception_score(one_hot[:1])
    assert (single.value, single.deviation, single.num_splits) == (pytest.approx(1), None, 1)
    with pytest.raises(UsageError, match="at least 1 fake image"):
        inception_score(one_hot[:0])


@pytest.mark.parametrize("num", [200, 203])
def test_inception_score_equals_torch_fidelitys(num: int) -> None:
    logits = 3 * rows(num, 30, seed=0)
    ours = inception_score(logits)
    theirs = isc_features_to_metric(torch.from_numpy(logits))
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours.deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def brute_force(real: np.ndarray, fake: np.ndarray, *, k: int, closed: bool) -> dict[str, float]:
    """The definitions, one image at a time."""

    def radius(points: np.ndarray, index: int) -> float:
        distances = np.linalg.norm(points - points[index], axis=1)
        return float(np.sort(np.delete(distances, index))[k - 1])

    real_radii = np.array([radius(real, index) for index in range(len(real))])
    fake_radii = np.array([radius(fake, index) for index in range(len(fake))])
    distances = np.linalg.norm(real[:, None] - fake[None], axis=2)  # (N, M)
    inside = np.less_equal if closed else np.less
    return {
        "precision": inside(distances, real_radii[:, None]).any(axis=0).mean(),
        "recall": inside(distances, fake_radii[None]).any(axis=1).mean(),
        "density": (distances < real_radii[:, None]).sum(axis=0).mean() / k,
        "coverage": (distances < real_radii[:, None]).any(axis=1).mean(),
    }


@pytest.mark.parametrize(("k", "closed", "block"), [(3, True, 4096), (5, False, 7), (3, True, 16)])
def test_manifold_scores_by_their_definition(k: int, closed: bool, block: int) -> None:
    real, fake = rows(40, 6, seed=0).astype(np.float64), rows(30, 6, seed=1, shift=0.6).astype(np.float64)
    scores = manifold_scores(
        ArrayRows(real.astype(np.float32)), ArrayRows(fake.astype(np.float32)), k=k, closed=closed, block=block
    )
    expected = brute_force(real.astype(np.float32), fake.astype(np.float32), k=k, closed=closed)
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1
    for name in SCORES:
        assert getattr(scores, name).mean() == pytest.approx(expected[name], abs=1e-12), name


def test_precision_and_recall_equal_torch_fidelitys() -> None:
    real, fake = rows(80, seed=0), rows(60, seed=1, shift=0.2)
    theirs = prc_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=32,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = manifold_scores(ArrayRows(real), ArrayRows(fake), k=3, closed=True)
    assert ours.precision.mean() == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall.mean() == pytest.approx(theirs["recall"], abs=1e-6)


def test_manifold_scores_of_identical_disjoint_and_constant_sets() -> None:
    real = ArrayRows(rows(20, seed=0))
    same = manifold_scores(real, real, k=3, closed=True)
    assert same.precision.mean() == same.recall.mean() == same.coverage.mean() == 1
    far = manifold_scores(real, ArrayRows(rows(20, seed=0, shift=1e3)), k=3, closed=True)
    assert [getattr(far, name).mean() for name in SCORES] == [0, 0, 0, 0]
    constant = ArrayRows(np.full((9, 5), 0.1, np.float32))  # every radius is zero, and only <= reaches
    closed = manifold_scores(constant, constant, k=3, closed=True)
    assert [getattr(closed, name).mean() for name in SCORES] == [1, 1, 0, 0]
    with pytest.raises(UsageError, match="with k = 3 need more than 3 images on each side, there are 20 and 3"):
        manifold_scores(real, ArrayRows(rows(3, seed=0)), k=3, closed=True)


def test_rows_on_disk_come_back_in_the_order_of_their_images() -> None:
    spooled, expected = SpooledRows(24), rows(50, seed=0)
    for positions in ([4, 5, 6], [0, 1, 2, 3], list(range(7, 50))):
        spooled.append(expected[positions], positions)
    np.testing.assert_array_equal(spooled.take(np.array([49, 0, 5])), expected[[49, 0, 5]])
    spooled.close()
    with pytest.raises(ValueError, match="expected"):
        SpooledRows(3).append(expected, list(range(50)))


def test_rows_on_disk_leave_nothing_behind_when_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, numpy as np; from brics_cli.evaluation.rows import SpooledRows\n"
        "rows = SpooledRows(2048); rows.append(np.ones((600, 2048), np.float32), list(range(600)))\n"
        "assert rows.take(np.arange(2)).sum() == 4096; os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_adms_precision_says_which_resize_its_published_figures_have() -> None:
    caveats = {
        (name, mode, preset): caveat_of(REGISTRY[name], Settings(mode=mode, preset=preset))
        for name in SCORES
        for mode in MODES
        for preset in PRESETS
    }
    said = {key for key, caveat in caveats.items() if caveat is not None}
    assert said == {(name, mode, "adm") for name in ("precision", "recall") for mode in ("clean", "legacy-pytorch")}
    assert "--mode legacy-tensorflow" in (caveats["recall", "clean", "adm"] or "")
