"""What an error says to type works when it is typed: after a full disk, before a first checkpoint, after divergence."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import brics, error_line
from diffusion_workspace import make_workspace
from image_files import noise
from killing import Command
from random_autoencoder import make_autoencoder
from safetensors.torch import load_file, save_file

from brics_cli.images.packs import FailureLog
from brics_cli.workspace.outputs import output_lock

QUICK = ("--set", "training.batch_size=4", "--set", "training.checkpoint_every=2", "--set", "training.val_every=2")
TRAIN_AE = ("train-ae", "images", "--recipe", "tiny", *QUICK, "--workers", "1", "--steps", "4")
TRAIN_DIFFUSION = ("train-diffusion", "codes.h5", "--recipe", "tiny", *QUICK[:4], "--steps", "4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of which two are none, an autoencoder, a diffusion model, a store, and another to merge it with."""
    root = make_workspace(tmp_path_factory.mktemp("advice"))
    for folder, first in (("images", 0), ("more", 100)):
        (root / folder).mkdir()
        for number in range(first, first + 24):
            data = b"no image" * 20 if number in (3, 20) else noise(number, side=64)
            (root / folder / f"{number:03d}.png").write_bytes(data)
    make_autoencoder(root / "ae", seed=0)
    brics("encode-dataset", "images", "--ae", "ae", "--out", "codes.h5", cwd=root, check=5)
    brics("encode-dataset", "more", "--ae", "ae", "--out", "more.h5", cwd=root, check=0)
    return root


def typed(line: str) -> list[str]:
    """The command that a line advises."""
    return shlex.split(line.rpartition("brics ")[2])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


WRITERS = {
    "pack": ("pack", "images", "--size", "64", "--shard-size", "8", "--out", "{disk}/shards"),
    "encode-dataset": ("encode-dataset", "images", "--ae", "ae", "--out", "{disk}/codes.h5"),
    "merge": ("merge", "codes.h5", "more.h5", "--out", "{disk}/all.h5"),
    "decode": ("decode", "codes.h5", "--ae", "ae", "--out", "{disk}/decoded"),
    "decode to a zip": ("decode", "codes.h5", "--ae", "ae", "--out", "{disk}/decoded.zip"),
    "sample": ("sample", "--n", "64", "--steps", "2", "--out", "{disk}/samples"),
    "sample codes": ("sample", "--n", "64", "--steps", "2", "--format", "h5", "--out", "{disk}/samples.h5"),
    "train-ae": (*TRAIN_AE, "--out", "{disk}/run"),
    "train-diffusion": (*TRAIN_DIFFUSION, "--out", "{disk}/run"),
    "sample a grid": ("sample", "--grid", "2x2", "--steps", "2", "--out", "{disk}/grid.png"),
    "eval": ("eval", "--metric", "psnr", "--real", "images", "--fake", "codes.h5", "--out", "{disk}/report.json"),
}


@pytest.mark.parametrize(
    "command",
    [name if name in ("pack", "train-ae") else pytest.param(name, marks=pytest.mark.slow) for name in WRITERS],
)
def test_after_a_full_disk_the_same_command_goes_on(workspace, small_disk, command):
    """Full from the start, then at several later moments: always exit 6 or done, then the same command ends well."""
    arguments = [word.format(disk=small_disk) for word in WRITERS[command]]
    ballast, seen = small_disk / "ballast", set()
    for left in (0, 5_000, 20_000, 80_000, 300_000, 1_500_000):
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(b"\0" * max(free - left - free % 4096, 0))
        full = brics(*arguments, cwd=workspace)
        seen.add(full.returncode)
        assert full.returncode in (0, 5, 6), full.stderr
        if full.returncode == 6:
            assert "no space left on the device" in error_line(full)
        ballast.unlink()
        done = brics(*arguments, cwd=workspace)
        assert done.returncode in (0, 4, 5) and (done.returncode != 4 or full.returncode != 6), done.stderr
        for path in small_disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert 6 in seen


