"""Sampling on CUDA: the images of a seed whatever the processes, and memory that really runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics
from diffusion_workspace import make_workspace, tree
from PIL import Image

from brics_cli.sampling.engine import OutOfMemory, attempt
from brics_cli.sampling.models import load_models
from brics_cli.workspace import Workspace

pytestmark = pytest.mark.gpu

SAMPLE = ("sample", "--steps", "3", "--batch-size", "8", "--n", "60", "--shard-size", "20")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("cuda"))


def test_two_processes_on_one_device_write_the_shards_of_one(workspace, tmp_path):
    for out, device in (("one", "cuda:0"), ("two", "cuda:0,cuda:0")):
        brics(*SAMPLE, "--device", device, "--out", tmp_path / out, cwd=workspace, check=0)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_any_range_gives_the_image_of_a_seed_and_the_cpu_nearly(workspace, tmp_path):
    flags = (*SAMPLE[:5], "--format", "png")
    brics(*flags, "--n", 20, "--device", "cuda", "--out", tmp_path / "all", cwd=workspace, check=0)
    brics(*flags, "--seeds", "7", "--device", "cuda", "--out", tmp_path / "one", cwd=workspace, check=0)
    brics(*flags, "--seeds", "7", "--device", "cpu", "--out", tmp_path / "cpu", cwd=workspace, check=0)
    bytes_of = [(tmp_path / out / "00000007.png").read_bytes() for out in ("all", "one")]
    assert bytes_of[0] == bytes_of[1]
    cuda, cpu = (np.asarray(Image.open(tmp_path / out / "00000007.png")).astype(int) for out in ("all", "cpu"))
    assert np.abs(cuda - cpu).mean() < 2  # TF32 and another order of sums


def test_what_a_failed_batch_held_is_free_again(workspace):
    models = load_models(
        workspace / "runs/diffusion/d",
        steps=1,
        workspace=Workspace(workspace),
        device=torch.device("cuda", 0),
    )
    device = models.device
    models.compute(range(8))
    before = torch.cuda.memory_allocated(device)

    def too_much() -> torch.Tensor:
        codes, _ = models.compute(range(8))
        held = [codes, torch.empty(2**28, device=device)]  # 1 GiB, held by this frame alone
        return torch.empty(2**50, device=held[1].device)

    said = attempt(too_much, device=device)
    assert isinstance(said, OutOfMemory) and "out of memory" in said.reason and "\n" not in said.reason
    assert torch.cuda.memory_allocated(device) <= before
    models.compute(range(8))
