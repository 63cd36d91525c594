"""The only door to feature-grid retrieval: one op, whichever backend computes it.

`brics::grid_retrieve` is a `torch.library` op with a fake kernel, autograd and a FLOP formula, so that
torch.compile, meta tensors and the FLOP counter see the same op on every backend. The backend is chosen once, or
forced by `BRICS_KERNELS=reference|torch`. Letters as in `reference`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from brics_cli.errors import UsageError
from brics_cli.kernels import reference

BACKENDS = ("reference", "torch")
WALL_ULPS = 16


@dataclass(frozen=True)
class GridSpec:
    """What the grids of every group look like.

    `resolutions[l]` is the number of cells per axis of level l, `level_dim` the features per vertex.
    """

    key_dim: int
    resolutions: tuple[int, ...]
    level_dim: int

    @property
    def num_vertices(self) -> int:
        """V: vertices of all levels of one group."""
        return reference.level_offsets(self.resolutions, self.key_dim)[-1]

    @property
    def num_features(self) -> int:
        """Features one group retrieves per query: L * F."""
        return len(self.resolutions) * self.level_dim


@functools.cache
def backend() -> str:
    """The backend in use. Raises UsageError when BRICS_KERNELS names none."""
    name = os.environ.get("BRICS_KERNELS", "torch")
    if name not in BACKENDS:
        raise UsageError(f"BRICS_KERNELS={name!r} is not a backend", next=f"Use one of: {', '.join(BACKENDS)}.")
    return name


def grid_retrieve(keys: Tensor, tables: Tensor, spec: GridSpec) -> Tensor:
    """Features of all levels at `keys`, by D-linear interpolation; differentiable in both arguments.

    keys (G, M, D) in [0, 1] (values outside are extrapolated by no backend: bound them first), tables (G, V, F),
    -> (G, M, L * F). Raises ValueError when shapes do not fit `spec`.
    """
    if keys.dim() != 3 or keys.shape[-1] != spec.key_dim:
        raise ValueError(f"keys should be (G, M, {spec.key_dim}), got {tuple(keys.shape)}")
    if tables.shape != (keys.shape[0], spec.num_vertices, spec.level_dim):
        raise ValueError(
            f"tables should be {(keys.shape[0], spec.num_vertices, spec.level_dim)}, got {tuple(tables.shape)}"
        )
    return torch.ops.brics.grid_retrieve(keys, tables, list(spec.resolutions))


# torch.library.define and impl, not custom_op: the same op to torch.compile, autograd and the FLOP counter, but a
# custom_op imports torch._dynamo at its first call, five seconds of every short command.
torch.library.define("brics::grid_retrieve", "(Tensor keys, Tensor tables, int[] resolutions) -> Tensor")
torch.library.define(
    "brics::grid_retrieve_backward",
    "(Tensor grad, Tensor keys, Tensor tables, int[] resolutions) -> (Tensor, Tensor)",
)


@torch.library.impl("brics::grid_retrieve", "CompositeExplicitAutograd")
def _grid_retrieve(keys: Tensor, tables: Tensor, resolutions: list[int]) -> Tensor:
    if _takes_grid_sample(keys):
        return grid_sample_forward(keys, tables, resolutions)
    return reference.retrieve(keys, tables, resolutions)


@torch.library.register_fake("brics::grid_retrieve")
def _(keys: Tensor, tables: Tensor, resolutions: list[int]) -> Tensor:
    return keys.new_empty((*keys.shape[:2], len(resolutions) * tables.shape[-1]))


@torch.library.impl("brics::grid_retrieve_backward", "CompositeExplicitAutograd")
def _grid_retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, resolutions: list[int]
) -> tuple[Tensor, Tensor]:
    if _takes_grid_sample(keys):
        return grid_sample_backward(grad, keys, tables, resolutions)
    return reference.retrieve_backward(grad, keys, tables, resolutions)


@torch.library.register_fake("brics::grid_retrieve_backward")
def _(grad: Tensor, keys: Tensor, tables: Tensor, resolutions: list[int]) -> tuple[Tensor, Tensor]:
    return keys.new_empty(keys.shape), tables.new_empty(tables.shape)


def _setup_context(ctx, inputs, output) -> None:
    keys, tables, ctx.resolutions = inputs
    ctx.save_for_backward(keys, tables)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.brics.grid_retrieve_backward(grad.contiguous(), *ctx.saved_tensors, ctx.resolutions), None


torch.library.register_autograd("brics::grid_retrieve", _backward, setup_context=_setup_context)


def _takes_grid_sample(keys: Tensor) -> bool:
    return backend() == "torch" and keys.shape[-1] <= 3


def _levels(keys: Tensor, tables: Tensor, resolutions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each level as grid_sample's (input, grid), groups as its batch: views of the table, nothing copied.

    One key is a 2D grid of height 1. grid_sample wants (x, y, z) in [-1, 1], fastest axis first; with
    align_corners, -1 and 1 are the end vertices.
    """
    num_groups, num_queries, key_dim = keys.shape
    at = keys.flip(-1) * 2 - 1  # (G, M, D)
    if key_dim == 1:
        at = torch.cat([at, torch.zeros_like(at)], dim=-1)
    at = at.view(num_groups, *[1] * (at.shape[-1] - 1), num_queries, at.shape[-1])  # (G, 1, (1,) M, 2 or 3)
    for cells, (start, end) in zip(resolutions, pairwise(reference.level_offsets(resolutions, key_dim)), strict=True):
        lattice = (1, cells + 1) if key_dim == 1 else (cells + 1,) * key_dim
        yield tables[:, start:end].unflatten(1, lattice).movedim(-1, 1), at  # (G, F, ...)


