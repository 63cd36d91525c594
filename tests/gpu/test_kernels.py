"""Retrieval on CUDA: the Triton kernels against the float64 reference, their fixed order, and one compiled graph."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from brics_cli.kernels import GridSpec, functional, grid_retrieve, reference, torch_retrieve

pytestmark = pytest.mark.gpu

LATTICE = (16, 12)
SPECS = [
    GridSpec(key_dim, (4, 16, 31), level_dim, positions, 4, cap, index)
    for key_dim, positions, (cap, index), level_dim in product(
        (1, 2, 3), ("none", "image", "cell"), ((None, "tiled"), (1000, "tiled"), (1024, "hash")), (4,)
    )
    if key_dim + (positions != "none") * 2 < 5 or cap is not None  # 32^5 dense rows are not for a test
] + [GridSpec(2, (4, 8), 3), GridSpec(2, (4, 8), 1, "image", table_cap=100)]


def named(spec: GridSpec) -> str:
    return f"{spec.key_dim}D-{spec.positions}-{spec.index if spec.table_cap else 'dense'}-F{spec.level_dim}"


def lattice_of(spec: GridSpec) -> tuple[int, int] | None:
    return None if spec.positions == "none" else LATTICE


def example(spec: GridSpec, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """On the GPU: keys with both walls, 3 groups of 11 images (no multiple of any block), tables and a gradient."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = 11 * LATTICE[0] * LATTICE[1]
    keys = torch.rand(3, num_tokens, spec.key_dim, generator=generator)
    keys[:, 0], keys[:, 1] = 0.0, 1.0
    tables = torch.randn(3, spec.num_vertices, spec.level_dim, generator=generator)
    grad = torch.randn(3, num_tokens, spec.num_features, generator=generator)
    return keys.cuda(), tables.to(dtype).cuda(), grad.cuda()


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def test_triton_is_the_choice_on_cuda(monkeypatch) -> None:
    monkeypatch.delenv("BRICS_KERNELS", raising=False)
    functional.backend.cache_clear()
    assert functional.backend("cuda") == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_cuda_agrees_with_the_float64_reference(spec: GridSpec, backend: str, dtype, monkeypatch) -> None:
    monkeypatch.setattr(functional, "backend", lambda device_type: backend)
    keys, tables, grad = example(spec, dtype)
    lattice = lattice_of(spec)
    leaves = keys.requires_grad_(), tables.requires_grad_()
    features = grid_retrieve(*leaves, spec, lattice=lattice)
    keys_grad, tables_grad = torch.autograd.grad(features, leaves, grad)
    assert (features.dtype, keys_grad.dtype, tables_grad.dtype) == (torch.float32, torch.float32, dtype)
    doubles = keys.detach().double(), tables.detach().double()
    exact_keys_grad, exact_tables_grad = reference.retrieve_backward(grad.double(), *doubles, spec, lattice)
    assert relative_error(features, reference.retrieve(*doubles, spec, lattice)) < 4e-6
    assert relative_error(keys_grad, exact_keys_grad) < 1e-4  # a key within an ulp of a vertex may take its other side
    # bf16: 8 bits. Otherwise atomics add thousands of terms in any order, and grid_sample's walls are some ulp inside.
    tolerance = 2**-8 if dtype == torch.bfloat16 else {"triton": 2e-5, "torch": 2e-4}[backend]
    assert relative_error(tables_grad, exact_tables_grad) < tolerance


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[4], SPECS[10]], ids=named)
def test_deterministic_algorithms_give_the_same_bits_every_time(spec: GridSpec, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(functional, "backend", lambda device_type: backend)
    keys, tables, grad = example(spec)
    exact = reference.retrieve_backward(grad.double(), keys.double(), tables.double(), spec, lattice_of(spec))
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(5):
            leaves = keys.clone().requires_grad_(), tables.clone().requires_grad_()
            features = grid_retrieve(*leaves, spec, lattice=lattice_of(spec))
            runs.append((features.detach(), *torch.autograd.grad(features, leaves, grad)))
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))
    assert relative_error(runs[0][2], exact[1]) < 2e-5


def test_torch_compile_takes_the_op_as_one_graph() -> None:
    spec = GridSpec(1, (16, 64), 4, "image", table_cap=2**18)
    keys, tables, grad = example(spec)
    leaves = keys.requires_grad_(), tables.requires_grad_()
    compiled = torch.compile(lambda k, t: 2 * grid_retrieve(k, t, spec, lattice=LATTICE).relu(), fullgraph=True)
    found = compiled(*leaves)
    expected = 2 * grid_retrieve(*leaves, spec, lattice=LATTICE).relu()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), atol=1e-4, rtol=1e-4
    )


def test_autocast_changes_nothing() -> None:
    spec = GridSpec(1, (16, 64), 4, "image", table_cap=2**18)
    keys, tables, _ = example(spec)
    expected = grid_retrieve(keys, tables, spec, lattice=LATTICE)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(grid_retrieve(keys, tables, spec, lattice=LATTICE), expected)
        of_torch = torch_retrieve.retrieve(keys, tables, spec, LATTICE)
    torch.testing.assert_close(of_torch, expected, atol=1e-5, rtol=0)


def test_a_key_that_is_not_a_number_leaves_the_device_working() -> None:
    spec = GridSpec(2, (4, 16), 4, table_cap=100)
    keys, tables, grad = example(spec)
    keys[0, 3] = torch.nan
    leaves = keys.requires_grad_(), tables.requires_grad_()
    features = grid_retrieve(*leaves, spec)
    torch.autograd.grad(features, leaves, grad)
    torch.cuda.synchronize()
    assert features[0, 3].isnan().all() and features.isnan().sum() == spec.num_features
