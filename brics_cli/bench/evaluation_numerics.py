"""The rows of `brics bench eval` that need no images: the Fréchet step and the memory of gathering features."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from brics_cli.evaluation.frechet import StoredGaussian, frechet_distance
from brics_cli.evaluation.jackknife import NUM_GROUPS
from brics_cli.evaluation.moments import FeatureMoments

BATCH_SIZE = 32
NUM_FEATURES = 2048


@dataclass(frozen=True)
class Row:
    """One measurement: ours, what it is measured against, and the ratio that must hold."""

    what: str
    unit: str
    ours: float
    beside: float
    beside_name: str
    ratio: float
    bar: str


def frechet_step() -> list[Row]:
    """Ours and scipy's matrix root on the same two covariances of full rank."""
    import scipy.linalg

    generator = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        factor = generator.normal(size=(NUM_FEATURES, NUM_FEATURES)) / np.sqrt(NUM_FEATURES)
        covariance = factor @ factor.T + 0.01 * np.eye(NUM_FEATURES)
        sides.append(StoredGaussian(generator.normal(size=NUM_FEATURES), covariance, num=5 * NUM_FEATURES))
    start = time.perf_counter()
    frechet_distance(*sides)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    scipy.linalg.sqrtm(sides[0].covariance @ sides[1].covariance)
    theirs = time.perf_counter() - start
    return [Row("Fréchet step, 2,048 features", "s", ours, theirs, "scipy's sqrtm", theirs / ours, ">= 5x")]


def gathering_memory(num_images: int) -> list[Row]:
    """Peak memory of a FID's features, above what was there: gathered as moments, for distance and error bar, against
    storing them for numpy's mean and covariance."""

    def batches() -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        for start in range(0, num_images, BATCH_SIZE):
            yield generator.random((min(BATCH_SIZE, num_images - start), NUM_FEATURES), dtype=np.float32)

    def ours() -> None:
        moments = FeatureMoments(NUM_FEATURES, num_groups=NUM_GROUPS)
        for batch in batches():
            moments.update(batch)
        _ = moments.mean, moments.covariance, moments.without(0).covariance

    def theirs() -> None:
        rows = np.concatenate(list(batches()))
        _ = np.mean(rows, axis=0), np.cov(rows, rowvar=False)

    peaks = []
    for work in (ours, theirs):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    what = f"peak memory of the moments of {num_images:,} images"
    return [Row(what, "MiB", peaks[0], peaks[1], "stored features", peaks[1] / peaks[0], ">= 2.5x")]
