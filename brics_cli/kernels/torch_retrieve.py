"""Retrieval by torch's own operators, on any device. Each level goes the cheapest of three ways.

`torch_lattice` where there are positions and enough tokens to be worth a resize; `torch_sample` (grid_sample) where
queries have at most three axes; a gather of all corners at once, in chunks of tokens that bound its memory, for
everything else. Letters as in `reference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from brics_cli.kernels import torch_lattice, torch_sample
from brics_cli.kernels.reference import compute_dtype, queries_of, row_of
from brics_cli.kernels.spec import GridSpec, Level

# Corner reads per chunk of the gather: in float32, forward and backward, about 8 MiB x (level_dim + 4).
CORNERS_PER_CHUNK = 1 << 20


def retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None) -> Tensor:
    """As `reference.retrieve`."""
    dtype = compute_dtype(keys, tables)
    not_finite = 0 * keys.to(dtype).sum(-1, keepdim=True)  # (G, M, 1): 0, NaN where a key is
    keys = _finite(keys, dtype)
    queries = queries_of(keys, spec, lattice)  # (G, M, D)
    features = queries.new_empty((*queries.shape[:2], spec.num_features))
    for level, of_level in zip(spec.levels, features.split(spec.level_dim, dim=-1), strict=True):
        if lattice is not None and torch_lattice.resizes(level, spec, lattice, keys.shape[1]):
            of_level.copy_(torch_lattice.retrieve(keys, tables, spec, level, lattice))
        elif _is_sampled(level, spec, keys.shape[1]):
            grid = torch_sample.dense_grid(tables, spec, level, dtype).movedim(-1, 1)  # (G, F, ...)
            of_level.copy_(torch_sample.sample(queries, grid))
        else:
            for chunk in _chunks(queries):
                rows, weights, _ = _corners(queries[:, chunk], spec, level)
                of_level[:, chunk] = (_values(tables, rows, dtype) * weights[..., None]).sum(-2)
    return features.add_(not_finite)


def retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.retrieve_backward`.

    Under torch's deterministic algorithms on CUDA every level is gathered: grid_sample adds gradients there in no
    fixed order, whereas `index_add_` then sorts them by row first.
    """
    dtype = compute_dtype(keys, tables)
    keys_dtype, keys = keys.dtype, _finite(keys, dtype)
    queries = queries_of(keys, spec, lattice)
    is_ordered = queries.is_cuda and torch.are_deterministic_algorithms_enabled()
    keys_grad, tables_grad = torch.zeros_like(keys), torch.zeros_like(tables, dtype=dtype)
    for level, of_level in zip(spec.levels, grad.to(dtype).split(spec.level_dim, dim=-1), strict=True):
        if is_ordered:
            keys_grad += _gather_backward(of_level, queries, tables, spec, level, tables_grad)
        elif lattice is not None and torch_lattice.resizes(level, spec, lattice, keys.shape[1]):
            keys_grad += torch_lattice.retrieve_backward(of_level, keys, tables, spec, level, lattice, tables_grad)
        elif _is_sampled(level, spec, keys.shape[1]):
            grid = torch_sample.dense_grid(tables, spec, level, dtype).movedim(-1, 1)
            of_queries, of_grid = torch_sample.sample_backward(of_level, queries, grid)
            torch_sample.add_dense_grid(tables_grad, of_grid.movedim(1, -1), spec, level)
            keys_grad += of_queries[..., : spec.key_dim]
        else:
            keys_grad += _gather_backward(of_level, queries, tables, spec, level, tables_grad)
    return keys_grad.to(keys_dtype), tables_grad.to(tables.dtype)


def gather_tables_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None
) -> Tensor:
    """The gradient of the tables alone, float32, every level gathered: in a fixed order where torch is told to."""
    queries = queries_of(_finite(keys, grad.dtype), spec, lattice)
    tables_grad = torch.zeros_like(tables, dtype=grad.dtype)
    for level, of_level in zip(spec.levels, grad.split(spec.level_dim, dim=-1), strict=True):
        for chunk in _chunks(queries):
            rows, weights, _ = _corners(queries[:, chunk], spec, level)
            _add_rows(tables_grad, rows, weights[..., None] * of_level[:, chunk, None])
    return tables_grad


