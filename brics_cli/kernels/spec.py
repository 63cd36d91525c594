"""What the grids of a group look like: levels, rows, and the row of a vertex. Plain Python, no torch.

Letters: D axes of a query (`key_dim`, and two more with positions), L levels, F features per vertex, V rows of all
levels. A level of N cells per axis has (N + 1)^D vertices. Up to `table_cap` rows it is dense: vertex (i_1 .. i_D) is
row sum of i_d (N + 1)^(D - d), the last axis fastest. Above, it has exactly `table_cap` rows, which its vertices
share: `tiled` takes the dense row modulo the cap, `hash` the spatial hash of Instant-NGP (arXiv 2201.05989, eq. 4).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import get_args

from brics_cli.config.names import GridIndex, Positions

# Instant-NGP's first three; the last two are large primes as well, for queries of four and five axes.
HASH_PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037)


@dataclass(frozen=True)
class Level:
    """One level: `cells` per axis, its `rows` in the table of a group from row `start` on."""

    cells: int
    start: int
    rows: int
    dense: bool


@dataclass(frozen=True)
class GridSpec:
    """The grids of every group.

    `key_dim` (1 to 3) code channels per group; `resolutions[l]` cells per axis of level l; `level_dim` features per
    vertex. `positions` adds two axes (y, x) to the query: `image`, the place in the image; `cell`, the place inside a
    square of `cell` x `cell` tokens, which repeats. `table_cap`: rows per level at most, None for no cap; `index`: how
    a level with more vertices finds its row. Raises ValueError for values that cannot be.
    """

    key_dim: int
    resolutions: tuple[int, ...]
    level_dim: int
    positions: Positions = "none"
    cell: int = 1
    table_cap: int | None = None
    index: GridIndex = "tiled"

    def __post_init__(self) -> None:
        if not 1 <= self.key_dim <= 3:
            raise ValueError(f"key_dim should be 1, 2 or 3, got {self.key_dim}")
        if not self.resolutions or min(self.resolutions) < 1:
            raise ValueError(f"resolutions should be one or more numbers of cells, got {self.resolutions}")
        if self.level_dim < 1 or self.cell < 1 or (self.table_cap is not None and self.table_cap < 1):
            raise ValueError("level_dim, cell and table_cap should be at least 1")
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions should be one of {get_args(Positions)}, got {self.positions!r}")
        if self.index not in get_args(GridIndex):
            raise ValueError(f"index should be one of {get_args(GridIndex)}, got {self.index!r}")

    @property
    def query_dim(self) -> int:
        """D: axes of a query and of every grid."""
        return self.key_dim + (0 if self.positions == "none" else 2)

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """Every level, coarse to fine as in `resolutions`."""
        levels, start = [], 0
        for cells in self.resolutions:
            vertices = (cells + 1) ** self.query_dim
            rows = vertices if self.table_cap is None else min(vertices, self.table_cap)
            levels.append(Level(cells, start, rows, dense=rows == vertices))
            start += rows
        return tuple(levels)

    @property
    def num_vertices(self) -> int:
        """V: rows of all levels of one group."""
        return sum(level.rows for level in self.levels)

    @property
    def num_features(self) -> int:
        """Features that one group retrieves per query: L * F."""
        return len(self.resolutions) * self.level_dim

    def as_ints(self, lattice: tuple[int, int] | None) -> tuple[list[int], list[int]]:
        """`resolutions`, and everything else but key_dim and level_dim, as the ints an op takes. See `from_ints`."""
        height, width = lattice or (1, 1)
        names = get_args(Positions).index(self.positions), get_args(GridIndex).index(self.index)
        return list(self.resolutions), [names[0], self.cell, self.table_cap or 0, names[1], height, width]


def from_ints(
    key_dim: int, level_dim: int, resolutions: list[int], layout: list[int]
) -> tuple[GridSpec, tuple[int, int]]:
    """The spec and the lattice that `as_ints` was given; the lattice is (1, 1) where there are no positions."""
    return _from_ints(key_dim, level_dim, tuple(resolutions), tuple(layout))


@functools.cache
def _from_ints(
    key_dim: int, level_dim: int, resolutions: tuple[int, ...], layout: tuple[int, ...]
) -> tuple[GridSpec, tuple[int, int]]:
    positions, cell, table_cap, index, height, width = layout
    names: tuple[Positions, GridIndex] = (get_args(Positions)[positions], get_args(GridIndex)[index])
    return GridSpec(key_dim, resolutions, level_dim, names[0], cell, table_cap or None, names[1]), (height, width)
