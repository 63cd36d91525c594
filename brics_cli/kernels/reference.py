"""Retrieval in plain torch, corner by corner: the specification every other backend is tested against.

Letters: G groups, M tokens (queries), D axes of a query, L levels, F features per vertex, V rows of all levels (see
`spec`). D-linear interpolation on regular lattices, as in Instant-NGP (arXiv 2201.05989, section 3). Works in
float64, or in float32 where neither argument is float64: a bf16 table is read in bf16 and everything computed from it
is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from brics_cli.kernels.spec import HASH_PRIMES, GridSpec, Level


def retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None) -> Tensor:
    """keys (G, M, key_dim) in [0, 1], tables (G, V, F) -> features (G, M, L * F), level after level."""
    dtype = compute_dtype(keys, tables)
    queries = queries_of(keys.to(dtype), spec, lattice)  # (G, M, D)
    features = []
    for level in spec.levels:
        value = queries.new_zeros((*keys.shape[:2], spec.level_dim))
        for row, weight, _ in corners(queries, spec, level):
            value = value + weight[..., None] * _rows_of(tables, row).to(dtype)  # (G, M, F)
        features.append(value)
    return torch.cat(features, dim=-1)


def retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of `retrieve` for grad (G, M, L * F): those of keys (G, M, key_dim) and of tables (G, V, F).

    The positions get none. Sums are taken in the dtype of the computation, then cast to that of the argument.
    """
    dtype = compute_dtype(keys, tables)
    queries = queries_of(keys.to(dtype), spec, lattice)
    keys_grad, tables_grad = torch.zeros_like(keys, dtype=dtype), torch.zeros_like(tables, dtype=dtype)
    for level, of_level in zip(spec.levels, grad.to(dtype).split(spec.level_dim, dim=-1), strict=True):
        for row, weight, weight_slope in corners(queries, spec, level):
            index = row[..., None].expand(-1, -1, spec.level_dim)  # (G, M, F)
            tables_grad.scatter_add_(1, index, weight[..., None] * of_level)
            along = (of_level * _rows_of(tables, row).to(dtype)).sum(-1, keepdim=True)  # (G, M, 1)
            keys_grad += level.cells * weight_slope[..., : spec.key_dim] * along
    return keys_grad.to(keys.dtype), tables_grad.to(tables.dtype)


def by_token(features: Tensor) -> Tensor:
    """(G, M, X) as it is, in memory (M, G, X)."""
    return features.transpose(0, 1).contiguous().transpose(0, 1)


def compute_dtype(keys: Tensor, tables: Tensor) -> torch.dtype:
    """What interpolation computes in: float64 where either argument is, float32 otherwise."""
    return torch.promote_types(torch.promote_types(keys.dtype, tables.dtype), torch.float32)


def queries_of(keys: Tensor, spec: GridSpec, lattice: tuple[int, int] | None) -> Tensor:
    """keys (G, M, key_dim) -> queries (G, M, D): the keys, then y and x where the spec has positions."""
    if spec.positions == "none":
        return keys
    assert lattice is not None
    y, x = (axis.to(keys) for axis in positions(spec, lattice))
    lattice_points = torch.cartesian_prod(y, x).repeat(keys.shape[1] // (len(y) * len(x)), 1)  # (M, 2)
    return torch.cat([keys, lattice_points.expand(keys.shape[0], -1, -1)], dim=-1)


def positions(spec: GridSpec, lattice: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """y of every row and x of every column of the lattice of tokens, in (0, 1), float64."""
    height, width = (torch.arange(size, dtype=torch.float64) for size in lattice)
    if spec.positions == "cell":
        return (height % spec.cell + 0.5) / spec.cell, (width % spec.cell + 0.5) / spec.cell
    return (height + 0.5) / lattice[0], (width + 0.5) / lattice[1]


def corners(queries: Tensor, spec: GridSpec, level: Level) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The 2^D corners of the cell each query (G, M, D) is in.

    For each: table row (G, M), weight (G, M), d weight / d position in cells (G, M, D). A query that is NaN has the
    rows of the first cell and NaN for weights.
    """
    position = queries * level.cells  # (G, M, D) in cells
    cell = position.floor().nan_to_num(0).clamp(0, level.cells - 1)  # a query of 1 belongs to the last cell
    fraction = position - cell  # (G, M, D) in [0, 1]
    for corner in product((0, 1), repeat=spec.query_dim):
        factors = [fraction[..., d] if side else 1 - fraction[..., d] for d, side in enumerate(corner)]
        row = row_of([cell[..., d].long() + side for d, side in enumerate(corner)], spec, level)
        slopes = []
        for d, side in enumerate(corner):
            others = [factor for e, factor in enumerate(factors) if e != d]
            slopes.append((1 if side else -1) * prod(others, start=torch.ones_like(factors[0])))
        yield row, prod(factors, start=torch.ones_like(factors[0])), torch.stack(slopes, dim=-1)


def row_of(vertex: Sequence[Tensor], spec: GridSpec, level: Level) -> Tensor:
    """The row, in the table of a group, of vertices whose D int64 coordinates (...) are given axis by axis -> (...)."""
    row = torch.zeros_like(vertex[0])
    if level.dense or spec.index == "tiled":
        for along in vertex:
            row = row * (level.cells + 1) + along
    else:
        for along, prime in zip(vertex, HASH_PRIMES, strict=False):
            row = row ^ ((along * prime) & 0xFFFFFFFF)  # uint32 arithmetic, in int64
    return level.start + (row if level.dense else row % level.rows)


def _rows_of(tables: Tensor, row: Tensor) -> Tensor:
    """tables (G, V, F), row (G, M) -> (G, M, F)."""
    return tables.gather(1, row[..., None].expand(-1, -1, tables.shape[-1]))
