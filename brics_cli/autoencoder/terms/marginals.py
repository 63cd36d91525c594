"""Marginal distributions of the codes: uniform, or Gaussian, by their first K = 4 moments.

The squared distance of a density to a reference is the sum of its squared coefficients in the reference's orthogonal
polynomials: Legendre's for uniform codes on [0, 1], Hermite's for Gaussian ones. They are means over the batch, and the
first four see mean, spread, skew and tails. Uniform marginals use every level of a bounded code; Gaussian ones are what
diffusion starts from. Ours, after the study of uniformity in arXiv 2606.03578.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.config.terms import MarginalsConfig

WALL = 1 / 510
"""Codes nearer to 0 or 1 than half a level count as there: their logits would be infinite."""


def moments(config: MarginalsConfig, codes: Tensor, *, bounded: bool) -> Tensor:
    """(C, K): the mean of each polynomial over codes (B, C, h, w)."""
    z = codes.float()
    if config.target == "uniform":
        u = 2 * z - 1
        each = [u, (3 * u**2 - 1) / 2, (5 * u**3 - 3 * u) / 2, (35 * u**4 - 30 * u**2 + 3) / 8]
    else:
        x = (torch.logit(z, eps=WALL) if bounded else z) / config.std
        each = [x, (x**2 - 1) / 2**0.5, (x**3 - 3 * x) / 6**0.5, (x**4 - 6 * x**2 + 3) / 24**0.5]
    return torch.stack([polynomial.mean(dim=(0, 2, 3)) for polynomial in each], dim=1)


def distance(config: MarginalsConfig, means: Tensor) -> Tensor:
    """The squared distance, mean over channels, for `means` (C, K); 0 where the moments are the reference's."""
    norms = means.new_ones(4)  # Hermite's
    if config.target == "uniform":  # Legendre's, 2 k + 1
        norms = 2 * torch.arange(1, 5, device=means.device, dtype=means.dtype) + 1
    return (norms * means.square()).sum(dim=1).mean()
