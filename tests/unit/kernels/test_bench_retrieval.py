from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from commands import brics

from brics_cli.bench import retrieval
from brics_cli.bench.timing import median_seconds
from brics_cli.kernels import GridSpec

CPU = torch.device("cpu")


def test_the_benchmark_measures_the_cpu_backends_and_says_why_not_the_other(tmp_path: Path) -> None:
    arguments = ("--scale", "code", "--batch-size", 1, "--repeats", 1, "--tables-dtype", "bf16", "--device", "cpu")
    found = json.loads(brics("bench", "retrieval", *arguments, "--json", cwd=tmp_path, check=0).stdout)
    assert found["tables_dtype"] == "bf16" and found["copy_gb_per_s"] > 0
    of_backend = {row["backend"]: row for row in found["timings"]}
    assert of_backend["triton"]["not_measured"] == "not measured: needs CUDA"
    for backend in ("reference", "torch"):
        row = of_backend[backend]
        assert row["forward"]["ms_per_img"] > 0 and row["forward_backward"]["ms_per_img"] > 0
        assert 0 < row["forward"]["of_unique_floor"] < row["forward"]["of_corner_floor"]
        assert row["peak_memory_mib"] is None


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    finished = brics("bench", "retrieval", "--scale", "papre", cwd=tmp_path, check=2)
    assert "papre" in finished.stderr


def test_the_floors_count_bytes_as_written_by_hand() -> None:
    spec = GridSpec(1, (2, 4), 4)  # 3 + 5 rows
    keys = torch.tensor([[[0.1], [0.2], [0.9]]])  # level 0: cells 0 0 1, so 3 rows; level 1: cells 0 0 3, so 4 rows
    tables = torch.zeros(1, spec.num_vertices, 4, dtype=torch.bfloat16)
    features, row = 3 * 8 * 4, 4 * 2
    unique, corners = 12 + 7 * row + features, 12 + 3 * 2 * 2 * row + features
    backward = 24 + 7 * row + features + 8 * row, 24 + 3 * 2 * 2 * (row + 16) + features
    floors = retrieval._floor_bytes(keys, tables, spec, None)
    assert floors == ((unique, corners), (unique + backward[0], corners + backward[1]))


def test_a_time_budget_ends_the_repeats_after_two() -> None:
    calls: list[float] = []

    def work() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.01)

    assert median_seconds(work, device=CPU, repeats=50, budget_s=0.0) >= 0.01
    assert len(calls) == 2
    median_seconds(work, device=CPU, repeats=2, warmup=1)
    assert len(calls) == 5
