"""Mean and covariance of features that arrive in batches, in float64, of everything and without any one group.

N rows, D features, G groups. Kept are G sums of outer products (D, D), whatever N: 0.34 GB at D = 2048, G = 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.floating]

# Rows that wait before they are added to the sums: enough for BLAS to be busy, 8 MiB of 2048 float32 features.
NUM_WAITING = 1024
GROUP_SEED = 2020


@dataclass(frozen=True)
class Gaussian:
    """A mean (D,) and a covariance of `num` images (None: unknown): either whole, (D, D), or as the `centred` rows
    (D, N), N <= D, which it is the product of: its rank is below D."""

    mean: Array
    whole: Array | None
    num: int | None = None
    centred: Array | None = None

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1."""
        if self.whole is not None:
            return self.whole
        assert self.centred is not None
        return self.centred @ self.centred.T

    @property
    def is_full(self) -> bool:
        """Whether the covariance can have full rank."""
        return self.centred is None

    def factor(self) -> Array:
        """F with F Fᵀ = covariance: (D, N) from the rows, else (D, D) by Cholesky or, when singular, eigenvectors."""
        if self.whole is None:
            assert self.centred is not None
            return self.centred
        try:
            return np.asarray(np.linalg.cholesky(self.whole), dtype=np.float64)
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(self.whole)
            return np.asarray(vectors * np.sqrt(values.clip(min=0)))

    def gaussian(self) -> Gaussian:
        return self


class FeatureMoments:
    """Mean and covariance (ddof = 1, as np.cov) of rows that arrive in batches.

    While N <= D the rows themselves are kept: the covariance then has rank below D. Beyond that they are folded into
    sums about the mean of the first ones, which keeps the digits.

    With `num_groups` > 1 every row belongs to a group, and `gaussian(without=group)` is that of all others: the groups
    of a jackknife. Each run of G rows is dealt to the G groups at random (by a fixed seed), so groups are of equal size
    and no order of the images, by class say, makes them differ.
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

    def gaussian(self, *, without: int | None = None) -> Gaussian:
        """The Gaussian of all rows, or of all but those of the group `without`."""
        if not self.is_full:
            rows = self._rows()
            rows = rows if without is None else rows[self._groups(len(rows)) != without]
            mean = np.asarray(rows.mean(axis=0, dtype=np.float64))
            centred = np.asarray((rows - mean).T / np.sqrt(max(len(rows) - 1, 1)))
            return Gaussian(mean, None, len(rows), centred)
        self._fold()
        kept = np.arange(self.num_groups) != (-1 if without is None else without)
        num = int(self._nums[kept].sum())
        offset = self._sums[kept].sum(axis=0) / num  # (D,)
        covariance = np.einsum("g,gij->ij", kept.astype(float), self._products)
        covariance -= num * np.outer(offset, offset)
        covariance /= num - 1
        return Gaussian(self._shift + offset, covariance, num)

    @property
    def mean(self) -> Array:
        """(D,)"""
        return self.gaussian().mean

    @property
    def covariance(self) -> Array:
        """(D, D), divided by N - 1."""
        return self.gaussian().covariance

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
