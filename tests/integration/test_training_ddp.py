"""Two processes on gloo against one: the same global batch, the same losses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, environment, error_line, start_brics
from safetensors.torch import load_file

from brics_cli.images import open_collection
from brics_cli.runtime.distributed import join_world
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.images import TrainingImages

STEPS = 10
LOSSES = (
    *("train/loss", "train/l1", "train/multiscale", "train/gan", "train/d_loss", "val/psnr", "val/ssim"),
    *("train/equivariance", "train/spectrum", "train/marginals", "train/whitening"),
)
WITH_GAN = (
    *("--recipe", "tiny", "--workers", "1", "--steps", STEPS),
    *("--set", "training.batch_size=8", "--set", "training.accumulate=2", "--set", "training.log_every=1"),
    *("--set", "training.val_every=5", "--set", "model.encoder.widths=[16,32]", "--set", "model.decoder.widths=[16]"),
    *("--set", "model.image_size=32"),
    *("--set", "gan.weight=0.5", "--set", "gan.ramp_steps=4", "--set", "gan.widths=[8,8]"),
    *("--set", "loss.perceptual.kind=multiscale", "--set", "data.cache_gib=0"),
    *("--set", "terms.equivariance.weight=0.5", "--set", "terms.spectrum.weight=0.01"),
    *("--set", "terms.marginals.weight=0.01", "--set", "terms.whitening.weight=0.1"),
)


def rank_environment(rank: int, *, port: int) -> dict[str, str]:
    """What torchrun gives the process `rank` of two."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_two_processes_train_as_one_with_the_gan_on(photographs: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photographs, tmp_path / "data"))
    (data / "broken.png").write_text("this is no image")
    arguments, port = ("train-ae", data, *WITH_GAN, "--device", "cpu"), free_port()
    second = start_brics(*arguments, "--out", "two", cwd=tmp_path, **rank_environment(1, port=port))
    first = brics(*arguments, "--out", "two", cwd=tmp_path, check=5, **rank_environment(0, port=port))
    assert second.communicate(timeout=60) == ("", ""), "the second process spoke"
    assert (second.returncode, first.stdout.strip()) == (5, "two"), "one of the two met the broken image"
    assert "warning: 1 of 49 images failed" in first.stderr
    brics(*arguments, "--set", "data.cache_gib=4", "--out", "one", cwd=tmp_path, check=5)  # in memory: the same order
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert any(row.get("train/gan_weight", 0) > 0.01 for row in ours), "the discriminator had no say"
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # Adam with eps 1e-15 divides a sum's rounding by itself, so gradients drift apart before losses do;
            # code_std is a mean of standard deviations of parts, which differs with the parts
            tolerance = 1e-5 if name in LOSSES else 1e-2
            assert b[name] == pytest.approx(a[name], rel=tolerance, abs=tolerance), (a["step"], name)
    assert len(list((tmp_path / "two").glob("events.*"))) == 1


def _decode_a_share(rank: int, port: int, folder: str, results: str) -> None:
    os.environ.update(rank_environment(rank, port=port))
    with join_world(torch.device("cpu")) as world:
        images = TrainingImages(open_collection(folder), transform="crop-bicubic", size=16, num_workers=1)
        decoded: list[int] = []
        images._record = lambda batch, record=images._record: (decoded.append(len(batch.loaded)), record(batch))
        assert images.cache(limit_gib=1, reporter=SilentReporter(), world=world)
        images.cached[world.rank] = world.rank  # seen by the other one
        world.gather(None)
        found = {"decoded": sum(decoded), "failures": images.failures}
        np.savez(f"{results}/{rank}.npz", images=images.cached, found=json.dumps(found))


def test_two_processes_keep_one_copy_of_the_images_and_decode_half_each(photographs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photographs, tmp_path / "data"))
    for place in (3, 40):
        sorted(folder.iterdir())[place].write_text("this is no image")
    arguments = (free_port(), str(folder), str(tmp_path))
    torch.multiprocessing.start_processes(_decode_a_share, arguments, nprocs=2, start_method="fork")
    alone = TrainingImages(open_collection(folder), transform="crop-bicubic", size=16, num_workers=1)
    alone.cache(limit_gib=1, reporter=SilentReporter())
    alone.cached[0], alone.cached[1] = 0, 1
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as result:
            assert (result["images"] == alone.cached).all()
            found = json.loads(str(result["found"]))
        assert found["decoded"] == 24
        assert list(found["failures"].values()) == list(alone.failures.values())
        assert list(map(int, found["failures"])) == list(alone.failures) == [3, 40]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2 in the environment, and RANK, MASTER_ADDR, MASTER_PORT not set. Unset it",
        ),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' in the environment. Unset it; several processes are started by"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0' in the environment. Unset it"),
    ],
)
def test_half_of_torchruns_environment_is_one_line(
    photographs: Path, tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    refused = brics("train-ae", photographs, *WITH_GAN, "--device", "cpu", cwd=tmp_path, check=2, **variables)
    assert error_line(refused).startswith(said)
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_split_names_one_that_does(photographs: Path, tmp_path: Path) -> None:
    three = {"WORLD_SIZE": "3", "RANK": "0"}
    refused = brics("train-ae", photographs, *WITH_GAN, "--device", "cpu", cwd=tmp_path, check=2, **three)
    assert error_line(refused) == (
        "training.batch_size 8 is not a multiple of training.accumulate 2 * 3 processes. "
        "Take a multiple of 6: --set training.batch_size=12"
    )


@pytest.mark.slow
def test_torchrun_is_interrupted_and_one_process_goes_on(photographs: Path, tmp_path: Path) -> None:
    brics("train-ae", photographs, *WITH_GAN, "--out", "ae", "--device", "cpu", cwd=tmp_path, check=0)
    brics("encode-dataset", photographs, "--ae", "ae", "--flips", "--out", "codes.h5", cwd=tmp_path, check=0)
    settings = ("--recipe", "tiny", "--set", "training.batch_size=8", "--set", "training.log_every=1")
    long = ("train-diffusion", "codes.h5", *settings, "--set", "optimiser.decay=none", "--device", "cpu")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(free_port()))
    world = subprocess.Popen(
        [*torchrun, "-m", "brics_cli", *map(str, long), "--steps", "4000", "--out", "two"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "two" / "metrics.jsonl").exists():
        assert world.poll() is None, world.communicate()
        time.sleep(0.05)
    world.send_signal(signal.SIGTERM)
    stdout, stderr = world.communicate(timeout=120)
    assert stdout == ""
    assert stderr.count("saved. Go on with: brics train-diffusion --resume two") == 1, stderr
    (checkpoint,) = (tmp_path / "two" / "checkpoints").iterdir()
    steps = int(checkpoint.name.removeprefix("step-")) + 3
    brics(*long, "--out", "one", "--steps", steps, cwd=tmp_path, check=0)
    brics("train-diffusion", "--resume", "two", "--steps", steps, "--device", "cpu", cwd=tmp_path, check=0)
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(ours) == len(theirs) == steps
    assert [row["train/loss"] for row in theirs] == pytest.approx([row["train/loss"] for row in ours], rel=1e-4)
    for average in ("model", "ema-0.05", "ema-0.1"):
        weights = [load_file(tmp_path / name / "model" / f"{average}.safetensors") for name in ("one", "two")]
        assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-3 for name in weights[0]), average
