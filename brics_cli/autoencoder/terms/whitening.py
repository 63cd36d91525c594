"""Channels that do not correlate: the mean squared correlation of two channels at one position.

The covariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 4), of correlations, so that the codes' scale
stays what it is: a diffusion model divides by it anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor


def products(codes: Tensor) -> Tensor:
    """(C, C + 1): the mean product of every two channels of codes (B, C, h, w), and the mean of each."""
    flat = codes.float().transpose(0, 1).flatten(1)  # (C, B h w)
    return torch.cat([flat @ flat.T / flat.shape[1], flat.mean(dim=1, keepdim=True)], dim=1)


def mean_squared_correlation(means: Tensor) -> Tensor:
    """Over all pairs of channels, for `means` (C, C + 1) as `products` has them; 0 of a single channel."""
    covariance = means[:, :-1] - means[:, -1:] * means[:, -1]
    std = covariance.diagonal().clamp(min=1e-6).sqrt()
    correlation = covariance / (std[:, None] * std)
    pairs = correlation.numel() - len(correlation)
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return off_diagonal / max(pairs, 1)
