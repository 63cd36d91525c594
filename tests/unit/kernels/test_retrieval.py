from __future__ import annotations

import logging
from itertools import product

import numpy as np
import pytest
import scipy.interpolate
import torch
from torch.utils.flop_counter import FlopCounterMode
from unit.kernels.grids import example, lattice_of, spec_of

from brics_cli.errors import UsageError
from brics_cli.kernels import GridSpec, functional, grid_retrieve, reference, torch_retrieve

DIMS = [1, 2, 3]
SPECS = [
    spec_of(key_dim, positions, cap, index)
    for key_dim, positions, (cap, index) in product(
        DIMS, ("none", "image", "cell"), ((None, "tiled"), (40, "tiled"), (40, "hash"))
    )
]


def named(spec: GridSpec) -> str:
    return f"{spec.key_dim}D-{spec.positions}-{spec.index if spec.table_cap else 'dense'}"


# --- the reference is right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.table_cap is None], ids=named)
def test_dense_levels_are_those_of_scipy(spec: GridSpec) -> None:
    keys, tables, _ = example(spec)
    queries = reference.queries_of(keys, spec, lattice_of(spec))
    found = reference.retrieve(keys, tables, spec, lattice_of(spec)).unflatten(-1, (-1, spec.level_dim))
    for number, level in enumerate(spec.levels):
        axes = [np.linspace(0, 1, level.cells + 1)] * spec.query_dim
        grid = tables[1, level.start : level.start + level.rows].unflatten(0, (level.cells + 1,) * spec.query_dim)
        expected = scipy.interpolate.interpn(axes, grid.numpy(), queries[1].numpy())
        torch.testing.assert_close(found[1, :, number], torch.from_numpy(expected))


def test_positions_are_the_centres_of_tokens() -> None:
    image, cell = spec_of(1, "image"), spec_of(1, "cell")
    y, x = reference.positions(image, (2, 4))
    assert (y.tolist(), x.tolist()) == ([0.25, 0.75], [0.125, 0.375, 0.625, 0.875])
    y, x = reference.positions(cell, (3, 4))  # cells of 2 x 2 tokens; the last row begins one anew
    assert (y.tolist(), x.tolist()) == ([0.25, 0.75, 0.25], [0.25, 0.75, 0.25, 0.75])
    queries = reference.queries_of(torch.zeros(1, 16, 1), image, (2, 4))
    assert queries[0, 9].tolist() == [0, 0.25, 0.375]  # the second image's token (0, 1): rows first, y before x


def test_a_level_above_the_cap_finds_rows_as_written_by_hand() -> None:
    vertex = [torch.tensor([3]), torch.tensor([2]), torch.tensor([5])]
    tiled, hashed = spec_of(3, cap=40), spec_of(3, cap=40, index="hash")
    level = tiled.levels[2]  # 5 cells: 216 vertices in 40 rows, after two levels of 40 and 27
    assert (level.rows, level.start, level.dense) == (40, 67, False)
    assert reference.row_of(vertex, tiled, level).item() == 67 + (3 * 36 + 2 * 6 + 5) % 40
    by_hand = 3 ^ (2 * 2654435761 % 2**32) ^ (5 * 805459861 % 2**32)
    assert reference.row_of(vertex, hashed, level).item() == 67 + by_hand % 40
    assert reference.row_of(vertex, hashed, hashed.levels[1]).item() == 40 + (3 * 9 + 2 * 3 + 5)  # dense: no hash


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_the_references_gradients_are_autograds(spec: GridSpec) -> None:
    keys, tables, grad = example(spec)
    keys, tables = (keys * 0.97 + 0.01).requires_grad_(), tables.requires_grad_()
    features = reference.retrieve(keys, tables, spec, lattice_of(spec))
    expected = torch.autograd.grad(features, (keys, tables), grad)
    found = reference.retrieve_backward(grad, keys.detach(), tables.detach(), spec, lattice_of(spec))
    torch.testing.assert_close(found, expected)


