"""Specs and examples that the tests of every backend share."""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.kernels import GridSpec

LATTICE = (4, 6)


def spec_of(
    key_dim: int, positions: str = "none", cap: int | None = None, index: str = "tiled", *, level_dim: int = 3
) -> GridSpec:
    """Three levels; with a cap of 40 the finest is above it, whatever the number of axes."""
    resolutions = (3, 8, 50) if (key_dim, positions) == (1, "none") else (3, 2, 5)
    return GridSpec(key_dim, resolutions, level_dim, positions, 2, cap, index)


def lattice_of(spec: GridSpec) -> tuple[int, int] | None:
    return None if spec.positions == "none" else LATTICE


def example(spec: GridSpec, *, num_groups: int = 2, num_images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """keys with both walls among them, tables, and a gradient for the features: float32 numbers, float64 tensors."""
    generator = torch.Generator().manual_seed(spec.query_dim)
    num_tokens = num_images * LATTICE[0] * LATTICE[1]
    keys = torch.rand(num_groups, num_tokens, spec.key_dim, generator=generator)
    keys[:, 0], keys[:, 1] = 0.0, 1.0
    tables = torch.randn(num_groups, spec.num_vertices, spec.level_dim, generator=generator)
    grad = torch.randn(num_groups, num_tokens, spec.num_features, generator=generator)
    return keys.double(), tables.double(), grad.double()
