"""Standard errors: of a mean, and by the delete-a-group jackknife (Kott 2001):

s.e.² = (G - 1) / G * sum (d_g - mean d)², d_g without group g of G.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from brics_cli.evaluation.moments import Array


def jackknife(sums: Array, estimate: Callable[[Array], float]) -> tuple[float, float]:
    """What `estimate` makes of the sum of `sums` (G, ...), and its standard error by leaving out each group in turn."""
    total = sums.sum(axis=0)
    return estimate(total), standard_error([estimate(total - group) for group in sums])


def standard_error(without: list[float]) -> float:
    """Of an estimate whose values without each of G groups are `without`."""
    return float(np.sqrt((len(without) - 1) * np.var(without)))


def error_of_mean(values: Array) -> float:
    """Of independent `values` (N,); 0 of a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
