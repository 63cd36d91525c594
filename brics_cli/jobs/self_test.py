"""`brics eval --self-test`: does this machine compute the published numbers? Three steps, each said with its figures.

1. Arithmetic: distances that are known in closed form. 2. With verified weights: features and FID of bundled
photographs beside clean-fid's own code on the same file. 3. With clean-fid's published statistics of CIFAR-10 and the
50,000 images they were made of: their FID must be zero.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer

from brics_cli.errors import UsageError
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.inception_score import inception_score
from brics_cli.evaluation.kernel import kernel_distance
from brics_cli.evaluation.manifold import manifold_scores
from brics_cli.evaluation.moments import FeatureMoments, Gaussian
from brics_cli.evaluation.rows import ArrayRows
from brics_cli.images.photographs import photograph_crops
from brics_cli.jobs.evaluate import evaluate
from brics_cli.networks.weights import find
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.reporting import Reporter, SilentReporter

STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_train_32.npz"
NUM_CIFAR10 = 50_000
# The same images through the same network: what is left is float32 rounding on another machine.
PUBLISHED_TOLERANCE = 0.01
NUM_CROPS = 32


@dataclass(frozen=True)
class Check:
    """One line of the self-test. `passed` is None when it could not be run, and `found` says why."""

    name: str
    passed: bool | None
    expected: str
    found: str


def self_test(
    *, statistics: Path | None = None, images: str | Path | None = None, device: str = "auto", reporter: Reporter | None
) -> list[Check]:
    """Run every check that can be run here. `statistics`, `images`: clean-fid's file of CIFAR-10 and its images.

    Raises UsageError when only one of the two is given.
    """
    reporter = reporter or SilentReporter()
    if (statistics is None) != (images is None):
        raise UsageError("--self-test takes both --real STATISTICS.npz and --fake IMAGES, or neither")
    checks = _closed_forms()
    checks += _beside_clean_fid(resolve_device(device))
    checks.append(_published(statistics, images, device=device, reporter=reporter))
    return checks


def _closed_forms() -> list[Check]:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(400, 64)).astype(np.float32)
    offset = np.linspace(-1, 1, 64)
    moments, shifted = FeatureMoments(64), FeatureMoments(64)
    moments.update(rows)
    shifted.update(rows.astype(np.float64) + offset)
    scaled = Gaussian(1.5 * moments.mean, 2.25 * moments.covariance)
    of_scaled = 0.25 * (moments.mean @ moments.mean + np.trace(moments.covariance))
    one_hot = 1e4 * np.eye(10, dtype=np.float32)[np.arange(1000) % 10]
    near, far = ArrayRows(rows), ArrayRows(rows + 1e3)
    points = [ArrayRows(np.full((10, 4), [at, 0, 0, 0], np.float32)) for at in (2, 0)]
    apart = manifold_scores(near, far, k=3, closed=True)
    cases: list[tuple[str, Callable[[], float], float, float]] = [
        ("Fréchet of a set with itself", lambda: frechet_distance(moments, moments), 0.0, 1e-9),
        ("Fréchet of a shift by c is |c|²", lambda: frechet_distance(moments, shifted), float(offset @ offset), 1e-9),
        ("Fréchet of 1.5 X is 0.25 (|m|² + tr S)", lambda: frechet_distance(moments, scaled), of_scaled, 1e-9),
        ("IS of balanced one-hot over 10", lambda: inception_score(one_hot, num_splits=1).value, 10.0, 1e-9),
        ("IS of uniform", lambda: inception_score(np.zeros((100, 10), np.float32)).value, 1.0, 1e-12),
        ("KID of two points, k(a,a) + k(b,b) - 2 k(a,b)", lambda: kernel_distance(*points).value, 7.0, 1e-12),
        ("Precision of disjoint sets", lambda: float(apart.precision.mean()), 0.0, 0.0),
    ]
    checks = []
    for name, compute, expected, tolerance in cases:
        value = compute()
        passed = bool(abs(value - expected) <= tolerance * max(1.0, abs(expected)))
        checks.append(Check(name, passed, f"{expected:.6g}", f"{value:.6g}"))
    return checks


def _beside_clean_fid(device: torch.device) -> list[Check]:
    name = "FID of photographs, ours and clean-fid's code"
    weights = find("inception")
    if weights is None:
        return [Check(name, None, "equal", "not run: brics weights fetch inception")]
    from brics_cli.networks.inception import load_inception

    crops = [crop.pixels for crop in photograph_crops()][: 4 * NUM_CROPS : 2]
    network = load_inception(weights.path, device=device)
    resize = build_resizer("clean")
    batch = torch.from_numpy(np.stack([resize(crop) for crop in crops])).permute(0, 3, 1, 2).to(device)
    with torch.inference_mode():
        theirs = network.network(batch).float().cpu().numpy()
    with ThreadPoolExecutor(2) as pool:
        ours = network.features(crops, pool=pool)
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    checks = [Check("features of photographs against clean-fid's", difference < 1e-4, "< 0.0001", f"{difference:.2g}")]
    spread = float(theirs.std(axis=0).mean() / np.abs(theirs).mean())
    checks.append(Check("features differ between photographs", spread > 0.01, "> 0.01", f"{spread:.3g}"))
    distances = []
    for rows in (ours, theirs):
        halves = [FeatureMoments(rows.shape[1]) for _ in range(2)]
        for half, part in zip(halves, np.array_split(rows, 2), strict=True):
            half.update(part)
        distances.append(frechet_distance(*halves))
    passed = abs(distances[0] - distances[1]) <= 1e-4 * distances[1]
    return [*checks, Check(name, passed, f"{distances[1]:.6g}", f"{distances[0]:.6g}")]


def _published(statistics: Path | None, images: str | Path | None, *, device: str, reporter: Reporter) -> Check:
    name = "FID of CIFAR-10 against clean-fid's published statistics of it"
    expected = f"0, at most {PUBLISHED_TOLERANCE}"
    if statistics is None or images is None:
        how = (
            f"curl -LO {STATISTICS_URL}; then brics eval --self-test --real {Path(STATISTICS_URL).name} --fake CIFAR10"
        )
        return Check(name, None, expected, f"not run: {how} (a folder of its 50,000 training images as PNG)")
    report = evaluate(["fid"], real=statistics, fake=images, device=device, reporter=reporter)
    result = report.results[0]
    found = f"{result.value:.6g} with {result.num_fake or 0:,} images"
    return Check(name, result.value <= PUBLISHED_TOLERANCE and result.num_fake == NUM_CIFAR10, expected, found)
