"""KID: the squared maximum mean discrepancy of two sets of features under a cubic kernel.

Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, equation 4 (unbiased), kernel (x.y / D + 1)³, averaged
over random subsets. N images, D features, M the size of a subset. Float64, seeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import Needs, Score, SetFamily, Side, on_device
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.evaluation.rows import RowSource

Indices = NDArray[np.int64]

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
# Below this many images on each side the kernel of all pairs is computed once and serves every subset.
MAX_WHOLE_KERNEL = 2500


@dataclass(frozen=True)
class KernelDistance:
    """`value`: the mean over subsets; `deviation`: their standard deviation, None when there is only one subset."""

    value: float
    deviation: float | None
    num_subsets: int
    subset_size: int


def kernel_distance(
    real: RowSource,
    fake: RowSource,
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 2020,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """KID of two sets of rows (N, D); may be slightly negative, as an unbiased estimate of zero must be.

    A set smaller than `subset_size` makes the subsets that small; where no choice is left (both sets are that
    small) one subset says all. Raises UsageError when a set has fewer than two images.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise UsageError(f"KID needs at least 2 images on each side, there are {len(real)} and {len(fake)}")
    if size == len(real) == len(fake):
        num_subsets = 1
    generator = np.random.RandomState(seed)
    subsets = [
        (generator.choice(len(real), size, replace=False), generator.choice(len(fake), size, replace=False))
        for _ in range(num_subsets)
    ]
    if max(len(real), len(fake)) <= MAX_WHOLE_KERNEL:
        values = _of_whole_kernels(real, fake, subsets, device=device)
    else:
        values = []
        for of_real, of_fake in subsets:
            x, y = on_device(real.take(of_real), device), on_device(fake.take(of_fake), device)
            values.append(_unbiased(_kernel(x, x), _kernel(y, y), _kernel(x, y)))
    deviation = float(np.std(values)) if num_subsets > 1 else None
    return KernelDistance(math.fsum(values) / num_subsets, deviation, num_subsets, size)


def _of_whole_kernels(
    real: RowSource, fake: RowSource, subsets: Sequence[tuple[Indices, Indices]], *, device: torch.device | str
) -> list[float]:
    """Equation 4 of every subset, from the kernels of all pairs: a subset's sum is that of a 0/1 vector's form."""
    x, y = (on_device(side.take(np.arange(len(side))), device) for side in (real, fake))
    in_real, in_fake = x.new_zeros(len(subsets), len(x)), y.new_zeros(len(subsets), len(y))  # (S, N), (S, N')
    for number, (of_real, of_fake) in enumerate(subsets):
        in_real[number, torch.from_numpy(of_real)] = 1
        in_fake[number, torch.from_numpy(of_fake)] = 1
    m = len(subsets[0][0])
    within = torch.zeros(len(subsets), dtype=x.dtype, device=x.device)
    for chosen, rows in ((in_real, x), (in_fake, y)):
        kernel = _kernel(rows, rows)
        within += ((chosen @ kernel) * chosen).sum(dim=1) - chosen @ kernel.diagonal()
    across = ((in_real @ _kernel(x, y)) * in_fake).sum(dim=1)
    values: list[float] = (within / (m * (m - 1)) - 2 * across / (m * m)).tolist()
    return values


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(M, D), (M', D) -> (M, M')"""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """Equation 4 from the three kernel matrices (M, M)."""
    m = len(xy)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.sum() / (m * m))


class Kernel(SetFamily):
    """KID."""

    @classmethod
    def min_images(cls, settings: Settings) -> int:
        return 2

    @classmethod
    def needs(cls, side: Side) -> Needs:
        return Needs(rows=True)

    def result(self, metric: Metric) -> Score:
        real, fake = self.rows("real"), self.rows("fake")
        found = kernel_distance(real, fake, device=self.context.device)
        notes, kind = [], None
        if found.deviation is not None:
            kind = f"standard deviation over {found.num_subsets} subsets of {found.subset_size:,}"
        if found.num_subsets == 1:
            notes.append(f"both sets are one subset of {found.subset_size:,}, so there is no deviation over subsets")
        elif found.subset_size < SUBSET_SIZE:
            notes.append(
                f"subsets of {found.subset_size:,} images, as many as the smaller set has: compare at equal N only"
            )
        if found.value < 0:
            notes.append("below zero, as an unbiased estimate of zero may be")
        return Score(found.value, found.deviation, kind, "; ".join(notes) or None, len(real), len(fake))
