"""Mean and covariance of features that arrive in batches, in float64, of everything and without any one group.

N rows, D features, G groups. A D x D sum of outer products is kept as its upper triangle (LAPACK's rectangular full
packed form), one per group: G * D * (D + 1) / 2 numbers whatever N, and BLAS adds to it in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dsfrk, dtfttr

from brics_cli.metrics.frechet import Gaussian, StoredGaussian

Array = NDArray[np.float64]
Rows = NDArray[np.floating]

# Rows that wait before they are added to the sums: enough for BLAS to be busy, 8 MiB of 2048 float32 features.
NUM_WAITING = 1024
GROUP_SEED = 2020


class RowGaussian:
    """The Gaussian of a few rows (N, D), N <= D: its covariance has rank below D, its factor is the centred rows."""

    is_full = False

    def __init__(self, rows: Rows) -> None:
        self.num = len(rows)
        self._rows = rows

    @property
    def mean(self) -> Array:
        """(D,)"""
        return np.asarray(self._rows.mean(axis=0, dtype=np.float64))

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1."""
        factor = self.factor()
        return factor @ factor.T

    def factor(self) -> Array:
        """F (D, N) with F Fᵀ = covariance."""
        return np.asarray((self._rows - self.mean).T / np.sqrt(self.num - 1))


