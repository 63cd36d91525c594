import pytest
import torch

from brics_cli.errors import UsageError
from brics_cli.kernels import GridSpec, functional, grid_retrieve, reference

DIMS = [1, 2, 3]


def example(key_dim: int, *, dtype: torch.dtype = torch.float64, num_queries: int = 37):
    generator = torch.Generator().manual_seed(key_dim)
    spec = GridSpec(key_dim, (3, 4, 7), 2)
    keys = torch.rand(2, num_queries, key_dim, dtype=dtype, generator=generator)
    keys[:, 0], keys[:, 1] = 0.0, 1.0  # both walls
    tables = torch.randn(2, spec.num_vertices, 2, dtype=dtype, generator=generator)
    return keys, tables, spec


@pytest.mark.parametrize("key_dim", DIMS)
def test_retrieval_at_a_vertex_is_that_vertex(key_dim: int) -> None:
    """Written out by hand for one level: the query i / N must give row sum i_d (N + 1)^(D - d)."""
    cells = 3
    vertices = torch.cartesian_prod(*[torch.arange(cells + 1)] * key_dim).view(-1, key_dim)
    tables = torch.arange(float(len(vertices)))[None, :, None].double()  # the row number is the feature
    found = reference.retrieve((vertices / cells).double()[None], tables, [cells])
    torch.testing.assert_close(found[0, :, 0], tables[0, :, 0])


@pytest.mark.parametrize("key_dim", DIMS)
def test_retrieval_of_a_linear_table_is_linear(key_dim: int) -> None:
    keys, _, _ = example(key_dim)
    spec = GridSpec(key_dim, (4, 9), 1)
    levels = []
    for cells in spec.resolutions:
        axis = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
        levels.append(torch.cartesian_prod(*[axis] * key_dim).view(-1, key_dim).sum(-1))
    tables = torch.cat(levels)[None, :, None].expand(2, -1, 1).contiguous()
    for found in grid_retrieve(keys, tables, spec).unbind(-1):
        torch.testing.assert_close(found, keys.sum(-1))


@pytest.mark.parametrize("key_dim", DIMS)
def test_the_torch_path_agrees_with_the_reference(key_dim: int) -> None:
    keys, tables, spec = example(key_dim)
    expected = reference.retrieve(keys, tables, spec.resolutions)
    torch.testing.assert_close(functional.grid_sample_forward(keys, tables, spec.resolutions), expected)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    of_torch = functional.grid_sample_backward(grad, keys, tables, spec.resolutions)  # at the walls too
    of_reference = reference.retrieve_backward(grad, keys, tables, spec.resolutions)
    for ours, spec_says in zip(of_torch, of_reference, strict=True):
        torch.testing.assert_close(ours, spec_says)


@pytest.mark.parametrize("key_dim", DIMS)
@pytest.mark.parametrize("backend", functional.BACKENDS)
def test_gradients_are_those_of_finite_differences(key_dim: int, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(functional, "backend", lambda: backend)
    keys, tables, spec = example(key_dim, num_queries=9)
    keys = (keys * 0.96 + 0.02).requires_grad_()
    assert torch.autograd.gradcheck(lambda k, t: grid_retrieve(k, t, spec), (keys, tables.requires_grad_()))


def test_float32_is_within_a_millionth_of_float64() -> None:
    keys, tables, spec = example(2)
    exact = reference.retrieve(keys, tables, spec.resolutions)
    torch.testing.assert_close(grid_retrieve(keys.float(), tables.float(), spec).double(), exact, atol=3e-6, rtol=0)


def test_the_op_passes_torchs_own_checks() -> None:
    keys, tables, spec = example(2, dtype=torch.float32, num_queries=5)
    inside = (keys * 0.9 + 0.05).requires_grad_()
    arguments = (inside, tables.requires_grad_(), list(spec.resolutions))
    torch.library.opcheck(torch.ops.brics.grid_retrieve.default, arguments)


def test_flops_do_not_depend_on_the_backend(monkeypatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    keys, tables, spec = example(2)
    counts = set()
    for backend in functional.BACKENDS:
        monkeypatch.setattr(functional, "backend", lambda backend=backend: backend)
        with FlopCounterMode(display=False) as counter:
            grid_retrieve(keys, tables, spec)
        counts.add(counter.get_total_flops())
    # 2 groups x 37 queries x 3 levels x 4 corners x (1 weight product + 2 x 2 features)
    assert counts == {2 * 37 * 3 * 4 * (1 + 2 * 2)}


def test_shapes_that_do_not_fit_are_refused() -> None:
    keys, tables, spec = example(2)
    with pytest.raises(ValueError, match="keys should be"):
        grid_retrieve(keys[..., :1], tables, spec)
    with pytest.raises(ValueError, match="tables should be"):
        grid_retrieve(keys, tables[:, 1:], spec)


def test_an_unknown_backend_is_named(monkeypatch) -> None:
    functional.backend.cache_clear()
    monkeypatch.setenv("BRICS_KERNELS", "tritno")
    with pytest.raises(UsageError, match=r"BRICS_KERNELS='tritno'.*reference, torch"):
        functional.backend()
    monkeypatch.undo()
    functional.backend.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("key_dim", DIMS)
def test_cuda_agrees_with_the_float64_reference(key_dim: int) -> None:
    keys, tables, spec = example(key_dim, num_queries=4096)
    exact = reference.retrieve(keys, tables, spec.resolutions)
    found = grid_retrieve(keys.float().cuda(), tables.float().cuda(), spec)
    torch.testing.assert_close(found.cpu().double(), exact, atol=1e-5, rtol=0)