@pytest.mark.parametrize("arguments", [TRAIN_AE, TRAIN_DIFFUSION], ids=["train-ae", "train-diffusion"])
def test_a_run_that_died_before_its_first_checkpoint_goes_on(workspace, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(workspace)
    late = [*arguments, "--set", "training.checkpoint_every=1000", "--set", "training.log_every=1"]
    straight, died = tmp_path / "straight", tmp_path / "died"
    brics(*late, "--out", straight, cwd=workspace)
    long = [word if word != "4" else "9999" for word in late]
    process = Command([*long, "--out", str(died)], tmp_path / "said")
    process.stop_when((died / "metrics.jsonl").exists, signal.SIGKILL)
    refused = brics("encode-dataset", "images", "--ae", died, "--out", tmp_path / "x.h5", cwd=workspace, check=3)
    if arguments is TRAIN_AE:
        assert typed(error_line(refused)) == ["train-ae", "--resume", str(died)]
    went_on = brics(arguments[0], "--resume", died, "--steps", "4", cwd=workspace)
    assert went_on.returncode in (0, 5) and "before its first checkpoint" in went_on.stderr
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (straight, died))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_command_goes_on_with_a_run_that_was_stopped(workspace, tmp_path):
    run, one = tmp_path / "run", [*TRAIN_AE[:-1], "6"]
    brics(*one, "--out", run, cwd=workspace)
    done = (run / "model" / "model.safetensors").read_bytes()
    assert "already there" in error_line(brics(*one, "--out", run, cwd=workspace, check=4))  # it is finished
    record = json.loads((run / "brics.json").read_text())
    (run / "brics.json").write_text(json.dumps(record | {"complete": False}))
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    went_on = brics(*one, "--out", run, cwd=workspace)
    assert went_on.returncode in (0, 5) and "resuming" in went_on.stderr and "at step 4" in went_on.stderr
    assert (run / "model" / "model.safetensors").read_bytes() == done
    (run / "brics.json").write_text(json.dumps(record | {"complete": False}))
    other = brics(*TRAIN_AE[:-1], "8", "--out", run, cwd=workspace, check=4)  # another command is not gone on with
    assert "already there" in error_line(other)


