"""Data whose denoiser is known exactly: mixtures of Gaussians, in float64. K components, D dimensions, N points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normal draws of `shape`, float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@dataclass(frozen=True)
class GaussianMixture:
    """`weights` (K,), `means` (K, D), `covariances` (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """(D, D): within the components and between them."""
        centred = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances + centred[:, :, None] * centred[:, None])

    def shares(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """The probability (N, K) of each component given x (N, D), which is data + sigma eps."""
        return self._posterior(x, sigma)[0]

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma eps = x], exactly: every component's linear estimate, weighted by its share."""
        shares, estimates = self._posterior(x, sigma)
        return (shares[:, :, None] * estimates).sum(dim=1)

    def _posterior(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Shares (N, K), and each component's estimates (N, K, D)."""
        blurred = self.covariances + sigma**2 * torch.eye(x.shape[1], dtype=x.dtype)
        centred = x[:, None] - self.means  # (N, K, D)
        solved = torch.einsum("kij,nkj->nki", torch.linalg.inv(blurred), centred)
        log_density = -((centred * solved).sum(dim=-1) + torch.logdet(blurred)) / 2  # (N, K)
        return (self.weights.log() + log_density).softmax(dim=1), x[:, None] - sigma**2 * solved

    def draw(self, count: int, *, seed: int) -> Tensor:
        """`count` points (N, D)."""
        generator = np.random.default_rng(seed)
        component = torch.from_numpy(generator.choice(len(self.weights), size=count, p=self.weights.numpy()))
        eps = torch.from_numpy(generator.standard_normal((count, self.means.shape[1])))
        scale = torch.linalg.cholesky(self.covariances)
        return self.means[component] + torch.einsum("nij,nj->ni", scale[component], eps)


MIXTURE = GaussianMixture(
    weights=torch.tensor([0.3, 0.7], dtype=torch.float64),
    means=torch.tensor([[1.2, -0.8, 0.4], [-0.6, 0.5, -0.3]], dtype=torch.float64),
    covariances=torch.tensor(
        [
            [[0.25, 0.10, 0.00], [0.10, 0.16, -0.04], [0.00, -0.04, 0.09]],
            [[0.36, -0.12, 0.05], [-0.12, 0.20, 0.00], [0.05, 0.00, 0.30]],
        ],
        dtype=torch.float64,
    ),
)
"""Two components in three dimensions, of different weights and covariances, whose tails meet."""
