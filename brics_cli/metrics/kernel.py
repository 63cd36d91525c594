"""KID: the squared maximum mean discrepancy of two sets of features under a cubic kernel.

Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, equation 4 (unbiased), kernel (x.y / D + 1)³, averaged
over random subsets. N images, D features, M the size of a subset. Float64, seeded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brics_cli.errors import UsageError
from brics_cli.metrics.rows import RowSource

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
# Below this many images on each side the kernel of all pairs is computed once and the subsets are cut from it.
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
    whole = None
    if max(len(real), len(fake)) <= MAX_WHOLE_KERNEL:
        x, y = (_to_device(side.take(np.arange(len(side))), device) for side in (real, fake))
        whole = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    values = []
    for _ in range(num_subsets):
        of_real = generator.choice(len(real), size, replace=False)
        of_fake = generator.choice(len(fake), size, replace=False)
        if whole is not None:
            i, j = (torch.from_numpy(chosen).to(whole[0].device) for chosen in (of_real, of_fake))
            kernels = whole[0][i][:, i], whole[1][j][:, j], whole[2][i][:, j]
        else:
            x, y = _to_device(real.take(of_real), device), _to_device(fake.take(of_fake), device)
            kernels = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        values.append(_unbiased(*kernels))
    deviation = float(np.std(values)) if num_subsets > 1 else None
    return KernelDistance(math.fsum(values) / num_subsets, deviation, num_subsets, size)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(M, D), (M', D) -> (M, M')"""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """Equation 4 from the three kernel matrices (M, M)."""
    m = len(xy)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.sum() / (m * m))


def _to_device(rows: np.ndarray, device: torch.device | str) -> Tensor:
    device = torch.device(device)
    if device.type == "mps":  # no float64 there
        device = torch.device("cpu")
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device, torch.float64)
