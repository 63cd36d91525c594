"""The standard error of a Fréchet distance, by leaving out one group of the fake images at a time.

Delete-a-group jackknife (Kott 2001): s.e.² = (G - 1) / G * sum (d_g - mean d)², d_g the distance without group g. The
real side is held fixed: it is the reference, and often only its mean and covariance are known. N images, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brics_cli.metrics.frechet import FrechetReference, Gaussian, StoredGaussian
from brics_cli.metrics.rows import RowSource

NUM_GROUPS = 10

Array = NDArray[np.float64]


def frechet_standard_error(real: Gaussian, fake: RowSource, *, num_groups: int = NUM_GROUPS) -> float | None:
    """The standard error over draws of the fake images (N, D); None below two images a group.

    Image i is in group i modulo G. Holds three D² matrices, whatever N.
    """
    if len(fake) < 2 * num_groups:
        return None
    reference = FrechetReference(real)
    groups = [np.arange(group, len(fake), num_groups) for group in range(num_groups)]
    if len(fake) - len(groups[0]) <= fake.num_features:
        distances = _from_rows(reference, fake, groups)
    else:
        distances = _from_sums(reference, fake, groups)
    deviation = np.square(np.array(distances) - np.mean(distances)).sum()
    return float(np.sqrt((num_groups - 1) / num_groups * deviation))


def _from_rows(reference: FrechetReference, fake: RowSource, groups: list[NDArray[np.int64]]) -> list[float]:
    """With fewer images than features the rows are the cheaper factor."""
    rows = fake.take(np.arange(len(fake))).astype(np.float64)  # (N, D)
    distances = []
    for group in groups:
        kept = np.delete(rows, group, axis=0)
        distances.append(reference.distance(_RowGaussian(kept)))
    return distances


class _RowGaussian:
    """The Gaussian of a few rows (N, D), N <= D."""

    is_full = False

    def __init__(self, rows: Array) -> None:
        self.num = len(rows)
        self.mean = rows.mean(axis=0)
        self._rows = rows

    @property
    def covariance(self) -> Array:
        factor = self.factor()
        return factor @ factor.T

    def factor(self) -> Array:
        return np.asarray((self._rows - self.mean).T / np.sqrt(self.num - 1))


def _from_sums(reference: FrechetReference, fake: RowSource, groups: list[NDArray[np.int64]]) -> list[float]:
    """The sums of all rows, then those of each group taken away."""
    shift = fake.take(groups[0]).mean(axis=0, dtype=np.float64)
    total_sum, total = np.zeros(fake.num_features), np.zeros((fake.num_features, fake.num_features))
    for group in groups:
        group_sum, products = _sums(fake, group, shift)
        total_sum += group_sum
        total += products
    distances = []
    for group in groups:
        group_sum, products = _sums(fake, group, shift)
        num = len(fake) - len(group)
        offset = (total_sum - group_sum) / num  # (D,)
        covariance = (total - products - num * np.outer(offset, offset)) / (num - 1)
        distances.append(reference.distance(StoredGaussian(shift + offset, covariance, num=num)))
    return distances


def _sums(rows: RowSource, indices: NDArray[np.int64], shift: Array, *, block: int = 4096) -> tuple[Array, Array]:
    """Sum (D,) and sum of outer products (D, D) of the rows `indices` about `shift`."""
    total, products = np.zeros(rows.num_features), np.zeros((rows.num_features, rows.num_features))
    for start in range(0, len(indices), block):
        centred = rows.take(indices[start : start + block]) - shift  # (b, D) float64
        total += centred.sum(axis=0)
        products += centred.T @ centred
    return total, products
