"""Retrieval in plain torch, corner by corner: the specification every other backend is tested against.

Letters: G groups, M queries, D key dimensions, L levels, F features per vertex, V_l = (N_l + 1)^D vertices of
level l, V = sum of V_l. D-linear interpolation on a regular lattice, as in Instant-NGP (arXiv 2201.05989,
section 3) without its hash, at dense levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor


def level_offsets(resolutions: Sequence[int], key_dim: int) -> list[int]:
    """Where each level starts in the table of a group, and at the end V. Length L + 1."""
    offsets = [0]
    for cells in resolutions:
        offsets.append(offsets[-1] + (cells + 1) ** key_dim)
    return offsets


def retrieve(keys: Tensor, tables: Tensor, resolutions: Sequence[int]) -> Tensor:
    """keys (G, M, D) in [0, 1], tables (G, V, F) -> features (G, M, L * F), level after level.

    Vertex (i_1 .. i_D) of a level of N cells is row sum of i_d (N + 1)^(D - d): the last key varies fastest.
    """
    features = []
    for cells, offset in zip(resolutions, level_offsets(resolutions, keys.shape[-1]), strict=False):
        value = keys.new_zeros((*keys.shape[:2], tables.shape[-1]))
        for row, weight, _ in _corners(keys, cells, offset):
            value = value + weight[..., None] * _rows_of(tables, row)  # (G, M, F)
        features.append(value)
    return torch.cat(features, dim=-1)


def retrieve_backward(grad: Tensor, keys: Tensor, tables: Tensor, resolutions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gradients of `retrieve` for grad (G, M, L * F): those of keys (G, M, D) and of tables (G, V, F)."""
    num_features = tables.shape[-1]
    keys_grad, tables_grad = torch.zeros_like(keys), torch.zeros_like(tables)
    offsets = level_offsets(resolutions, keys.shape[-1])
    for cells, offset, of_level in zip(resolutions, offsets, grad.split(num_features, dim=-1), strict=False):
        for row, weight, weight_slope in _corners(keys, cells, offset):
            index = row[..., None].expand(-1, -1, num_features)  # (G, M, F)
            tables_grad.scatter_add_(1, index, weight[..., None] * of_level)
            along = (of_level * _rows_of(tables, row)).sum(-1, keepdim=True)  # (G, M, 1)
            keys_grad += cells * weight_slope * along
    return keys_grad, tables_grad


def _rows_of(tables: Tensor, row: Tensor) -> Tensor:
    """tables (G, V, F), row (G, M) -> (G, M, F)."""
    return tables.gather(1, row[..., None].expand(-1, -1, tables.shape[-1]))


def _corners(keys: Tensor, cells: int, offset: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The 2^D corners of the cell each key is in: table row (G, M), weight (G, M), d weight / d position (G, M, D)."""
    key_dim = keys.shape[-1]
    position = keys * cells  # (G, M, D) in cells
    cell = position.floor().clamp(0, cells - 1)  # key 1 belongs to the last cell
    fraction = position - cell  # (G, M, D) in [0, 1]
    for corner in product((0, 1), repeat=key_dim):
        factors = [fraction[..., d] if side else 1 - fraction[..., d] for d, side in enumerate(corner)]
        row = torch.zeros_like(cell[..., 0], dtype=torch.long)
        for d, side in enumerate(corner):
            row = row * (cells + 1) + cell[..., d].long() + side
        slopes = []
        for d, side in enumerate(corner):
            others = [factor for e, factor in enumerate(factors) if e != d]
            slopes.append((1 if side else -1) * prod(others, start=torch.ones_like(factors[0])))
        yield offset + row, prod(factors, start=torch.ones_like(factors[0])), torch.stack(slopes, dim=-1)
