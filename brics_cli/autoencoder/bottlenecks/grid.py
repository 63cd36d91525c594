"""`grid` and `hash`: BRICS' bi-level bottleneck (arXiv 2305.18601) and its BRIGHT predecessor: codes look up groups
of multi-resolution feature grids, alone or with their position.

Letters: C code channels, D key dimensions, G = C / D groups, L levels, F features per vertex, V rows per group;
h x w code positions, H_d x W_d = h * upscale x w * upscale positions of the decoder's input.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.bottlenecks.base import BoundedBottleneck, Lookup
from brics_cli.autoencoder.bottlenecks.features import build_features
from brics_cli.config import AutoencoderConfig, FeatureGridConfig
from brics_cli.config.names import GridIndex
from brics_cli.kernels import GridSpec, grid_retrieve

# Instant-NGP, arXiv 2201.05989, section 4: tables start at U(-1e-4, 1e-4).
INSTANT_NGP_RANGE = 1e-4


class GridBottleneck(BoundedBottleneck):
    """codes (B, C, h, w) -> (B, C_d, H_d, W_d) through retrieval and a 1x1 MLP.

    Without positions codes are looked up where they are, h x w, and a pixel shuffle follows the MLP. With positions
    they are tiled (nearest) to H_d x W_d first, and the query of a token is its key and its place.
    """

    index: GridIndex = "tiled"

    def __init__(self, config: FeatureGridConfig, *, model: AutoencoderConfig) -> None:
        super().__init__(model, noise_std=config.noise, noise_varies=config.noise_varies)
        self.num_groups = config.num_groups(model.code_channels)
        self.spec = grid_spec(config, cell=model.features.upscale, index=self.index)
        self.tables = nn.Parameter(initial_tables(config, self.spec, num_groups=self.num_groups))  # (G, V, F)
        self.tiling = model.features.upscale if config.positions != "none" else 1
        self.mlp = build_features(
            model,
            in_channels=self.num_groups * self.spec.num_features,
            num_groups=self.num_groups,
            tiled=config.positions != "none",
        )

    def keys(self, codes: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """codes (B, C, h, w) in [0, 1] -> keys (G, M, D), M = B*h*w or B*H_d*W_d, and the lattice of their places."""
        codes = codes.float()
        if self.tiling > 1:
            codes = F.interpolate(codes, scale_factor=float(self.tiling), mode="nearest")  # (B, C, H_d, W_d)
        keys = codes.unflatten(1, (self.num_groups, self.spec.key_dim))  # (B, G, D, ...)
        keys = keys.permute(1, 0, 3, 4, 2).reshape(self.num_groups, -1, self.spec.key_dim)  # (G, M, D)
        height, width = codes.shape[2:]
        return keys, None if self.spec.positions == "none" else (height, width)

    def retrieve(self, codes: Tensor) -> Tensor:
        """codes (B, C, h, w) in [0, 1] -> (B, G * L * F, h, w), or H_d x W_d with positions: group by group, level
        by level; channels last in memory.
        """
        batch, _, height, width = codes.shape
        keys, lattice = self.keys(codes)
        features = grid_retrieve(keys, self.tables, self.spec, lattice=lattice)  # (G, M, L*F)
        of_tokens = features.transpose(0, 1).flatten(1)  # (M, G*L*F), as they lie
        image = of_tokens.view(batch, height * self.tiling, width * self.tiling, -1).permute(0, 3, 1, 2)
        # On the CPU channels first, which gives the images of old seeds to the last bit.
        return image.contiguous() if image.device.type == "cpu" else image

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.mlp(self.retrieve(codes))

    def lookup(self) -> Lookup:
        return Lookup("retrieval", self.retrieve, self.tables)

    def usage_parts(self) -> dict[str, int]:
        """The levels, over all groups."""
        return {f"level_{number}": self.num_groups * level.rows for number, level in enumerate(self.spec.levels)}

    def usage_of(self, codes: Tensor) -> list[Tensor]:
        """The interpolation weight that falls on every row of each level, (G * V_l,): the gradient of a sum."""
        with torch.inference_mode(False), torch.enable_grad():
            keys, lattice = self.keys(codes.detach().clone())
            rows = torch.zeros(*self.tables.shape[:2], 1, device=keys.device, requires_grad=True)  # (G, V, 1)
            weights = grid_retrieve(keys, rows, replace(self.spec, level_dim=1), lattice=lattice)
            (on_rows,) = torch.autograd.grad(weights.sum(), rows)
        by_level = on_rows.squeeze(-1).split([level.rows for level in self.spec.levels], dim=1)
        return [level.flatten() for level in by_level]


class HashBottleneck(GridBottleneck):
    """As `grid`, but a level with more vertices than `table_cap` finds its rows by a spatial hash."""

    index = "hash"


def grid_spec(config: FeatureGridConfig, *, cell: int, index: GridIndex) -> GridSpec:
    """What the kernels need to know. `cell`: tokens per code position and axis."""
    return GridSpec(
        config.key_dim,
        config.resolutions,
        config.level_dim,
        positions=config.positions,
        cell=cell if config.positions == "cell" else 1,
        table_cap=config.table_cap,
        index=index,
    )


def initial_tables(config: FeatureGridConfig, spec: GridSpec, *, num_groups: int) -> Tensor:
    """Tables (G, V, F) before training.

    `identity` lets the first D features of every vertex be its own key in [-1, 1], so that gradient reaches the
    encoder from the first step; all features get noise of `init_std` on top (DESIGN section 3.2). A row of a level
    above the cap belongs to several vertices and cannot hold all their keys: such levels start as noise alone.
    """
    shape = (num_groups, spec.num_vertices, spec.level_dim)
    if config.init == "uniform":
        return torch.empty(shape).uniform_(-INSTANT_NGP_RANGE, INSTANT_NGP_RANGE)
    tables = torch.randn(shape) * config.init_std
    if config.init in ("identity", "dct"):
        for level in spec.levels:
            if level.dense:
                axis = torch.linspace(-1, 1, level.cells + 1)
                vertices = torch.cartesian_prod(*[axis] * spec.query_dim).view(-1, spec.query_dim)  # (V_l, key, y, x)
                tables[:, level.start : level.start + level.rows, : spec.key_dim] += vertices[:, : spec.key_dim]
    return tables