def test_a_run_that_starts_from_another_does_so_when_it_is_begun_again(workspace, tmp_path):
    brics(*TRAIN_AE, "--out", tmp_path / "first", cwd=workspace)
    brics(*TRAIN_AE, "--init-from", tmp_path / "first", "--out", tmp_path / "second", cwd=workspace)
    shutil.copytree(tmp_path / "second", tmp_path / "died")
    for name in ("checkpoints", "model", "best"):
        shutil.rmtree(tmp_path / "died" / name)
    brics("train-ae", "--resume", tmp_path / "died", cwd=workspace)
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("second", "died"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_kill_while_a_run_is_made_does_not_block_its_place(workspace, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text("{}")
    (tmp_path / "run" / ".config.yaml.0a1b2c3d.tmp").write_text("")
    assert brics(*TRAIN_AE, "--out", tmp_path / "run", cwd=workspace).returncode in (0, 5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("mine: true")
    brics(*TRAIN_AE, "--out", tmp_path / "mine", cwd=workspace, check=4)
    assert (tmp_path / "mine" / "config.yaml").read_text() == "mine: true"


@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_that_diverges_says_what_is_intact_and_how_to_go_on(workspace, tmp_path, monkeypatch, steps):
    run = tmp_path / "run"
    if steps:
        brics(*TRAIN_AE[:-1], str(steps), "--out", run, cwd=workspace)
    arguments = ("train-ae", "--resume", run, "--steps", "9") if steps else (*TRAIN_AE, "--out", run)
    with monkeypatch.context() as patched:
        patched.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        line = error_line(brics(*arguments, cwd=workspace, check=6))
    intact = "the checkpoint of step 2 is intact" if steps else "no checkpoint yet"
    assert "training diverged" in line and intact in line
    words = typed(line)
    assert words[:3] == ["train-ae", "--resume", str(run)] and words[3] == "--set" and "optimiser.lr=" in words[4]
    assert brics(*words, cwd=workspace).returncode in (0, 5)


def test_a_run_out_of_memory_says_how_to_go_on(workspace, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError("of this test")

    with monkeypatch.context() as patched:
        patched.setattr("brics_cli.training.step.reconstruction_loss", full)
        line = error_line(brics(*TRAIN_AE, "--out", tmp_path / "run", cwd=workspace, check=6))
    assert "out of memory" in line and "no checkpoint yet" in line
    words = typed(line)
    assert words[-2:] == ["--set", "training.accumulate=2"]
    assert brics(*words, cwd=workspace).returncode in (0, 5)


def packed(workspace: Path, out: Path) -> list[str]:
    done = brics("pack", "images", "--size", "32", "--shard-size", "8", "--out", out, "--json", cwd=workspace, check=5)
    return [key for key, _ in json.loads(done.stdout)["failures"]]


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_lost_failures_jsonl_loses_no_failure(workspace, tmp_path, state, damage):
    out = tmp_path / "shards"
    failed = packed(workspace, out)
    listed, before = out / FailureLog.NAME, (out / FailureLog.NAME).read_bytes()
    if state == "interrupted":
        record = json.loads((out / "brics.json").read_text())
        (out / "brics.json").write_text(json.dumps(record | {"complete": False}))
        (out / "manifest.json").unlink()
        (out / "00002.tar").unlink()
        if damage != "missing":
            pytest.skip("a line that is cut off in the middle of a run is of a shard that is packed again")
    if damage == "missing":
        listed.unlink()
    else:
        listed.write_bytes(b"" if damage == "empty" else before[: len(before) // 2])
    assert packed(workspace, out) == failed
    keys = [json.loads(line)["key"] for line in listed.read_text().splitlines()]
    places = [json.loads(line)["place"] for line in listed.read_text().splitlines()]
    assert keys == failed and places == [3, 20]


def test_a_finished_pack_whose_shard_has_gone_is_not_complete(workspace, tmp_path):
    packed(workspace, tmp_path / "shards")
    (tmp_path / "shards" / "00001.tar").unlink()
    line = error_line(brics("pack", "images", "--size", "32", "--shard-size", "8", "--out", tmp_path / "shards",
                            cwd=workspace, check=3))  # fmt: skip
    assert "00001.tar is missing" in line


def test_two_evaluations_do_not_write_one_report(workspace, tmp_path):
    arguments = ("eval", "--metric", "psnr", "--real", "images", "--fake", "codes.h5", "--out", tmp_path / "r.json")
    with output_lock(tmp_path / "r.json"):
        line = error_line(brics(*arguments, cwd=workspace, check=6))
    assert "another brics process is writing" in line and not (tmp_path / "r.json").exists()
    assert brics(*arguments, cwd=workspace).returncode in (0, 5) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["samples", "samples.zip", "samples.h5", "grid.png"])
def test_sample_leaves_no_temporary_file_of_a_sheet(workspace, tmp_path, name):
    """Those of a run that was killed with 9, which could not remove them itself, go with the next."""
    for left in (f".{name}.sheet.png.0a1b2c3d.tmp", f".{name}.0a1b2c3d.tmp", f".{name}.brics.json.0a1b2c3d.tmp"):
        (tmp_path / left).write_bytes(b"half")
    (tmp_path / ".others.png.0a1b2c3d.tmp").write_bytes(b"of somebody else")
    shape = ("--grid", "2x2") if name == "grid.png" else ("--n", "4")
    brics("sample", *shape, "--steps", "2", "--out", tmp_path / name, cwd=workspace, check=0)
    assert [path.name for path in tmp_path.rglob(".*")] == [".others.png.0a1b2c3d.tmp"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(workspace, tmp_path, value):
    run = Path(shutil.copytree(workspace / "ae", tmp_path / "ae"))
    weights = load_file(run / "model" / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = value
    save_file(weights, run / "model" / "model.safetensors")
    for arguments in (("encode-dataset", "images", "--ae", run, "--out", tmp_path / "c.h5"),
                      ("reconstruct", "images/000.png", "--ae", run, "--out", tmp_path / "s.png")):  # fmt: skip
        line = error_line(brics(*arguments, cwd=workspace, check=3))
        assert "not finite" in line and name in line
