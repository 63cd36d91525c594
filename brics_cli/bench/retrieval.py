"""`brics bench retrieval`: milliseconds per image of feature-grid retrieval, backend by backend (DESIGN section 3.4).

Two floors stand beside each time, both bytes over the bandwidth that a copy reached in the same run: `unique`, every
byte moved once (keys, the rows that are touched, features; backward also the gradients), which device memory cannot
beat; and `corners`, every corner of every query read (and, backward, added) on its own, which only caches can beat.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import ceil
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brics_cli.bench import choices
from brics_cli.bench.timing import Report, Table, copy_bytes_per_s, device_name, median_seconds, peak_bytes
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.kernels import GridSpec, reference, torch_retrieve
from brics_cli.kernels.reference import by_token

PAPER_RESOLUTIONS = tuple(ceil(round(16 * 4 ** (level / 15), 9)) for level in range(16))  # 16 .. 64 (DESIGN 3.1)
PAPER_SPEC = GridSpec(1, PAPER_RESOLUTIONS, 4, "image", table_cap=2**18)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Scale(NamedTuple):
    """Tokens of an image, and the grids that they look up."""

    lattice: tuple[int, int]
    num_groups: int
    spec: GridSpec


SCALES = {
    "code": Scale((16, 16), 8, GridSpec(2, (4, 8, 16, 32), 4)),
    "paper": Scale((64, 64), 4, PAPER_SPEC),
    "paper-16": Scale((64, 64), 16, PAPER_SPEC),
}


def bench_retrieval(
    *,
    device: torch.device,
    batch_size: int = 8,
    repeats: int = 10,
    scales: list[str] | None = None,
    tables_dtype: str = "fp32",
    budget_s: float = 10.0,
) -> Report:
    """Every backend at `scales` (of SCALES; None: all), on random codes; at most about `budget_s` seconds a figure.

    `timings` of the value: milliseconds per image, what share of that each floor would take (1: as fast as the floor),
    and the peak memory above the arguments'.
    """
    if tables_dtype not in DTYPES:
        raise UsageError(f"--dtype {tables_dtype}: grids are kept in {' or '.join(DTYPES)}")
    scales = list(dict.fromkeys(scales or SCALES))
    for name in scales:
        if name not in SCALES:
            raise UsageError(f"no scale {name!r}{did_you_mean(name, SCALES)}")
    bytes_per_s = copy_bytes_per_s(device)
    timings: list[dict[str, Any]] = []
    for name in scales:
        scale = SCALES[name]
        spec, num_tokens = scale.spec, batch_size * scale.lattice[0] * scale.lattice[1]
        generator = torch.Generator().manual_seed(0)
        keys = torch.rand(scale.num_groups, num_tokens, spec.key_dim, generator=generator).to(device)
        tables = torch.randn(scale.num_groups, spec.num_vertices, spec.level_dim, generator=generator)
        tables = tables.to(device, DTYPES[tables_dtype])
        grad = torch.randn(scale.num_groups, num_tokens, spec.num_features, generator=generator).to(device)
        grad = by_token(grad)  # as it comes back from a network, channels last
        lattice = None if spec.positions == "none" else scale.lattice
        floors = _floor_bytes(keys, tables, spec, lattice)
        for backend, module in _backends(device).items():
            timing: dict[str, Any] = {"scale": name, "backend": backend, "forward": None, "forward_backward": None}
            timing |= {"peak_memory_mib": None, "not_measured": None}
            timings.append(timing)
            if isinstance(module, str):
                timing["not_measured"] = module
                continue

            def forward(retrieve=module.retrieve) -> object:
                return retrieve(keys, tables, spec, lattice)  # noqa: B023 - called before the loop goes on

            def both(module=module) -> object:
                kept = module.retrieve(keys, tables, spec, lattice)  # noqa: B023 - as training keeps the features
                return kept, module.retrieve_backward(grad, keys, tables, spec, lattice)  # noqa: B023

            works = {"forward": forward, "forward_backward": both}
            for (what, work), (unique, corners) in zip(works.items(), floors, strict=True):
                seconds = median_seconds(work, device=device, repeats=repeats, budget_s=budget_s)
                timing[what] = {
                    "ms_per_img": 1000 * seconds / batch_size,
                    "of_unique_floor": unique / bytes_per_s / seconds,
                    "of_corner_floor": corners / bytes_per_s / seconds,
                }
            peak = peak_bytes(both, device=device)
            timing["peak_memory_mib"] = None if peak is None else peak / 2**20
    value = {"device": device_name(device), "copy_gb_per_s": bytes_per_s / 1e9, "timings": timings}
    value |= {"batch_size": batch_size, "tables_dtype": tables_dtype}
    return Report(value, [_table(value), *(f"{name}: {choices.SCALES[name]}" for name in scales)])


def _table(found: dict[str, Any]) -> Table:
    columns = ["scale", "backend", "forward ms/img", "of unique / corners", "fwd + bwd ms/img", "of unique / corners"]
    title = (
        f"retrieval, tables {found['tables_dtype']}, batch {found['batch_size']}, on {found['device']}, copy "
        f"{found['copy_gb_per_s']:.1f} GB/s"
    )
    table = Table(title, [*columns, "peak MiB"])
    for timing in found["timings"]:
        cells = [timing["scale"], timing["backend"]]
        for work in (timing["forward"], timing["forward_backward"]):
            if work is None:
                cells += ["", ""]
            else:
                cells.append(f"{work['ms_per_img']:.3f}")
                cells.append(f"{work['of_unique_floor']:.1%} / {work['of_corner_floor']:.1%}")
        if timing["not_measured"] is not None:
            cells[2] = timing["not_measured"]
        peak = timing["peak_memory_mib"]
        table.rows.append([*cells, "" if peak is None else f"{peak:,.0f}"])
    return table


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
