"""Training on CUDA: the discriminator in bf16, torch.compile, and two processes on two GPUs where there are two."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import brics, environment
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu

SETTINGS = (
    *("--recipe", "tiny", "--steps", 40, "--set", "training.precision=bf16", "--set", "training.log_every=1"),
    *("--set", "gan.weight=0.2", "--set", "gan.ramp_steps=10", "--set", "loss.perceptual.kind=multiscale"),
)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    return [row["train/l1"] for row in rows if "train/l1" in row]


@pytest.mark.parametrize("compile_", ["false", "true"])
def test_bf16_with_a_discriminator_learns(photographs: Path, tmp_path: Path, compile_: str) -> None:
    settings = (*SETTINGS, "--set", f"training.compile={compile_}", "--device", "cuda")
    brics("train-ae", photographs, *settings, "--out", "run", cwd=tmp_path, check=0)
    values = losses(tmp_path / "run")
    assert values[-1] < 0.7 * values[0]
    names = load_file(tmp_path / "run" / "model" / "model.safetensors").keys()
    assert not any("_orig_mod" in name for name in names), "torch.compile renamed the weights"
    brics("train-ae", "--resume", "run", "--steps", 44, "--device", "cuda", cwd=tmp_path, check=0)


def test_the_benchmark_measures_the_devices_memory(tmp_path: Path) -> None:
    arguments = ("--recipe", "tiny", "--repeats", 3, "--device", "cuda", "--json")
    timing = json.loads(brics("bench", "train", *arguments, cwd=tmp_path, check=0).stdout)
    assert timing["memory_of"] == "the device" and 0 < timing["memory_gib"] < 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_as_one(photographs: Path, tmp_path: Path) -> None:
    single = ("train-ae", photographs, *SETTINGS, "--set", "training.precision=fp32", "--device", "cuda")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "brics_cli")
    words = [str(word) for word in (*torchrun, *single, "--out", "two")]
    subprocess.run(words, cwd=tmp_path, env=environment(), check=True)
    brics(*single, "--out", "one", cwd=tmp_path, check=0)
    assert losses(tmp_path / "two")[:10] == pytest.approx(losses(tmp_path / "one")[:10], abs=1e-3)