def test_the_papers_tables_have_its_published_size() -> None:
    """64 x 64 x 4 codes: 4 groups, 16 levels of 16 to 64 cells, 2^18 rows at most: 18.6 M (DESIGN 3.1)."""
    resolutions = tuple(int(np.ceil(round(16 * 4 ** (level / 15), 9))) for level in range(16))
    spec = GridSpec(1, resolutions, 4, "image", table_cap=2**18)
    assert round(4 * spec.num_vertices * 4 / 1e6, 2) == 18.63
    assert [level.dense for level in spec.levels] == [True] * 15 + [False]


# --- the torch backend is the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["lattice", "grid_sample", "gather"])
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_the_torch_backend_agrees_with_the_reference(spec: GridSpec, way: str, monkeypatch) -> None:
    """Each of its three ways, at the walls too, wherever the way can be gone; the gather in chunks."""
    monkeypatch.setattr(torch_retrieve, "VERTICES_PER_TOKEN", 1e9 if way == "lattice" else 0)
    if way == "gather":
        monkeypatch.setattr(torch_retrieve, "_is_sampled", lambda *_: False)
        monkeypatch.setattr(torch_retrieve, "CORNERS_PER_CHUNK", 200)
    keys, tables, grad = example(spec)
    lattice = lattice_of(spec)
    torch.testing.assert_close(
        torch_retrieve.retrieve(keys, tables, spec, lattice), reference.retrieve(keys, tables, spec, lattice)
    )
    torch.testing.assert_close(
        torch_retrieve.retrieve_backward(grad, keys, tables, spec, lattice),
        reference.retrieve_backward(grad, keys, tables, spec, lattice),
    )
    torch.testing.assert_close(
        torch_retrieve.gather_tables_backward(grad, keys, tables, spec, lattice),
        reference.retrieve_backward(grad, keys, tables, spec, lattice)[1],
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("key_dim", DIMS)
def test_gradients_are_those_of_finite_differences(key_dim: int, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(functional, "backend", lambda device_type: backend)
    for positions, cap in (("none", None), ("none", 20), ("image", 20)):
        spec = GridSpec(key_dim, (2, 3), 2, positions, table_cap=cap)
        lattice = None if positions == "none" else (1, 2)
        keys, tables, _ = example(spec, num_groups=1)
        keys = (keys[:, :4] * 0.9 + 0.043).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda k, t, spec=spec, lattice=lattice: grid_retrieve(k, t, spec, lattice=lattice),
            (keys, tables.requires_grad_()),
            fast_mode=True,
        )


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[9], SPECS[13], SPECS[18]], ids=named)
def test_float32_and_bf16_are_as_exact_as_stated(spec: GridSpec) -> None:
    """float32 within 1e-5, at 50 cells. A bf16 table gives float32 features of its own values, and a bf16 gradient."""
    keys, tables, grad = example(spec)
    lattice = lattice_of(spec)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = tables.to(dtype)
        leaf = rounded.clone().requires_grad_()
        features = grid_retrieve(keys.float(), leaf, spec, lattice=lattice)
        assert features.dtype == torch.float32
        exact = reference.retrieve(keys, rounded.double(), spec, lattice)
        torch.testing.assert_close(features.double(), exact, atol=1e-5, rtol=0)
        features.backward(grad.float())
        of_tables = reference.retrieve_backward(grad, keys, rounded.double(), spec, lattice)[1]
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(leaf.grad.double(), of_tables, atol=3e-4, rtol=tolerance)  # atol: WALL_ULPS


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[13], SPECS[26]], ids=named)
def test_a_key_that_is_not_a_number_breaks_nothing(spec: GridSpec) -> None:
    """A diverging encoder must reach the training loop's guard, not an index error."""
    keys, tables, grad = example(spec)
    keys[0, 3] = torch.nan
    for backend in (reference, torch_retrieve):
        features = backend.retrieve(keys, tables, spec, lattice_of(spec))
        assert features[0, 3].isnan().all() and features.isnan().sum() == spec.num_features
        backend.retrieve_backward(grad, keys, tables, spec, lattice_of(spec))


