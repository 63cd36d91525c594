"""Levels through `grid_sample`, the levels' groups as its batch: for queries of at most three axes.

A dense level is a view of the table; one above the cap is first laid out as a dense grid. Letters as in `reference`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.kernels.reference import row_of
from brics_cli.kernels.spec import GridSpec, Level

WALL_ULPS = 16


def dense_grid(tables: Tensor, spec: GridSpec, level: Level, dtype: torch.dtype) -> Tensor:
    """The level of tables (G, V, F) as a dense grid (G, N + 1, .. D .., N + 1, F): a view where it is one already."""
    if level.dense:
        rows = tables[:, level.start : level.start + level.rows]
    else:
        rows = tables[:, _lattice_rows(spec, level, tables.device)]
    return rows.to(dtype).unflatten(1, (level.cells + 1,) * spec.query_dim)


def add_dense_grid(tables_grad: Tensor, grid_grad: Tensor, spec: GridSpec, level: Level) -> None:
    """Add the gradient of `dense_grid`'s result to that of the tables (G, V, F), in a fixed order."""
    grid_grad = grid_grad.flatten(1, -2)  # (G, (N + 1)^D, F)
    if level.dense:
        tables_grad[:, level.start : level.start + level.rows] += grid_grad
    else:
        tables_grad.index_add_(1, _lattice_rows(spec, level, tables_grad.device), grid_grad)


def _lattice_rows(spec: GridSpec, level: Level, device: torch.device) -> Tensor:
    """The row of every vertex of a level, in dense order: ((N + 1)^D,) int64."""
    axis = torch.arange(level.cells + 1, device=device)
    vertices = torch.meshgrid(*[axis] * spec.query_dim, indexing="ij")
    return row_of([along.flatten() for along in vertices], spec, level)


def sample(queries: Tensor, grid: Tensor) -> Tensor:
    """queries (N, M, D) in [0, 1], grid (N, F, n, .. D .., n), D <= 3 -> D-linear interpolation (N, M, F)."""
    grid = grid[:, :, None] if queries.shape[-1] == 1 else grid
    sampled = F.grid_sample(grid, _at(queries), mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.flatten(2).transpose(1, 2)  # (N, F, M) -> (N, M, F)


def sample_backward(grad: Tensor, queries: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `sample` for grad (N, M, F): those of the queries (N, M, D) and of the grid, shaped as it is."""
    # At the very walls grid_sample's border has no slope; a few ulp inside it has the reference's one-sided one.
    wall = WALL_ULPS * torch.finfo(queries.dtype).eps
    at = _at(queries.clamp(wall, 1 - wall))
    grad = grad.transpose(1, 2).unflatten(2, at.shape[1:-1]).contiguous()  # (N, F, 1, (1,) M)
    of_dim = torch.ops.aten.grid_sampler_3d_backward if at.dim() == 5 else torch.ops.aten.grid_sampler_2d_backward
    as_2d = grid[:, :, None] if queries.shape[-1] == 1 else grid
    grid_grad, at_grad = of_dim(grad, as_2d, at, 0, 1, True, [True, True])  # bilinear, border, align_corners
    queries_grad = 2 * at_grad.view(*queries.shape[:2], -1)[..., : queries.shape[-1]].flip(-1)
    return queries_grad, grid_grad.view(grid.shape)


def _at(queries: Tensor) -> Tensor:
    """queries (N, M, D) as grid_sample wants them: (x, y, z) in [-1, 1], fastest axis first; one axis as two."""
    at = queries.flip(-1) * 2 - 1
    if queries.shape[-1] == 1:
        at = torch.cat([at, torch.zeros_like(at)], dim=-1)
    return at.view(len(queries), *[1] * (at.shape[-1] - 1), queries.shape[1], at.shape[-1])  # (N, 1, (1,) M, 2 or 3)
