"""The pipeline on CUDA: bf16 training, and the same codes and images as on the CPU within stated tolerances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics

from brics_cli import KeyCodeStore, load_autoencoder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    settings = ("--recipe", "tiny", "--set", "training.precision=bf16", "--steps", 60, "--device", "cuda")
    brics("train-ae", photographs, *settings, "--out", "ae", cwd=folder, check=0)
    return folder


def test_bf16_training_learns(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "ae" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.3 and json.loads((trained / "ae" / "environment.json").read_text())["cuda"]


def test_codes_and_images_agree_with_the_cpu(trained: Path) -> None:
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cpu, cuda = load_autoencoder(trained / "ae"), load_autoencoder(trained / "ae", device="cuda")
    codes = cpu.encode(images)
    torch.testing.assert_close(cuda.encode(images.cuda()).cpu(), codes, atol=2e-3, rtol=0)
    torch.testing.assert_close(cuda.decode(codes.cuda()).cpu(), cpu.decode(codes), atol=2e-2, rtol=0)


def test_encoding_in_bf16_differs_by_at_most_a_few_steps(trained: Path, photographs: Path) -> None:
    for name, dtype, device in (("cpu.h5", "fp32", "cpu"), ("bf16.h5", "bf16", "cuda")):
        arguments = ("--ae", "ae", "--out", name, "--dtype", dtype, "--device", device)
        brics("encode-dataset", photographs, *arguments, cwd=trained, check=0)
    exact, fast = (KeyCodeStore(trained / name).raw(slice(None)).astype(int) for name in ("cpu.h5", "bf16.h5"))
    assert np.abs(exact - fast).mean() < 2


def test_diffusion_trains_and_samples(trained: Path, photographs: Path) -> None:
    if not (trained / "codes.h5").exists():
        brics("encode-dataset", photographs, "--ae", "ae", "--out", "codes.h5", cwd=trained, check=0)
    settings = ("--recipe", "tiny", "--set", "training.precision=bf16", "--steps", 30)
    brics("train-diffusion", "codes.h5", *settings, "--out", "diffusion", cwd=trained, check=0)
    brics("sample", "--n", 8, "--model", "diffusion", "--out", "samples", cwd=trained, check=0)
    assert list((trained / "samples").glob("*.tar"))