def _finite(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """keys with 0 for what is no number: grid_sample's backward can crash the process at a NaN."""
    return keys.to(dtype).nan_to_num(0, 0, 0)


def _is_sampled(level: Level, spec: GridSpec, num_tokens: int) -> bool:
    """grid_sample takes three axes, and a level above the cap must be laid out: worth it below its corner reads."""
    corner_reads = num_tokens * 2**spec.query_dim
    return spec.query_dim <= 3 and (level.dense or (level.cells + 1) ** spec.query_dim <= corner_reads)


def _gather_backward(
    of_level: Tensor, queries: Tensor, tables: Tensor, spec: GridSpec, level: Level, tables_grad: Tensor
) -> Tensor:
    """Add to `tables_grad` (G, V, F) and give the gradient of the keys (G, M, key_dim) for of_level (G, M, F)."""
    keys_grad = []
    for chunk in _chunks(queries):
        rows, weights, fraction = _corners(queries[:, chunk], spec, level)
        of_chunk = of_level[:, chunk, None]  # (G, m, 1, F)
        _add_rows(tables_grad, rows, weights[..., None] * of_chunk)
        along = (_values(tables, rows, queries.dtype) * of_chunk).sum(-1)  # (G, m, 2^D)
        keys_grad.append(level.cells * _slopes(along, fraction, spec.key_dim))
    return torch.cat(keys_grad, dim=1)


def _chunks(queries: Tensor) -> Iterator[slice]:
    num_tokens = max(1, CORNERS_PER_CHUNK // (len(queries) * 2 ** queries.shape[-1]))
    return (slice(start, start + num_tokens) for start in range(0, queries.shape[1], num_tokens))


def _corners(queries: Tensor, spec: GridSpec, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """Table rows (G, m, 2^D) int64, weights (G, m, 2^D), and place in the cell (G, m, D) of every query."""
    position = queries * level.cells
    cell = position.floor().clamp(0, level.cells - 1)
    fraction = position - cell
    sides = torch.arange(2, device=queries.device)
    vertex = []  # D of (G, m, 1, .. 2 .., 1): broadcast, they span the corners
    weights = torch.ones_like(fraction[..., :1])
    for d in range(spec.query_dim):
        shape = [2 if e == d else 1 for e in range(spec.query_dim)]
        vertex.append((cell[..., d, None].long() + sides).view(*cell.shape[:2], *shape))
        weights = torch.stack([weights * (1 - fraction[..., d, None]), weights * fraction[..., d, None]], -1).flatten(2)
    rows = row_of(torch.broadcast_tensors(*vertex), spec, level).flatten(2)
    return rows, weights, fraction


def _values(tables: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """tables (G, V, F), rows (G, m, corners) -> (G, m, corners, F)."""
    return tables.flatten(0, 1).index_select(0, _flat(rows, tables)).view(*rows.shape, -1).to(dtype)


def _add_rows(tables_grad: Tensor, rows: Tensor, grads: Tensor) -> None:
    """Add grads (G, m, corners, F) to the rows (G, m, corners) of tables_grad (G, V, F)."""
    tables_grad.view(-1, tables_grad.shape[-1]).index_add_(0, _flat(rows, tables_grad), grads.flatten(0, -2))


def _flat(rows: Tensor, tables: Tensor) -> Tensor:
    groups = torch.arange(len(tables), device=rows.device)[:, None, None]
    return (rows + groups * tables.shape[1]).flatten()


def _slopes(along: Tensor, fraction: Tensor, key_dim: int) -> Tensor:
    """d output / d place in the cell, keys' axes only (G, m, key_dim), for the corners' `along` (G, m, 2^D)."""
    slopes = []
    for d in range(key_dim):
        left = along
        for e in range(fraction.shape[-1]):  # contract the axes one by one, the first one first
            first, second = left.unflatten(-1, (2, -1)).unbind(-2)
            left = second - first if e == d else first + fraction[..., e, None] * (second - first)
        slopes.append(left.squeeze(-1))
    return torch.stack(slopes, dim=-1)
