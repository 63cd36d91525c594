"""Retrieval in fused Triton kernels, the fast path on CUDA: `triton_kernels` has the kernels, this launches them.

Forward: one program per group and block of tokens, all levels. Backward: the same, which recomputes the corners, sums
the gradient of the keys in registers and adds that of the tables by float32 atomics; the coarse levels, where many
tokens meet on few rows, go through a second kernel that reduces over thousands of tokens before it adds. Atomics add in
no fixed order: under `torch.use_deterministic_algorithms` the tables' gradient is torch's sorted `index_add_` instead.
Everything is computed in float32. Importing this imports triton. Letters as in `reference`.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from brics_cli.kernels import triton_kernels
from brics_cli.kernels.reference import by_token
from brics_cli.kernels.spec import HASH_PRIMES, GridSpec
from brics_cli.kernels.torch_retrieve import gather_tables_backward

BLOCK = 128  # tokens per program, one a thread
POOLED_ROWS = 128  # a dense level with at most this many rows is reduced before it is added
POOLED_BLOCK = 32  # tokens per step of that reduction; 8 warps for it: four would spill registers
POOLED_STEPS = 64  # steps per program
POSITIONS = {"none": 0, "image": 1, "cell": 2}


def retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None) -> Tensor:
    """As `reference.retrieve`, for keys in float32 and tables in float32 or bf16."""
    keys, tables = keys.contiguous(), tables.contiguous()
    num_groups, num_tokens, _ = keys.shape
    features = keys.new_empty((num_tokens, num_groups, spec.num_features)).transpose(0, 1)
    if features.numel() > 0:
        sizes = (num_tokens, spec.num_vertices, *(lattice or (1, 1)))
        grid = (triton.cdiv(num_tokens, BLOCK), num_groups)
        with torch.cuda.device_of(keys):
            levels = _levels(spec, keys.device)
            triton_kernels.forward[grid](keys, tables, levels, features, *sizes, **launches(spec)["forward"])
    return features


def retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, spec: GridSpec, lattice: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.retrieve_backward`: table gradients are summed in float32, then cast to the tables' dtype."""
    grad, keys, tables = by_token(grad), keys.contiguous(), tables.contiguous()
    num_groups, num_tokens, _ = keys.shape
    is_ordered = torch.are_deterministic_algorithms_enabled()
    keys_grad, tables_grad = torch.zeros_like(keys), torch.zeros_like(tables, dtype=torch.float32)
    if grad.numel() > 0:
        sizes = (num_tokens, spec.num_vertices, *(lattice or (1, 1)))
        options, num_pooled = launches(spec), _num_pooled(spec)
        grid = (triton.cdiv(num_tokens, BLOCK), num_groups)
        pooled_grid = (triton.cdiv(num_tokens, POOLED_BLOCK * POOLED_STEPS), num_groups, num_pooled)
        with torch.cuda.device_of(keys):
            levels = _levels(spec, keys.device)
            triton_kernels.backward[grid](
                grad, keys, tables, levels, keys_grad, tables_grad, *sizes,
                **{**options["backward"], "ADDS": not is_ordered},
            )  # fmt: skip
            if num_pooled and not is_ordered:
                triton_kernels.pooled_backward[pooled_grid](
                    grad, keys, levels, tables_grad, *sizes, **options["pooled_backward"]
                )
    if is_ordered:
        tables_grad = gather_tables_backward(grad, keys, tables, spec, lattice)
    return keys_grad, tables_grad.to(tables.dtype)


@functools.cache
def launches(spec: GridSpec) -> dict[str, dict[str, object]]:
    """What each kernel is compiled for, by its name."""
    vertices = max((cells + 1) ** spec.query_dim for cells in spec.resolutions)
    options = {
        "KEY_DIM": spec.key_dim,
        "POSITIONS": POSITIONS[spec.positions],
        "CELL": spec.cell,
        "F": spec.level_dim,
        "F_PADDED": triton.next_power_of_2(spec.level_dim),
        "NUM_LEVELS": len(spec.levels),
        "NUM_DENSE": sum(level.dense for level in spec.levels),
        "CAP": spec.table_cap or 1,
        "HASH": spec.index == "hash",
        "PRIMES": HASH_PRIMES,
        "WIDE": max(vertices, spec.num_vertices * spec.level_dim) >= 2**31,
        "BLOCK": BLOCK,
    }
    pooled = {"BLOCK": POOLED_BLOCK, "ROWS": POOLED_ROWS, "STEPS": POOLED_STEPS, "num_warps": 8}
    return {
        "forward": options,
        "backward": {**options, "NUM_POOLED": _num_pooled(spec), "ADDS": True},
        "pooled_backward": {**options, **pooled, "F_PADDED": max(16, options["F_PADDED"])},  # tl.dot's least width
    }


def _num_pooled(spec: GridSpec) -> int:
    return sum(level.dense and level.rows <= POOLED_ROWS for level in spec.levels)


@functools.cache
def _levels(spec: GridSpec, device: torch.device) -> Tensor:
    """cells, first row and number of every level (L, 3), int32: dense levels from few rows to many, then the others."""
    order = sorted(range(len(spec.levels)), key=lambda index: (not spec.levels[index].dense, spec.levels[index].rows))
    return torch.tensor(
        [[spec.levels[index].cells, spec.levels[index].start, index] for index in order],
        dtype=torch.int32, device=device,
    )  # fmt: skip
