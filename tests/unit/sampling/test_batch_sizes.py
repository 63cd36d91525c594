"""Out of memory halves batches, and the record says which seeds were computed in which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brics_cli.errors import MachineError, as_brics_error
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.engine import OutOfMemory, attempt, halved

CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30), st.sampled_from([1, 2, 4, 8])), min_size=1))
def test_the_record_is_what_was_said_last_of_each_seed(said: list[tuple[int, int, int]]) -> None:
    sizes, expected = BatchSizes(8), {}
    for first, length, size in said:
        sizes.record(range(first, first + length), size)
        expected |= dict.fromkeys(range(first, first + length), size)
    assert {seed: size for first, last, size in sizes.runs for seed in range(first, last + 1)} == expected
    assert sizes.runs == sorted(sizes.runs)
    for before, after in zip(sizes.runs, sizes.runs[1:], strict=False):
        assert before[1] < after[0] and (before[1] + 1, before[2]) != (after[0], after[2])  # as few as can be
    assert all(sizes.at(seed) == size for seed, size in expected.items())
    assert sizes.at(1000) == min(expected.values())
    assert sizes.shrunk == (set(expected.values()) != {8})


def test_what_memory_has_shown_to_be_too_much_is_not_tried_again() -> None:
    sizes = BatchSizes(32, [(0, 99, 32), (100, 199, 8)])
    assert [sizes.at(seed) for seed in (0, 99, 100, 200)] == [32, 32, 8, 8]
    sizes.limit = 16
    assert [sizes.at(seed) for seed in (0, 99, 100, 200)] == [16, 16, 8, 8]


def test_the_record_of_another_run_is_not_taken(tmp_path: Path) -> None:
    sizes = BatchSizes(32)
    sizes.record(range(10), 16)
    sizes.write(tmp_path, identity={"seeds": "0-9"})
    assert BatchSizes.read(tmp_path, 32, identity={"seeds": "0-9"}).runs == [(0, 9, 16)]
    assert BatchSizes.read(tmp_path, 32, identity={"seeds": "0-8"}).runs == []
    (tmp_path / "batch-sizes.json").write_text('{"identity": {"seeds": "0-9"}, "batch_sizes": [[1')
    assert BatchSizes.read(tmp_path, 32, identity={"seeds": "0-9"}).runs == []
    BatchSizes.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError("Unable to allocate 8.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception) -> None:
    def fail() -> None:
        raise error

    said = attempt(fail, device=CPU)
    assert isinstance(said, OutOfMemory) and said.reason == (str(error) or "out of memory").splitlines()[0]
    assert isinstance(as_brics_error(error), MachineError), "where nothing can be halved it is no bug either"


def test_torchs_own_allocator_counts_and_other_errors_do_not() -> None:
    said = attempt(lambda: torch.empty(2**60), device=CPU)  # nobody has as much
    assert isinstance(said, OutOfMemory) and "\n" not in said.reason
    with pytest.raises(RuntimeError, match="mat1 and mat2") as other:
        attempt(lambda: torch.ones(2, 3) @ torch.ones(2, 3), device=CPU)
    assert as_brics_error(other.value) is None


def test_batches_are_halved_down_to_one_image() -> None:
    memory = OutOfMemory("CUDA out of memory")
    assert [halved(size, memory, device=CPU) for size in (32, 25, 3, 2)] == [16, 12, 1, 1]
    with pytest.raises(MachineError, match=r"one image at a time \(CUDA out of memory\)\. Free the memory"):
        halved(1, memory, device=CPU)
