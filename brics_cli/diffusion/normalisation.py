"""What codes are made into before they are diffused, and the way back: `diffusion.normalise`.

`store` and `none` are x = (2z - 1 - mean) / std. `probit` makes the marginal distributions Gaussian:

x = probit(F_c(z)), F_c the distribution function of channel c over the store, from the histogram that every store
keeps: the inverse transform of statistics (quantile normalisation). At the K = 256 levels z = k / 255 F_c is what is
below plus half of what is there (the mid-distribution function): it is in (0, 1) at both ends, so x is finite, and
codes on few levels (`fsq`) meet their neighbours in the middle. Between levels x is linear in z. What is outside of the
first and the last level comes back as 0 or 1. C channels, codes (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from brics_cli.config.names import CodeKind, Normalise
from brics_cli.errors import UsageError

LEAST_STD = 1 / 255
"""A channel that never varies has std 0: it is divided by one uint8 step of a code instead."""
NUM_LEVELS = 256
"""Of the histogram in a store."""
UNSEEN = 1 / NUM_LEVELS
"""What a level counts beside the codes that are there: F_c increases everywhere, so that it has an inverse."""
LEAST_STEP = 1e-6


class Normalisation(NamedTuple):
    """Per channel: mean and std (C,) of 2z - 1, and of `probit` x (C, K) at the levels of the histogram."""

    mean: list[float]
    std: list[float]
    levels: list[list[float]] | None


def normalisation(
    kind: Normalise,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    histogram: Sequence[Sequence[int]] | None,
    code_kind: CodeKind,
) -> Normalisation:
    """That of codes with `mean` and `std` (C,), counted in `histogram` (C, K), which `probit` alone needs.

    Raises UsageError for `probit` of codes that are not in [0, 1].
    """
    if kind == "store":
        return Normalisation([2 * float(m) - 1 for m in mean], [max(2 * float(s), LEAST_STD) for s in std], None)
    levels = None
    if kind == "probit":
        if code_kind != "bounded":
            raise UsageError(
                "normalise probit is for codes in [0, 1], and these can be any number", next="Take normalise store."
            )
        assert histogram is not None
        levels = probit_levels(histogram)
    return Normalisation([0.0] * len(mean), [1.0] * len(mean), levels)


def to_x(codes: Tensor, mean: Tensor, std: Tensor, levels: Tensor | None) -> Tensor:
    """Codes (B, C, h, w) -> x; `mean` and `std` (C, 1, 1), `levels` (C, K) or None."""
    return (2 * codes - 1 - mean) / std if levels is None else codes_to_x(codes, levels)


def probit_levels(histogram: Sequence[Sequence[int]]) -> list[list[float]]:
    """x (C, 256) at the levels 0, 1/255, ..., 1 of each channel, increasing, by the counts `histogram` (C, 256)."""
    counts = np.asarray(histogram, np.float64) + UNSEEN  # (C, K)
    below = counts.cumsum(axis=1) - counts / 2
    levels = ndtri(below / counts.sum(axis=1, keepdims=True))
    # levels that nearly nothing lies between would be the same float32
    levels += np.arange(NUM_LEVELS) * LEAST_STEP
    return levels.astype(np.float32).tolist()


def codes_to_x(codes: Tensor, levels: Tensor) -> Tensor:
    """Codes (B, C, h, w) in [0, 1] -> x, linear between `levels` (C, K)."""
    at = codes.float().clamp(0, 1) * (NUM_LEVELS - 1)
    below = at.floor().clamp(max=NUM_LEVELS - 2)
    low, high = (_take(levels, below.long() + step) for step in (0, 1))
    return torch.lerp(low, high, at - below)


def x_to_codes(x: Tensor, levels: Tensor) -> Tensor:
    """The inverse of `codes_to_x`: x (B, C, h, w) -> codes in [0, 1], whatever x is."""
    by_channel = x.float().transpose(0, 1).flatten(1).contiguous()  # (C, B h w)
    above = torch.searchsorted(levels, by_channel).clamp(1, NUM_LEVELS - 1)
    below = (above - 1).unflatten(1, (x.shape[0], *x.shape[2:])).transpose(0, 1)  # (B, C, h, w)
    low, high = (_take(levels, below + step) for step in (0, 1))
    share = ((x - low) / (high - low)).clamp(0, 1)
    return (below + share) / (NUM_LEVELS - 1)


def _take(levels: Tensor, indices: Tensor) -> Tensor:
    """Of channel c of `levels` (C, K) the values at `indices` (B, C, h, w)."""
    channels = torch.arange(len(levels), device=levels.device)[:, None, None]
    return levels[channels, indices]
