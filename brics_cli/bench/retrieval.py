"""`brics bench retrieval`: milliseconds per image of feature-grid retrieval, backend by backend (DESIGN section 3.4).

Two floors stand beside each time, both bytes over the bandwidth that a copy reached in the same run: `unique`, every
byte moved once (keys, the rows that are touched, features; backward also the gradients), which device memory cannot
beat; and `corners`, every corner of every query read (and, backward, added) on its own, which only caches can beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from types import ModuleType

import torch
from torch import Tensor

from brics_cli.bench.timing import copy_bytes_per_s, device_name, median_seconds, peak_bytes
from brics_cli.kernels import GridSpec, reference, torch_retrieve

PAPER_RESOLUTIONS = tuple(ceil(round(16 * 4 ** (level / 15), 9)) for level in range(16))  # 16 .. 64 (DESIGN 3.1)
PAPER_SPEC = GridSpec(1, PAPER_RESOLUTIONS, 4, "image", table_cap=2**18)


@dataclass(frozen=True)
class Scale:
    """Tokens of an image, and the grids that they look up."""

    title: str
    lattice: tuple[int, int]
    num_groups: int
    spec: GridSpec


SCALES = {
    "code": Scale("16 x 16 tokens, 8 groups of 2 keys, 4 levels", (16, 16), 8, GridSpec(2, (4, 8, 16, 32), 4)),
    "paper": Scale("64 x 64 tokens, 4 groups of (key, y, x), 16 levels", (64, 64), 4, PAPER_SPEC),
    "paper-16": Scale("64 x 64 tokens, 16 groups of (key, y, x), 16 levels", (64, 64), 16, PAPER_SPEC),
}


@dataclass(frozen=True)
class Work:
    """Milliseconds per image of one pass, and what share of it each floor would take (1: as fast as the floor)."""

    ms_per_img: float
    of_unique_floor: float
    of_corner_floor: float


@dataclass(frozen=True)
class Timing:
    """One backend at one scale. `not_measured` says why there are no figures; peak memory is above the arguments'."""

    scale: str
    backend: str
    forward: Work | None = None
    forward_backward: Work | None = None
    peak_memory_mib: float | None = None
    not_measured: str | None = None


@dataclass(frozen=True)
class RetrievalSpeed:
    """What `bench_retrieval` found."""

    device: str
    copy_gb_per_s: float
    timings: list[Timing]


def bench_retrieval(
    *,
    device: torch.device,
    batch_size: int,
    repeats: int,
    scales: list[str],
    tables_dtype: torch.dtype,
    budget_s: float,
) -> RetrievalSpeed:
    """Every backend at `scales` (of SCALES), on random codes; at most about `budget_s` seconds a figure."""
    bytes_per_s = copy_bytes_per_s(device)
    timings = []
    for name in scales:
        scale = SCALES[name]
        spec, num_tokens = scale.spec, batch_size * scale.lattice[0] * scale.lattice[1]
        generator = torch.Generator().manual_seed(0)
        keys = torch.rand(scale.num_groups, num_tokens, spec.key_dim, generator=generator).to(device)
        tables = torch.randn(scale.num_groups, spec.num_vertices, spec.level_dim, generator=generator)
        tables = tables.to(device, tables_dtype)
        grad = torch.randn(scale.num_groups, num_tokens, spec.num_features, generator=generator).to(device)
        lattice = None if spec.positions == "none" else scale.lattice
        floors = _floor_bytes(keys, tables, spec, lattice)
        for backend, module in _backends(device).items():
            if isinstance(module, str):
                timings.append(Timing(name, backend, not_measured=module))
                continue

            def forward(retrieve=module.retrieve) -> object:
                return retrieve(keys, tables, spec, lattice)  # noqa: B023 - called before the loop goes on

            def both(module=module) -> object:
                kept = module.retrieve(keys, tables, spec, lattice)  # noqa: B023 - as training keeps the features
                return kept, module.retrieve_backward(grad, keys, tables, spec, lattice)  # noqa: B023

            works = []
            for work, (unique, corners) in zip((forward, both), floors, strict=True):
                seconds = median_seconds(work, device=device, repeats=repeats, budget_s=budget_s)
                shares = unique / bytes_per_s / seconds, corners / bytes_per_s / seconds
                works.append(Work(1000 * seconds / batch_size, *shares))
            peak = peak_bytes(both, device=device)
            peak_mib = None if peak is None else peak / 2**20
            timings.append(Timing(name, backend, forward=works[0], forward_backward=works[1], peak_memory_mib=peak_mib))
    return RetrievalSpeed(device_name(device), bytes_per_s / 1e9, timings)


def _backends(device: torch.device) -> dict[str, ModuleType | str]:
    """The module of each backend, or why it cannot be measured here."""
    backends: dict[str, ModuleType | str] = {"reference": reference, "torch": torch_retrieve}
    if device.type != "cuda":
        backends["triton"] = "not measured: needs CUDA"
    elif find_spec("triton") is None:
        backends["triton"] = "not measured: triton is not installed"
    else:
        from brics_cli.kernels import triton_retrieve

        backends["triton"] = triton_retrieve
    return backends


def _floor_bytes(
    keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(unique bytes, bytes of corners) of a forward, and of a forward and backward pass."""
    num_queries = keys.shape[0] * keys.shape[1]
    row, float_row = spec.level_dim * tables.element_size(), spec.level_dim * 4
    features = 4 * num_queries * spec.num_features
    touched = row * _num_touched_rows(keys, spec, lattice)
    num_corners = num_queries * len(spec.levels) * 2**spec.query_dim
    unique = keys.nbytes + touched + features
    # Backward reads keys, rows and the features' gradient, and writes those of the keys and of the whole table.
    unique_backward = 2 * keys.nbytes + touched + features + tables.nbytes
    corners = keys.nbytes + num_corners * row + features
    corners_backward = 2 * keys.nbytes + num_corners * (row + float_row) + features
    return (unique, corners), (unique + unique_backward, corners + corners_backward)


def _num_touched_rows(keys: Tensor, spec: GridSpec, lattice: tuple[int, int] | None) -> int:
    """Rows of all groups that at least one query reads."""
    touched = torch.zeros(keys.shape[0], spec.num_vertices, dtype=torch.bool, device=keys.device)
    queries = reference.queries_of(keys, spec, lattice)
    for level in spec.levels:
        for rows, _, _ in reference.corners(queries, spec, level):
            touched.scatter_(1, rows, True)
    return int(touched.sum())
