"""Retrieval by torch's own operators, on any device. Each level goes the cheapest of three ways: where there are
positions and enough tokens, a resize of the level to the lattice of tokens; `grid_sample`, where queries have at most
three axes; for everything else a gather of all corners at once, in chunks of tokens that bound its memory.

Letters as in `reference`. P: lattice points (H_d x W_d for positions "image", cell x cell for "cell"), the same ones in
every image; R = M / P tokens are on each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.kernels.reference import compute_dtype, positions, queries_of, row_of
from brics_cli.kernels.spec import GridSpec, Level

# Corner reads per chunk of the gather: in float32, forward and backward, about 8 MiB x (level_dim + 4).
CORNERS_PER_CHUNK = 1 << 20
# The resize costs as much as it saves near (N + 1)^key_dim = 6 R. One thread of an AMD EPYC, forward and backward, CPU
# ms/img against the other ways': one key, 64 x 64 tokens, 16 levels 16 .. 64, batch 4 161 : 115, 8 87 : 107,
# 16 94 : 122; positions in cells of 4 x 4, 32 x 32 tokens, levels 4 8 16, one key 4.0 : 9.2, two keys 4.9 : 49.
VERTICES_PER_TOKEN = 6
WALL_ULPS = 16


def retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None) -> Tensor:
    """As `reference.retrieve`."""
    dtype = compute_dtype(keys, tables)
    not_finite = 0 * keys.to(dtype).sum(-1, keepdim=True)  # (G, M, 1): 0, NaN where a key is
    keys = _finite(keys, dtype)
    queries = queries_of(keys, spec, lattice)  # (G, M, D)
    groups, tokens, _ = queries.shape
    features = queries.new_empty((tokens, groups, spec.num_features)).transpose(0, 1)  # (G, M, L * F)
    for level, of_level in zip(spec.levels, features.split(spec.level_dim, dim=-1), strict=True):
        if _is_resized(level, spec, lattice, keys.shape[1]):
            of_level.copy_(_resize(keys, tables, spec, level, lattice))
        elif _is_sampled(level, spec, keys.shape[1]):
            grid = _dense_grid(tables, spec, level, dtype).movedim(-1, 1)  # (G, F, ...)
            of_level.copy_(_sample(queries, grid))
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
        if not is_ordered and _is_resized(level, spec, lattice, keys.shape[1]):
            keys_grad += _resize_backward(of_level, keys, tables, spec, level, lattice, tables_grad)
        elif not is_ordered and _is_sampled(level, spec, keys.shape[1]):
            grid = _dense_grid(tables, spec, level, dtype).movedim(-1, 1)
            of_queries, of_grid = _sample_backward(of_level, queries, grid)
            _add_dense_grid(tables_grad, of_grid.movedim(1, -1), spec, level)
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
    """keys with 0 for NaN and infinities: grid_sample's backward can crash the process at a NaN."""
    return keys.to(dtype).nan_to_num(0, 0, 0)


def _is_sampled(level: Level, spec: GridSpec, num_tokens: int) -> bool:
    """grid_sample takes three axes, and a level above the cap must be laid out: worth it below its corner reads."""
    corner_reads = num_tokens * 2**spec.query_dim
    return spec.query_dim <= 3 and (level.dense or (level.cells + 1) ** spec.query_dim <= corner_reads)


def _is_resized(level: Level, spec: GridSpec, lattice: tuple[int, int] | None, num_tokens: int) -> bool:
    """Whether the level is worth a resize. Its memory is then at most 6 times that of the level's features."""
    if (
        lattice is None
        or spec.positions == "none"
        or (spec.positions == "cell" and any(size % spec.cell for size in lattice))
    ):
        return False
    height, width = _points(spec, lattice)
    return (level.cells + 1) ** spec.key_dim * height * width <= VERTICES_PER_TOKEN * num_tokens


def _resize(keys: Tensor, tables: Tensor, spec: GridSpec, level: Level, lattice: tuple[int, int] | None) -> Tensor:
    """One level: keys (G, M, key_dim), tables (G, V, F) -> features (G, M, F) in the dtype of the keys.

    The (y, x) axes of the grid are resized to the lattice once, (N + 1)^(key_dim + 2) vertices -> (N + 1)^key_dim x P;
    a query then has 2^key_dim corners instead of 2^(key_dim + 2).
    """
    assert lattice is not None
    sampled = _sample(_by_point(keys, spec, lattice), _resized(tables, spec, level, lattice, keys.dtype))  # (G*P, R, F)
    return _by_token(sampled, keys, spec, lattice)


def _resize_backward(
    grad: Tensor,
    keys: Tensor,
    tables: Tensor,
    spec: GridSpec,
    level: Level,
    lattice: tuple[int, int] | None,
    out: Tensor,
) -> Tensor:
    """Of `_resize`, for grad (G, M, F): the gradient of the keys; that of the tables is added to `out` (G, V, F)."""
    assert lattice is not None
    resized = _resized(tables, spec, level, lattice, keys.dtype)
    keys_grad, resized_grad = _sample_backward(_by_point(grad, spec, lattice), _by_point(keys, spec, lattice), resized)
    grid_grad = resized_grad.view(len(keys), *_points(spec, lattice), *resized_grad.shape[1:])  # (G, H, W, F, N+1, ..)
    for dim, axis in ((1, 0), (2, 1)):
        low, along = _stencil(spec, level, lattice, axis, grid_grad, dim)
        spread = grid_grad.new_zeros((*grid_grad.shape[:dim], level.cells + 1, *grid_grad.shape[dim + 1 :]))
        spread.index_add_(dim, low, grid_grad * (1 - along))
        grid_grad = spread.index_add_(dim, low + 1, grid_grad * along)
    key_axes = range(4, grid_grad.dim())
    _add_dense_grid(out, grid_grad.permute(0, *key_axes, 1, 2, 3), spec, level)
    return _by_token(keys_grad, keys, spec, lattice)


def _resized(tables: Tensor, spec: GridSpec, level: Level, lattice: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The level at every lattice point: (G * P, F, N + 1, .. key_dim .., N + 1)."""
    grid = _dense_grid(tables, spec, level, dtype)  # (G, N+1, .. key_dim .., N+1 of y, N+1 of x, F)
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


def _dense_grid(tables: Tensor, spec: GridSpec, level: Level, dtype: torch.dtype) -> Tensor:
    """The level of tables (G, V, F) as a dense grid (G, N + 1, .. D .., N + 1, F): a view where it is one already."""
    if level.dense:
        rows = tables[:, level.start : level.start + level.rows]
    else:
        rows = tables[:, _lattice_rows(spec, level, tables.device)]
    return rows.to(dtype).unflatten(1, (level.cells + 1,) * spec.query_dim)


def _add_dense_grid(tables_grad: Tensor, grid_grad: Tensor, spec: GridSpec, level: Level) -> None:
    """Add the gradient of `_dense_grid`'s result to that of the tables (G, V, F), in a fixed order."""
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


def _sample(queries: Tensor, grid: Tensor) -> Tensor:
    """queries (N, M, D) in [0, 1], grid (N, F, n, .. D .., n), D <= 3 -> D-linear interpolation (N, M, F)."""
    grid = grid[:, :, None] if queries.shape[-1] == 1 else grid
    sampled = F.grid_sample(grid, _at(queries), mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.flatten(2).transpose(1, 2)  # (N, F, M) -> (N, M, F)


def _sample_backward(grad: Tensor, queries: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `_sample` for grad (N, M, F): those of the queries (N, M, D) and of the grid, shaped as it is."""
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
