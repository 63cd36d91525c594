"""The only door to feature-grid retrieval: one op, whichever backend computes it.

`brics::grid_retrieve` is a `torch.library` op with a fake kernel, autograd and a FLOP formula, so that
torch.compile, meta tensors and the FLOP counter see the same op on every backend. The backend is chosen once per kind
of device: `triton` on CUDA where Triton can build its kernels, `torch` elsewhere, or what
`BRICS_KERNELS=reference|torch|triton` says. Letters as in `reference`.

What the op gives lies token by token, (M, G, L * F), so that a map of features is channels last without a copy.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from brics_cli.errors import UsageError
from brics_cli.kernels import reference, torch_retrieve
from brics_cli.kernels.reference import by_token
from brics_cli.kernels.spec import GridSpec, from_ints

BACKENDS = ("reference", "torch", "triton")
KEY_DTYPES = (torch.float32, torch.float64)
TABLE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

logger = logging.getLogger(__name__)


@functools.cache
def backend(device_type: str = "cpu") -> str:
    """The backend for tensors on a device of this type (`cpu`, `cuda`, ...), logged at its first choice.

    Raises UsageError when BRICS_KERNELS names none, or `triton` where it cannot run.
    """
    forced = os.environ.get("BRICS_KERNELS")
    if forced is not None and forced not in BACKENDS:
        raise UsageError(f"BRICS_KERNELS={forced!r} is not a backend", next=f"Use one of: {', '.join(BACKENDS)}.")
    if forced == "triton" and importlib.util.find_spec("triton") is None:
        raise UsageError("BRICS_KERNELS=triton, but triton is not installed", next="Use BRICS_KERNELS=torch.")
    if forced == "triton" and device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UsageError(
            f"BRICS_KERNELS=triton, but triton does not run on {device_type} tensors",
            next="Use --device cuda, or BRICS_KERNELS=torch, or TRITON_INTERPRET=1 to interpret the kernels (slow).",
        )
    if forced is None and device_type == "cuda" and (missing := missing_for_triton()):
        logger.warning("warning: retrieval on CUDA goes by torch, which is slower: Triton needs %s", missing)
    name = forced or ("triton" if device_type == "cuda" and not missing_for_triton() else "torch")
    logger.info("retrieval on %s: %s backend%s", device_type, name, " (BRICS_KERNELS)" if forced else "")
    return name


@functools.cache
def missing_for_triton() -> str:
    """What Triton, and so torch.compile on CUDA, needs to build what launches a kernel and this machine has not, with
    what to install; empty where nothing is missing."""
    if importlib.util.find_spec("triton") is None:
        return "to be installed: pip install triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler: apt install gcc, or set CC"
    if not Path(sysconfig.get_paths(scheme=sysconfig.get_default_scheme())["include"], "Python.h").is_file():
        return "Python's C headers: apt install python3-dev"
    return ""


def grid_retrieve(keys: Tensor, tables: Tensor, spec: GridSpec, *, lattice: tuple[int, int] | None = None) -> Tensor:
    """Features of all levels at `keys`, by D-linear interpolation; differentiable in both tensors.

    keys (G, M, key_dim) in [0, 1], float32 or float64; tables (G, V, F), float32, bf16 or float64 -> (G, M, L * F),
    float64 where either is, float32 otherwise: a bf16 table is read in bf16, and interpolated and summed in float32;
    its gradient is summed in float32 and then rounded to bf16. A key outside [0, 1] gives no defined result (bound them
    first); a NaN gives NaN features, and gradients without a defined result.

    `lattice` = (H_d, W_d), wanted exactly when `spec.positions` is not "none": the tokens are those of whole images
    (M = B * H_d * W_d, row-major). Token (i, j) has y = (i + 1/2) / H_d for positions "image", and
    y = (i mod cell + 1/2) / cell for "cell"; x likewise. The query is (keys, y, x); positions get no gradient.

    Raises ValueError when shapes or dtypes do not fit `spec`.
    """
    if keys.dim() != 3 or keys.shape[-1] != spec.key_dim:
        raise ValueError(f"keys should be (G, M, {spec.key_dim}), got {tuple(keys.shape)}")
    if tables.shape != (keys.shape[0], spec.num_vertices, spec.level_dim):
        raise ValueError(
            f"tables should be {(keys.shape[0], spec.num_vertices, spec.level_dim)}, got {tuple(tables.shape)}"
        )
    if keys.dtype not in KEY_DTYPES or tables.dtype not in TABLE_DTYPES:
        raise ValueError(
            "keys should be float32 or float64 (bf16 would round them to steps of 1/256), tables float32, bfloat16 or "
            f"float64, got {keys.dtype} and {tables.dtype}"
        )
    if (lattice is None) != (spec.positions == "none"):
        raise ValueError(
            f"positions {spec.positions!r} and lattice {lattice} do not fit: give a lattice with positions"
        )
    if lattice is not None and keys.shape[1] % (lattice[0] * lattice[1]) != 0:
        raise ValueError(f"{keys.shape[1]} tokens are not whole images of {lattice[0]} x {lattice[1]}")
    return torch.ops.brics.grid_retrieve(keys, tables, *spec.as_ints(lattice))


# torch.library.define and impl, not custom_op: the same op to torch.compile, autograd and the FLOP counter, but a
# custom_op imports torch._dynamo at its first call, five seconds of every short command.
torch.library.define("brics::grid_retrieve", "(Tensor keys, Tensor tables, int[] resolutions, int[] layout) -> Tensor")
torch.library.define(
    "brics::grid_retrieve_backward",
    "(Tensor grad, Tensor keys, Tensor tables, int[] resolutions, int[] layout) -> (Tensor, Tensor)",
)


@torch.library.impl("brics::grid_retrieve", "CompositeExplicitAutograd")
def _grid_retrieve(keys: Tensor, tables: Tensor, resolutions: list[int], layout: list[int]) -> Tensor:
    spec, lattice = from_ints(keys.shape[-1], tables.shape[-1], resolutions, layout)
    return by_token(_implementation(keys, tables).retrieve(keys, tables, spec, lattice))  # as the fake kernel says


@torch.library.register_fake("brics::grid_retrieve")
def _(keys: Tensor, tables: Tensor, resolutions: list[int], layout: list[int]) -> Tensor:
    groups, tokens, _ = keys.shape
    shape = (tokens, groups, len(resolutions) * tables.shape[-1])
    return keys.new_empty(shape, dtype=reference.compute_dtype(keys, tables)).transpose(0, 1)


@torch.library.impl("brics::grid_retrieve_backward", "CompositeExplicitAutograd")
def _grid_retrieve_backward(
    grad: Tensor, keys: Tensor, tables: Tensor, resolutions: list[int], layout: list[int]
) -> tuple[Tensor, Tensor]:
    spec, lattice = from_ints(keys.shape[-1], tables.shape[-1], resolutions, layout)
    keys_grad, tables_grad = _implementation(keys, tables).retrieve_backward(grad, keys, tables, spec, lattice)
    return keys_grad.contiguous(), tables_grad.contiguous()


@torch.library.register_fake("brics::grid_retrieve_backward")
def _(grad: Tensor, keys: Tensor, tables: Tensor, resolutions: list[int], layout: list[int]) -> tuple[Tensor, Tensor]:
    return keys.new_empty(keys.shape), tables.new_empty(tables.shape)


def _setup_context(ctx, inputs, output) -> None:
    keys, tables, ctx.resolutions, ctx.layout = inputs
    ctx.save_for_backward(keys, tables)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    grads = torch.ops.brics.grid_retrieve_backward(by_token(grad), *ctx.saved_tensors, ctx.resolutions, ctx.layout)
    return *grads, None, None


torch.library.register_autograd("brics::grid_retrieve", _backward, setup_context=_setup_context)


def _implementation(keys: Tensor, tables: Tensor) -> ModuleType:
    """The module that computes: float64 is not for the Triton kernels, which compute in float32."""
    name = backend(keys.device.type)
    if name == "triton" and reference.compute_dtype(keys, tables) == torch.float32:
        from brics_cli.kernels import triton_retrieve  # imports triton, which a machine without CUDA need not have

        return triton_retrieve
    return reference if name == "reference" else torch_retrieve


@register_flop_formula(torch.ops.brics.grid_retrieve)
def _forward_flops(keys_shape, tables_shape, resolutions, layout, *args, **kwargs) -> int:
    """2^D corners per level and query: D - 1 multiplications for the weight, one multiply-add per feature.

    G * M * L * 2^D * (D - 1 + 2 F), D counting the two axes of positions: the same for every backend, whichever way
    it takes to the result.
    """
    num_groups, num_queries, key_dim = keys_shape
    query_dim = from_ints(key_dim, tables_shape[-1], resolutions, layout)[0].query_dim
    return num_groups * num_queries * len(resolutions) * 2**query_dim * (query_dim - 1 + 2 * tables_shape[-1])


@register_flop_formula(torch.ops.brics.grid_retrieve_backward)
def _backward_flops(grad_shape, keys_shape, tables_shape, resolutions, layout, *args, **kwargs) -> int:
    """Every corner again, for the gradient of its row and for that of the keys: twice the forward's count."""
    return 2 * _forward_flops(keys_shape, tables_shape, resolutions, layout)
