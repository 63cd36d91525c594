"""Training on CUDA: the discriminator in bf16, torch.compile, the store on the device, and two processes on two GPUs
where there are two."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, environment
from random_autoencoder import make_autoencoder
from safetensors.torch import load_file
from skimage import data
from torch import nn

import brics_cli
from brics_cli.autoencoder.autoencoder import load_autoencoder
from brics_cli.autoencoder.ms_ssim import ms_ssim, weights_that_fit
from brics_cli.codes import KeyCodeStore
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.evaluation.reconstruction import scores_on_device
from brics_cli.evaluation.reconstruction import ssim as ssim_of_pairs
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.codes import LevelMeans, TrainingCodes
from brics_cli.training.loop import Loop
from brics_cli.training.order import SampleOrder

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


def test_a_store_on_the_device_trains_as_a_mapped_one(photographs: Path, tmp_path: Path) -> None:
    make_autoencoder(tmp_path / "ae", seed=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--flips", "--out", "codes.h5", cwd=tmp_path, check=0)
    settings = ("--recipe", "tiny", "--steps", 20, "--set", "training.log_every=1", "--device", "cuda")
    for where in ("auto", "never"):
        kept = ("--set", f"training.store_on_device={where}", "--set", "training.fd_samples=32", "--out", where)
        said = brics("train-diffusion", "codes.h5", *settings, *kept, cwd=tmp_path, check=0).stderr
        assert ("codes kept on cuda" in said) == (where == "auto")
    rows = [[json.loads(row) for row in (tmp_path / run / "metrics.jsonl").open()] for run in ("auto", "never")]
    ours, theirs = ([row["train/loss"] for row in of_run if "train/loss" in row] for of_run in rows)
    assert len(ours) == 20 and ours == pytest.approx(theirs, rel=1e-4)
    assert all(any("val/fd-random" in row for row in of_run) for of_run in rows)


def test_batches_and_log_sums_do_not_wait_for_the_device(photographs: Path, tmp_path: Path) -> None:
    make_autoencoder(tmp_path / "ae", seed=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--flips", "--out", "codes.h5", cwd=tmp_path, check=0)
    store, device = KeyCodeStore(tmp_path / "codes.h5"), torch.device("cuda")
    order, levels = SampleOrder([np.arange(len(store))], seed=0), LevelMeans(device)
    for where in ("always", "never"):
        codes = TrainingCodes(store, seed=0, device=device, where=where, reporter=SilentReporter())
        batches = codes.batches(order, first_step=0, batch_size=16, world=World(device=device))
        first = next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = next(batches)
            levels.add(second.draws.u, second.draws.u)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            batches.close()
        again = next(codes.batches(order, first_step=0, batch_size=16, world=World(device=device)))
        assert torch.equal(first.codes, again.codes) and torch.equal(first.draws.eps, again.draws.eps)
        halves = (World(rank=rank, size=2, device=device) for rank in (0, 1))
        parts = [next(codes.batches(order, first_step=0, batch_size=16, world=half)) for half in halves]
        assert torch.equal(torch.cat([part.codes for part in parts]), first.codes)
        assert torch.equal(torch.cat([part.draws.eps for part in parts]), first.draws.eps)
    assert sum(levels.result(World(device=device)).values()) > 0


def test_loaded_models_and_features_are_channels_last(tmp_path: Path) -> None:
    make_autoencoder(tmp_path / "ae", seed=0)
    model = load_autoencoder(tmp_path / "ae", device="cuda")
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions(model))
    _, height, width = model.config.code_shape
    codes = torch.rand(2, model.config.code_channels, height, width, device="cuda", requires_grad=True)
    features = model.bottleneck.retrieve(codes)
    assert features.is_contiguous(memory_format=torch.channels_last)
    features.backward(torch.ones_like(features))
    assert codes.grad is not None and codes.grad.isfinite().all()


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [each for each in model.modules() if isinstance(each, nn.Conv2d)]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From the second step on, training raises where it waits for the device, but at the end of a step that logs."""
    end_step = Loop.end_step

    def ended(self, *arguments, **settings) -> None:
        schedule, step = self.state.schedule, self.state.step
        if step % schedule.log_every == 0 or step == schedule.steps:
            torch.cuda.set_sync_debug_mode("default")
        end_step(self, *arguments, **settings)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Loop, "end_step", ended)
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_step_of_the_autoencoder_waits_for_nothing(photographs: Path, tmp_path: Path, no_waiting: None) -> None:
    overrides = ["gan.weight=0.2", "loss.perceptual.kind=multiscale", "terms.marginals.weight=0.1"]
    overrides += ["training.log_every=4", "training.accumulate=2", "training.loggers=[]"]
    brics_cli.train_autoencoder(
        photographs, recipe="tiny", steps=8, overrides=overrides, out=tmp_path / "run", device="cuda"
    )


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_step_of_the_denoiser_waits_for_nothing(
    photographs: Path, tmp_path: Path, no_waiting: None, kind: str
) -> None:
    make_autoencoder(tmp_path / "ae", seed=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--flips", "--out", "codes.h5", cwd=tmp_path, check=0)
    overrides = ["training.log_every=4", "training.loggers=[]", "training.fd_samples=0"]
    overrides += ["denoiser.kind=unet", "denoiser.dim=32", "denoiser.head_dim=32"] if kind == "unet" else []
    brics_cli.train_diffusion(
        tmp_path / "codes.h5", recipe="tiny", steps=8, overrides=overrides, out=tmp_path / "run", device="cuda"
    )


def test_validation_scores_on_the_device_are_the_cpus() -> None:
    generator = np.random.default_rng(0)
    real = np.stack([photograph[:256, :256] for photograph in (data.astronaut(), data.coffee(), data.cat())])
    fake = np.clip(real + generator.normal(0, 10, real.shape), 0, 255).astype(np.uint8)
    psnr, ssim = scores_on_device(*(torch.from_numpy(side).cuda() for side in (real, fake)))
    np.testing.assert_allclose(psnr.cpu(), capped_psnr(real, fake), atol=1e-4)
    np.testing.assert_allclose(ssim.cpu(), ssim_of_pairs(real, fake), atol=1e-4)


def test_ms_ssim_of_channels_last_images_is_no_tf32() -> None:
    a = (torch.rand(2, 3, 64, 64) * 2 - 1).contiguous(memory_format=torch.channels_last)
    b = a + 0.05 * torch.randn_like(a)
    expected = ms_ssim(a, b, value_range=2.0, weights=weights_that_fit(64, 64))
    found = ms_ssim(a.cuda(), b.cuda(), value_range=2.0, weights=weights_that_fit(64, 64))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_as_one(photographs: Path, tmp_path: Path) -> None:
    single = ("train-ae", photographs, *SETTINGS, "--set", "training.precision=fp32", "--device", "cuda")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "brics_cli")
    words = [str(word) for word in (*torchrun, *single, "--out", "two")]
    subprocess.run(words, cwd=tmp_path, env=environment(), check=True)
    brics(*single, "--out", "one", cwd=tmp_path, check=0)
    assert losses(tmp_path / "two")[:10] == pytest.approx(losses(tmp_path / "one")[:10], abs=1e-3)


def test_a_dry_run_tells_the_memory_that_a_run_takes(photographs: Path, tmp_path: Path) -> None:
    asked = ("train-ae", photographs, "--recipe", "brics-64", "--device", "cuda", "--steps", 4)
    said = json.loads(brics(*asked, "--dry-run", "--json", cwd=tmp_path, check=0).stdout)
    torch.cuda.reset_peak_memory_stats()
    brics(*asked, "--out", "run", cwd=tmp_path, check=0)
    taken = torch.cuda.max_memory_allocated()
    assert said["is_timed"] and 1 / 2.5 < said["memory_bytes"] / taken < 2.5
