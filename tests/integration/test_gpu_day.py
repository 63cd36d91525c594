"""The scripts of the GPU day, rehearsed on the CPU in their quick form: every stage runs to its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import brics, environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_stage_of_the_day_runs(photographs: Path, tmp_path: Path) -> None:
    for folder in ("brics_cli", "tests", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    brics("pack", photographs, "--out", "shards", "--size", 64, cwd=tmp_path, check=0)
    settings = {
        **environment(), "DAY_WHEELS": "0", "DAY_DEVICE": "cpu", "DAY_QUICK": "1", "DAY_SLOW": "30",
        "DAY_DEADLINE": "3000", "DAY_TEST_PROCESSES": "1", "DAY_PYTHON": sys.executable, "OUT": str(tmp_path / "out"),
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    prepare = ("bash", "tests/gpu/day/prepare.sh", "tests/gpu/day", "shards", sys.executable)
    subprocess.run(prepare, cwd=tmp_path, env=settings, check=True)
    for run in ("measure", "train"):
        subprocess.run(("bash", ".gpu-day/day.sh", run), cwd=tmp_path, env=settings, check=True)
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    log = (tmp_path / "out/log.txt").read_text()[-6000:]
    assert [
        row for row in rows if "failed" in row or row.get("exit", 0) != 0 or isinstance(row.get("skipped"), str)
    ] == [], log
    stages = {row["stage"] for row in rows}
    assert {"env", "tests", "retrieval", "train", "encode-path", "sample-network", "validation", "transforms"} <= stages
    assert all(row["ok"] for row in rows if row["stage"] in ("nccl-one-rank", "two-processes"))
    assert (tmp_path / "out/sheet.png").is_file() and (tmp_path / "out/ae.tar.00").is_file()
