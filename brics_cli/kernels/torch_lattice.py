"""Levels with positions, by one separable resize of their (y, x) axes per call and look-ups along the keys alone.

Every token stands on one of P lattice points (H_d x W_d for positions "image", cell x cell for "cell"), the same ones
in every image, so the grid can be resized to them once: (N + 1)^(key_dim + 2) vertices -> (N + 1)^key_dim x P. A query
then has 2^key_dim corners instead of 2^(key_dim + 2). Letters as in `reference`; R = M / P tokens stand on each point.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.kernels.reference import positions
from brics_cli.kernels.spec import GridSpec, Level
from brics_cli.kernels.torch_sample import add_dense_grid, dense_grid, sample, sample_backward

# The resize costs as much as it saves near (N + 1)^key_dim = 6 R. One thread of an AMD EPYC, forward and backward, CPU
# ms/img against the other ways': one key, 64 x 64 tokens, 16 levels 16 .. 64, batch 4 161 : 115, 8 87 : 107,
# 16 94 : 122; positions in cells of 4 x 4, 32 x 32 tokens, levels 4 8 16, one key 4.0 : 9.2, two keys 4.9 : 49.
VERTICES_PER_TOKEN = 6


def resizes(level: Level, spec: GridSpec, lattice: tuple[int, int], num_tokens: int) -> bool:
    """Whether the level is worth a resize. Its memory is then at most 6 times that of the level's features."""
    if spec.positions == "none" or (spec.positions == "cell" and any(size % spec.cell for size in lattice)):
        return False
    height, width = _points(spec, lattice)
    return (level.cells + 1) ** spec.key_dim * height * width <= VERTICES_PER_TOKEN * num_tokens


def retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, level: Level, lattice: tuple[int, int]) -> Tensor:
    """One level: keys (G, M, key_dim), tables (G, V, F) -> features (G, M, F) in the dtype of the keys."""
    sampled = sample(_by_point(keys, spec, lattice), _resized(tables, spec, level, lattice, keys.dtype))  # (G*P, R, F)
    return _by_token(sampled, keys, spec, lattice)


def retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, spec: GridSpec, level: Level, lattice: tuple[int, int], out: Tensor
) -> Tensor:
    """Of `retrieve`, for grad (G, M, F): the gradient of the keys; that of the tables is added to `out` (G, V, F)."""
    resized = _resized(tables, spec, level, lattice, keys.dtype)
    keys_grad, resized_grad = sample_backward(_by_point(grad, spec, lattice), _by_point(keys, spec, lattice), resized)
    grid_grad = resized_grad.view(len(keys), *_points(spec, lattice), *resized_grad.shape[1:])  # (G, H, W, F, N+1, ..)
    for dim, axis in ((1, 0), (2, 1)):
        low, along = _stencil(spec, level, lattice, axis, grid_grad, dim)
        spread = grid_grad.new_zeros((*grid_grad.shape[:dim], level.cells + 1, *grid_grad.shape[dim + 1 :]))
        spread.index_add_(dim, low, grid_grad * (1 - along))
        grid_grad = spread.index_add_(dim, low + 1, grid_grad * along)
    key_axes = range(4, grid_grad.dim())
    add_dense_grid(out, grid_grad.permute(0, *key_axes, 1, 2, 3), spec, level)
    return _by_token(keys_grad, keys, spec, lattice)


def _resized(tables: Tensor, spec: GridSpec, level: Level, lattice: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The level at every lattice point: (G * P, F, N + 1, .. key_dim .., N + 1)."""
    grid = dense_grid(tables, spec, level, dtype)  # (G, N+1, .. key_dim .., N+1 of y, N+1 of x, F)
    *key_axes, y, x, features = range(1, grid.dim())
    grid = grid.permute(0, y, x, features, *key_axes).contiguous()  # keys last: the resize moves whole rows of them
    for dim, axis in ((2, 1), (1, 0)):
        low, along = _stencil(spec, level, lattice, axis, grid, dim)
        grid = grid.index_select(dim, low).lerp_(grid.index_select(dim, low + 1), along)
    return grid.flatten(0, 2)


def _stencil(
    spec: GridSpec, level: Level, lattice: tuple[int, int], axis: int, grid: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Of each lattice point along y (axis 0) or x (1): its cell, and its place in that cell shaped to span `dim`."""
    points = positions(spec, lattice)[axis][: _points(spec, lattice)[axis]] * level.cells
    low = points.floor().clamp(max=level.cells - 1)
    shape = [-1 if d == dim else 1 for d in range(grid.dim())]
    return low.long().to(grid.device), (points - low).to(grid.device, grid.dtype).view(shape)


def _points(spec: GridSpec, lattice: tuple[int, int]) -> tuple[int, int]:
    return (spec.cell, spec.cell) if spec.positions == "cell" else lattice


def _by_point(of_tokens: Tensor, spec: GridSpec, lattice: tuple[int, int]) -> Tensor:
    """(G, M, X) token after token -> (G * P, R, X) lattice point after lattice point."""
    height, width = _points(spec, lattice)
    split = (-1, lattice[0] // height, height, lattice[1] // width, width)  # (B, repeats, H, repeats, W)
    return of_tokens.unflatten(1, split).permute(0, 3, 5, 1, 2, 4, 6).flatten(3, 5).flatten(0, 2)


def _by_token(of_points: Tensor, keys: Tensor, spec: GridSpec, lattice: tuple[int, int]) -> Tensor:
    """(G * P, R, X) -> (G, M, X): undoes `_by_point`."""
    height, width = _points(spec, lattice)
    split = (len(keys), height, width, -1, lattice[0] // height, lattice[1] // width, of_points.shape[-1])
    return of_points.reshape(split).permute(0, 3, 4, 1, 5, 2, 6).reshape(*keys.shape[:2], -1)