class FeatureMoments:
    """Mean and covariance (ddof = 1, as np.cov) of rows that arrive in batches; a `Gaussian`.

    While N <= D the rows themselves are kept: the covariance then has rank below D. Beyond that they are folded into
    sums about the mean of the first ones, which keeps the digits.

    With `num_groups` > 1 every row belongs to a group, and `without` gives the moments of all others: the groups of a
    jackknife. Each run of G rows is dealt to the G groups at random (by a fixed seed), so groups are of equal size and
    no order of the images, by class say, makes them differ.
    """

    def __init__(self, num_features: int, *, num_groups: int = 1) -> None:
        self.num_features, self.num_groups = num_features, num_groups
        self.num = 0
        self._waiting: list[Rows] = []
        self._num_waiting = 0
        self._is_folded = False
        self._shift: Array = np.zeros(num_features)
        self._nums: NDArray[np.int64] = np.zeros(num_groups, np.int64)
        self._sums: Array = np.zeros((num_groups, num_features))
        self._products: list[Array] = []
        self._generator = np.random.default_rng(GROUP_SEED)
        self._dealt: NDArray[np.int64] = np.empty(0, np.int64)
        """The groups of the rows that wait, and of the next few."""

    def update(self, features: Rows) -> None:
        """Add rows (B, D). Raises ValueError for another shape or a row that is not finite."""
        rows = np.array(features, dtype=None if features.dtype == np.float32 else np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.num_features:
            raise ValueError(f"features of shape {rows.shape}, expected (B, {self.num_features})")
        if not np.isfinite(rows).all():
            raise ValueError("features that are not finite")
        self._waiting.append(rows)
        self._num_waiting += len(rows)
        self.num += len(rows)
        if self._num_waiting >= NUM_WAITING if self._is_folded else self.num > self.num_features:
            self._fold()

    @property
    def mean(self) -> Array:
        """(D,)"""
        if not self._is_folded:
            return RowGaussian(self._rows()).mean
        self._fold()
        return self._shift + self._sums.sum(axis=0) / self.num

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1."""
        return self._all().covariance

    @property
    def is_full(self) -> bool:
        """Whether there are more rows than features, so that the covariance can have full rank."""
        return self._is_folded

    def factor(self) -> Array:
        """F with F Fᵀ = covariance: (D, N) from the rows, else (D, D) by Cholesky or, when singular, eigenvectors."""
        return self._all().factor()

    def without(self, group: int) -> Gaussian:
        """The Gaussian of all rows but those of `group`."""
        if not self._is_folded:
            return RowGaussian(self._rows()[self._groups() != group])
        self._fold()
        others = [index for index in range(self.num_groups) if index != group]
        return self._gaussian(others)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `from_state` makes the same moments of, to the last bit; of moments without groups."""
        assert self.num_groups == 1
        if not self._is_folded:
            return {"rows": self._rows()}
        self._fold()
        return {
            "num": self._nums[:1],
            "shift": self._shift,
            "sum": self._sums[0],
            "products": self._products[0],
        }

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]]) -> FeatureMoments:
        """The moments whose `state` this is. Raises KeyError or ValueError for anything else."""
        if "rows" in state:
            moments = cls(state["rows"].shape[1])
            moments.update(state["rows"])
            return moments
        shift, total, products = state["shift"], state["sum"], state["products"]
        num_features = len(shift)
        if total.shape != shift.shape or products.shape != (_packed_size(num_features),):
            raise ValueError(f"sums of shapes {shift.shape}, {total.shape} and {products.shape}")
        moments = cls(num_features)
        moments._is_folded, moments._shift = True, shift
        moments.num = int(state["num"].item())
        moments._nums[0], moments._sums[0], moments._products = moments.num, total, [products]
        return moments

    def _rows(self) -> Rows:
        """(N, D), while they are kept."""
        return np.concatenate(self._waiting) if self._waiting else np.empty((0, self.num_features), np.float32)

    def _groups(self) -> NDArray[np.int64]:
        """The group of every row that waits."""
        missing = self._num_waiting - len(self._dealt)
        hands = [self._generator.permutation(self.num_groups) for _ in range(-(-missing // self.num_groups))]
        self._dealt = np.concatenate([self._dealt, *hands])
        return self._dealt[: self._num_waiting]

    def _fold(self) -> None:
        """Add the rows that wait to the sums of their groups."""
        if not self._waiting:
            return
        rows, groups = self._rows(), self._groups()
        if not self._is_folded:
            self._is_folded, self._shift = True, rows.mean(axis=0, dtype=np.float64)
            self._products = [np.zeros(_packed_size(self.num_features)) for _ in range(self.num_groups)]
        self._dealt = self._dealt[self._num_waiting :]
        self._waiting, self._num_waiting = [], 0
        for group in range(self.num_groups):
            centred = rows[groups == group] - self._shift  # (n, D) float64
            if len(centred):
                self._nums[group] += len(centred)
                self._sums[group] += centred.sum(axis=0)
                self._products[group] = _add(self._products[group], centred)

    def _all(self) -> Gaussian:
        if not self._is_folded:
            return RowGaussian(self._rows())
        self._fold()
        return self._gaussian(list(range(self.num_groups)))

    def _gaussian(self, groups: list[int]) -> StoredGaussian:
        """The Gaussian of the rows of `groups`, from their sums."""
        num = int(self._nums[groups].sum())
        offset = self._sums[groups].sum(axis=0) / num  # (D,)
        products = self._products[groups[0]].copy()
        for group in groups[1:]:
            products += self._products[group]
        products = _add(products, offset[None], weight=-float(num))
        products /= num - 1
        return StoredGaussian(self._shift + offset, _unpacked(products, self.num_features), num=num)


def _packed_size(num_features: int) -> int:
    return num_features * (num_features + 1) // 2


def _add(packed: Array, rows: Array, *, weight: float = 1.0) -> Array:
    """`packed` plus `weight` times the sum of outer products of `rows` (n, D), in place where LAPACK can."""
    num, num_features = rows.shape
    return np.asarray(dsfrk(num_features, num, weight, rows.T, 1.0, packed, overwrite_c=1))


def _unpacked(packed: Array, num_features: int) -> Array:
    """The symmetric (D, D) matrix of a packed upper triangle."""
    full, _ = dtfttr(num_features, packed)
    for row in range(num_features):  # in place: a transposed copy would be a second matrix
        full[row + 1 :, row] = full[row, row + 1 :]
    return np.asarray(full)
