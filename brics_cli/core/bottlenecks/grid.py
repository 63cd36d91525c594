"""`grid`: BRICS' bi-level bottleneck (arXiv 2305.18601): codes look up groups of multi-resolution feature grids.

Letters: C code channels, D key dimensions, G = C / D groups, L levels, F features per vertex, V vertices per group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brics_cli.config import FeatureConfig, GridBottleneckConfig
from brics_cli.core.bottlenecks.base import BoundedBottleneck, FeatureMlp
from brics_cli.kernels import GridSpec, grid_retrieve

# Instant-NGP, arXiv 2201.05989, section 4: tables start at U(-1e-4, 1e-4).
INSTANT_NGP_RANGE = 1e-4


class GridBottleneck(BoundedBottleneck):
    """codes (B, C, h, w) -> (B, C_d, h * upscale, w * upscale) through retrieval and a 1x1 MLP."""

    def __init__(
        self, config: GridBottleneckConfig, *, features: FeatureConfig, code_channels: int, out_channels: int
    ) -> None:
        super().__init__(noise_std=config.noise)
        self.num_groups = code_channels // config.key_dim
        self.spec = GridSpec(config.key_dim, config.resolutions, config.level_dim)
        self.tables = nn.Parameter(initial_tables(config, self.spec, num_groups=self.num_groups))  # (G, V, F)
        num_features = self.num_groups * self.spec.num_features
        self.mlp = FeatureMlp(features, in_channels=num_features, out_channels=out_channels)

    def retrieve(self, codes: Tensor) -> Tensor:
        """codes (B, C, h, w) in [0, 1] -> features (B, G * L * F, h, w): group by group, level by level."""
        batch, _, height, width = codes.shape
        keys = codes.float().unflatten(1, (self.num_groups, self.spec.key_dim))  # (B, G, D, h, w)
        keys = keys.permute(1, 0, 3, 4, 2).reshape(self.num_groups, -1, self.spec.key_dim)  # (G, B*h*w, D)
        features = grid_retrieve(keys, self.tables, self.spec)  # (G, B*h*w, L*F)
        features = features.view(self.num_groups, batch, height, width, -1).permute(1, 0, 4, 2, 3)
        return features.reshape(batch, -1, height, width)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(self.retrieve(codes))


def initial_tables(config: GridBottleneckConfig, spec: GridSpec, *, num_groups: int) -> Tensor:
    """Tables (G, V, F) before training.

    `identity` lets the first D features of every vertex be its own coordinate in [-1, 1], so that gradient reaches
    the encoder from the first step; all features get noise of `init_std` on top (DESIGN section 3.2).
    """
    shape = (num_groups, spec.num_vertices, spec.level_dim)
    if config.init == "uniform":
        return torch.empty(shape).uniform_(-INSTANT_NGP_RANGE, INSTANT_NGP_RANGE)
    tables = torch.randn(shape) * config.init_std
    if config.init == "identity":
        levels = []
        for cells in spec.resolutions:
            axis = torch.linspace(-1, 1, cells + 1)
            levels.append(torch.cartesian_prod(*[axis] * spec.key_dim).view(-1, spec.key_dim))  # (V_l, D)
        tables[..., : spec.key_dim] += torch.cat(levels)
    return tables