def grid_sample_forward(keys: Tensor, tables: Tensor, resolutions: Sequence[int]) -> Tensor:
    features = [
        F.grid_sample(level, at, mode="bilinear", padding_mode="border", align_corners=True).flatten(2)
        for level, at in _levels(keys, tables, resolutions)
    ]
    return torch.cat(features, dim=1).transpose(1, 2).contiguous()  # (G, L * F, M) -> (G, M, L * F)


def grid_sample_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, resolutions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    key_dim, num_features = keys.shape[-1], tables.shape[-1]
    # At the very walls grid_sample's border has no slope; a few ulp inside it has the reference's one-sided one.
    keys = keys.clamp(WALL_ULPS * torch.finfo(keys.dtype).eps, 1 - WALL_ULPS * torch.finfo(keys.dtype).eps)
    keys_grad = torch.zeros_like(keys)
    tables_grad = []
    for (level, at), of_level in zip(_levels(keys, tables, resolutions), grad.split(num_features, dim=-1), strict=True):
        of_level = of_level.transpose(1, 2).unflatten(2, at.shape[1:-1])  # (G, F, 1, (1,) M)
        backward = torch.ops.aten.grid_sampler_3d_backward if key_dim == 3 else torch.ops.aten.grid_sampler_2d_backward
        level_grad, at_grad = backward(of_level.contiguous(), level, at, 0, 1, True, [True, True])  # bilinear, border
        tables_grad.append(level_grad.movedim(1, -1).flatten(1, -2))  # (G, V_l, F)
        keys_grad += 2 * at_grad.view(*keys.shape[:2], -1)[..., :key_dim].flip(-1)
    return keys_grad, torch.cat(tables_grad, dim=1)


def _flops(keys_shape, tables_shape, resolutions, *args, out_shape=None, **kwargs) -> int:
    """2^D corners per level and query: D - 1 multiplications for the weight, one multiply-add per feature."""
    num_groups, num_queries, key_dim = keys_shape
    return num_groups * num_queries * len(resolutions) * 2**key_dim * (key_dim - 1 + 2 * tables_shape[-1])


@register_flop_formula(torch.ops.brics.grid_retrieve)
def _forward_flops(keys_shape, tables_shape, resolutions, *args, **kwargs) -> int:
    return _flops(keys_shape, tables_shape, resolutions)


@register_flop_formula(torch.ops.brics.grid_retrieve_backward)
def _backward_flops(grad_shape, keys_shape, tables_shape, resolutions, *args, **kwargs) -> int:
    return 2 * _flops(keys_shape, tables_shape, resolutions)
