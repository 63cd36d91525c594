"""The pipeline on CUDA: bf16 training, and the same codes and images as on the CPU within stated tolerances."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, environment
from torch import nn

from brics_cli import KeyCodeStore, load_autoencoder
from brics_cli.runtime.precision import computing

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


def test_fp32_is_float32_and_the_others_are_not() -> None:
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(64, 64, 3).cuda(), torch.randn(8, 64, 32, 32, device="cuda")
    matrix = torch.randn(512, 512, device="cuda")
    exact = convolution.double()(images.double()), matrix.double() @ matrix.double()
    convolution.float()
    errors = {}
    for precision in ("fp32", "tf32", "bf16"):
        with torch.inference_mode(), computing(precision, images.device):
            made = convolution(images), matrix @ matrix
        pairs = zip(made, exact, strict=True)
        errors[precision] = [float((ours - right).abs().max() / right.abs().max()) for ours, right in pairs]
    assert max(errors["fp32"]) < 1e-5
    assert min(errors["tf32"]) > 1e-5 and max(errors["tf32"]) < 5e-3
    assert min(errors["bf16"]) > 1e-4 and max(errors["bf16"]) < 5e-2


def test_samples_are_drawn_in_bf16_and_say_so(trained: Path, photographs: Path) -> None:
    if not (trained / "codes.h5").exists():
        brics("encode-dataset", photographs, "--ae", "ae", "--out", "codes.h5", cwd=trained, check=0)
    if not (trained / "short").exists():
        brics("train-diffusion", "codes.h5", "--recipe", "tiny", "--steps", 20, "--out", "short", cwd=trained, check=0)
    for dtype in ((), ("--dtype", "tf32"), ("--dtype", "fp32")):
        out = f"in-{dtype[-1] if dtype else 'default'}"
        brics("sample", "--n", 4, "--model", "short", *dtype, "--out", out, cwd=trained, check=0)
        said = json.loads((trained / out / "brics.json").read_text())["details"]["computed_in"]
        assert said == (dtype[-1] if dtype else "bf16")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_gpu_opens_no_context_on_the_first(photographs: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch; from brics_cli.cli.app import run; code = run(sys.argv[1:]); "
        "sys.exit(code or 10 * torch._C._cuda_hasPrimaryContext(0) + 20 * (not torch._C._cuda_hasPrimaryContext(1)))"
    )
    common = ("--device", "cuda:1", "--out")
    for words in (
        ("train-ae", photographs, "--recipe", "tiny", "--steps", 4, *common, "ae"),
        ("encode-dataset", photographs, "--ae", "ae", *common, "codes.h5"),
        ("train-diffusion", "codes.h5", "--recipe", "tiny", "--steps", 4, *common, "d"),
        ("sample", "--n", 4, "--model", "d", *common, "s"),
        ("decode", "codes.h5", *common, "r"),
    ):
        command = [sys.executable, "-c", script, *map(str, words)]
        subprocess.run(command, cwd=tmp_path, env=environment(), check=True)


def test_diffusion_trains_and_samples(trained: Path, photographs: Path) -> None:
    if not (trained / "codes.h5").exists():
        brics("encode-dataset", photographs, "--ae", "ae", "--out", "codes.h5", cwd=trained, check=0)
    settings = ("--recipe", "tiny", "--set", "training.precision=bf16", "--steps", 30)
    brics("train-diffusion", "codes.h5", *settings, "--out", "diffusion", cwd=trained, check=0)
    brics("sample", "--n", 8, "--model", "diffusion", "--out", "samples", cwd=trained, check=0)
    assert list((trained / "samples").glob("*.tar"))