def test_the_gathers_memory_is_bounded(monkeypatch) -> None:
    """No chunk has more corner reads than stated, however many tokens there are."""
    seen = []
    original = torch_retrieve._corners
    monkeypatch.setattr(torch_retrieve, "CORNERS_PER_CHUNK", 256)
    monkeypatch.setattr(torch_retrieve, "_corners", lambda *args: seen.append(original(*args)) or seen[-1])
    spec = GridSpec(2, (8,), 2, "image", table_cap=40)
    keys, tables, _ = example(spec)
    torch_retrieve.retrieve(keys, tables, spec, lattice_of(spec))
    assert max(rows.numel() for rows, _, _ in seen) <= 256 and len(seen) == 6  # 2 groups x 48 tokens x 16 corners


# --- the op -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "image"])
def test_the_op_passes_torchs_own_checks(positions: str) -> None:
    spec = GridSpec(1, (3, 6), 2, positions, table_cap=60)
    keys, tables, _ = example(spec, num_images=1)
    inside = (keys.float() * 0.9 + 0.05).requires_grad_()
    arguments = (inside, tables.float().requires_grad_(), *spec.as_ints(lattice_of(spec)))
    torch.library.opcheck(torch.ops.brics.grid_retrieve.default, arguments)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_results_lie_as_the_fake_kernels_say_however_the_keys_do(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code believes them. Features lie token by token, so that a map of them is channels last; keys are a
    transposed view of the codes."""
    monkeypatch.setattr(functional, "backend", lambda device_type: backend)
    spec = spec_of(2)
    keys = torch.rand(2, 2, 12).transpose(1, 2).requires_grad_()  # (G, M, D)
    tables = torch.rand(2, spec.num_vertices, spec.level_dim)
    features = grid_retrieve(keys, tables, spec)
    grads = torch.ops.brics.grid_retrieve_backward(torch.ones_like(features), keys, tables, *spec.as_ints(None))
    assert all(each.is_contiguous() for each in (features.transpose(0, 1), *grads))
    with torch.device("meta"):
        fake = torch.ops.brics.grid_retrieve(keys.to("meta"), tables.to("meta"), *spec.as_ints(None))
    assert (fake.shape, fake.stride()) == (features.shape, features.stride())


def test_the_op_compiles_into_one_graph_with_its_gradients() -> None:
    spec = spec_of(1, "image", 40)
    keys, tables, grad = example(spec)
    leaves = keys.float().requires_grad_(), tables.float().requires_grad_()
    compiled = torch.compile(
        lambda k, t: 2 * grid_retrieve(k, t, spec, lattice=(4, 6)), backend="aot_eager", fullgraph=True
    )
    found = torch.autograd.grad(compiled(*leaves), leaves, grad.float())
    expected = torch.autograd.grad(2 * grid_retrieve(*leaves, spec, lattice=(4, 6)), leaves, grad.float())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("spec", [SPECS[10], SPECS[13]], ids=named)
def test_flops_do_not_depend_on_the_backend(spec: GridSpec, monkeypatch) -> None:
    keys, tables, grad = example(spec)
    keys.requires_grad_()
    counts = set()
    for backend in ("reference", "torch"):
        monkeypatch.setattr(functional, "backend", lambda device_type, backend=backend: backend)
        with FlopCounterMode(display=False) as counter:
            grid_retrieve(keys, tables, spec, lattice=lattice_of(spec)).backward(grad)
        counts.add(counter.get_total_flops())
    dims = spec.query_dim  # 2 groups x 48 tokens x 3 levels x corners x (weight products + 2 x 3 features)
    assert counts == {3 * 2 * 48 * 3 * 2**dims * (dims - 1 + 2 * 3)}


def test_what_does_not_fit_is_refused() -> None:
    spec = spec_of(2, "image")
    keys, tables, _ = example(spec)
    with pytest.raises(ValueError, match="keys should be"):
        grid_retrieve(keys[..., :1], tables, spec, lattice=(4, 6))
    with pytest.raises(ValueError, match="tables should be"):
        grid_retrieve(keys, tables[:, 1:], spec, lattice=(4, 6))
    with pytest.raises(ValueError, match="float32 or float64"):
        grid_retrieve(keys.bfloat16(), tables, spec, lattice=(4, 6))
    with pytest.raises(ValueError, match="give a lattice"):
        grid_retrieve(keys, tables, spec)
    with pytest.raises(ValueError, match="48 tokens are not whole images of 5 x 5"):
        grid_retrieve(keys, tables, spec, lattice=(5, 5))
    with pytest.raises(ValueError, match="key_dim should be 1, 2 or 3"):
        GridSpec(4, (8,), 2)
    with pytest.raises(ValueError, match="positions should be one of"):
        GridSpec(1, (8,), 2, "absolute")  # type: ignore[arg-type]


# --- which backend ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_choice(monkeypatch):
    """The choice of a fresh process, and afterwards this one's again."""
    functional.backend.cache_clear()
    functional.missing_for_triton.cache_clear()
    monkeypatch.delenv("BRICS_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield monkeypatch
    monkeypatch.undo()
    functional.backend.cache_clear()
    functional.missing_for_triton.cache_clear()


def test_the_backend_is_chosen_by_device_and_logged_once(fresh_choice, caplog) -> None:
    fresh_choice.setattr(functional.importlib.util, "find_spec", lambda name: object())
    with caplog.at_level(logging.INFO, logger="brics_cli.kernels.functional"):
        assert [functional.backend(device) for device in ("cpu", "cuda", "mps", "cpu")] == [
            "torch", "triton", "torch", "torch",
        ]  # fmt: skip
    assert caplog.messages == [
        "retrieval on cpu: torch backend", "retrieval on cuda: triton backend", "retrieval on mps: torch backend",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["triton", "a C compiler", "Python's C headers"])
def test_without_what_triton_needs_cuda_takes_the_torch_backend_and_says_so_once(
    fresh_choice, caplog, tmp_path, missing: str
) -> None:
    find_spec = None if missing == "triton" else object()
    fresh_choice.setattr(functional.importlib.util, "find_spec", lambda name: find_spec)
    fresh_choice.delenv("CC", raising=False)
    fresh_choice.setattr(functional.shutil, "which", lambda name: None if missing == "a C compiler" else f"/{name}")
    fresh_choice.setattr(functional.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert [functional.backend("cuda") for _ in range(3)] == ["torch"] * 3
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("warning: retrieval on CUDA goes by torch") and missing.split()[-1] in said
    assert "install" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tritno", r"BRICS_KERNELS='tritno' is not a backend. Use one of: reference, torch, triton"),
        ("triton", r"triton does not run on cpu tensors. Use --device cuda, or BRICS_KERNELS=torch"),
    ],
)
def test_a_backend_that_cannot_be_is_refused_in_one_line(fresh_choice, name: str, message: str) -> None:
    fresh_choice.setattr(functional.importlib.util, "find_spec", lambda name: object())
    fresh_choice.setenv("BRICS_KERNELS", name)
    with pytest.raises(UsageError, match=message) as error:
        functional.backend("cpu")
    assert "\n" not in str(error.value)


def test_the_refusal_comes_through_torchs_dispatcher(fresh_choice) -> None:
    fresh_choice.setenv("BRICS_KERNELS", "tritno")
    spec = spec_of(1)
    keys, tables, _ = example(spec)
    with pytest.raises(UsageError, match="is not a backend"):
        grid_retrieve(keys, tables, spec)
