"""Mean and covariance of features that arrive in batches, in float64, of everything and without any one group.

N rows, D features, G groups. Kept are G sums of outer products (D, D), whatever N: 0.34 GB at D = 2048, G = 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from brics_cli.evaluation.frechet import Gaussian, StoredGaussian

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
        self.is_full = False
        """Whether there are more rows than features, so that the covariance can have full rank."""
        self._waiting: list[Rows] = []
        self._dealt: NDArray[np.int64] = np.empty(0, np.int64)  # the groups of the rows that wait, and of the next few
        self._generator = np.random.default_rng(GROUP_SEED)
        self._nums: NDArray[np.int64] = np.zeros(num_groups, np.int64)
        self._shift, self._sums, self._products = (np.zeros(num_features),) * 3  # set by the first `_fold`

    def update(self, features: Rows) -> None:
        """Add rows (B, D). Raises ValueError for another shape or a row that is not finite."""
        rows = np.array(features, dtype=None if features.dtype == np.float32 else np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.num_features:
            raise ValueError(f"features of shape {rows.shape}, expected (B, {self.num_features})")
        if not np.isfinite(rows).all():
            raise ValueError("features that are not finite")
        self._waiting.append(rows)
        self.num += len(rows)
        if self.num - self._nums.sum() >= NUM_WAITING if self.is_full else self.num > self.num_features:
            self._fold()

    @property
    def mean(self) -> Array:
        """(D,)"""
        return self._gaussian().mean

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1."""
        return self._gaussian().covariance

    def factor(self) -> Array:
        """F with F Fᵀ = covariance: (D, N) from the rows, else (D, D) by Cholesky or, when singular, eigenvectors."""
        return self._gaussian().factor()

    def without(self, group: int) -> Gaussian:
        """The Gaussian of all rows but those of `group`."""
        return self._gaussian(without=group)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `from_state` makes the same moments of, to the last bit; of moments without groups."""
        assert self.num_groups == 1
        if not self.is_full:
            return {"rows": self._rows()}
        self._fold()
        return {"num": self._nums, "shift": self._shift, "sum": self._sums[0], "outer_products": self._products[0]}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]]) -> FeatureMoments:
        """The moments whose `state` this is. Raises KeyError or ValueError for anything else."""
        if "rows" in state:
            moments = cls(state["rows"].shape[1])
            moments.update(state["rows"])
            return moments
        shift, total, products = state["shift"], state["sum"], state["outer_products"]
        if total.shape != shift.shape or products.shape != shift.shape * 2:
            raise ValueError(f"sums of shapes {shift.shape}, {total.shape} and {products.shape}")
        moments = cls(len(shift))
        moments.is_full, moments.num, moments._nums = True, int(state["num"].item()), state["num"]
        moments._shift, moments._sums, moments._products = shift, total[None], products[None]
        return moments

    def _rows(self) -> Rows:
        """(N, D), those that wait."""
        return np.concatenate(self._waiting) if self._waiting else np.empty((0, self.num_features), np.float32)

    def _groups(self, num: int) -> NDArray[np.int64]:
        """The group of each of the `num` rows that wait."""
        hands = [self._generator.permutation(self.num_groups) for _ in range(len(self._dealt), num, self.num_groups)]
        self._dealt = np.concatenate([self._dealt, *hands])
        return self._dealt[:num]

    def _fold(self) -> None:
        """Add the rows that wait to the sums of their groups."""
        if not self._waiting:
            return
        rows = self._rows()
        groups = self._groups(len(rows))
        if not self.is_full:
            self.is_full, self._shift = True, rows.mean(axis=0, dtype=np.float64)
            self._sums = np.zeros((self.num_groups, self.num_features))
            self._products = np.zeros((self.num_groups, self.num_features, self.num_features))
        self._dealt, self._waiting = self._dealt[len(rows) :], []
        for group in range(self.num_groups):
            centred = rows[groups == group] - self._shift  # (n, D) float64
            self._nums[group] += len(centred)
            self._sums[group] += centred.sum(axis=0)
            self._products[group] += centred.T @ centred

    def _gaussian(self, *, without: int | None = None) -> Gaussian:
        if not self.is_full:
            rows = self._rows()
            return RowGaussian(rows if without is None else rows[self._groups(len(rows)) != without])
        self._fold()
        kept = np.arange(self.num_groups) != (-1 if without is None else without)
        num = int(self._nums[kept].sum())
        offset = self._sums[kept].sum(axis=0) / num  # (D,)
        covariance = np.einsum("g,gij->ij", kept.astype(float), self._products)
        covariance -= num * np.outer(offset, offset)
        covariance /= num - 1
        return StoredGaussian(self._shift + offset, covariance, num=num)
