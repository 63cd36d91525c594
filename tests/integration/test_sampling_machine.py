"""`brics sample` and the machine: several devices, memory that runs out, disks that fill up, writing beside computing.

Whatever happens, images are those of one quiet run.
"""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, error_line, start_brics
from diffusion_workspace import make_workspace, tree
from PIL import Image

from brics_cli.codes import KeyCodeStore
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.images.sinks import PngSink
from brics_cli.jobs.sample import sample
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.sampling.batch_sizes import BatchSizes
from brics_cli.sampling.engine import DeviceWork, Writer
from brics_cli.sampling.models import Models
from brics_cli.sampling.plan import Plan, plan_sampling
from brics_cli.workspace import Workspace, read_provenance

SAMPLE = ("sample", "--steps", "3", "--batch-size", "8", "--n", "60", "--shard-size", "20")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the shards `whole`, the folder `pngs` and the store `codes.h5` of quiet runs."""
    root = make_workspace(tmp_path_factory.mktemp("machine"))
    for out, flags in (("whole", []), ("pngs", ["--format", "png"]), ("codes.h5", ["--codes"])):
        brics(*SAMPLE, *flags, "--out", out, "--device", "cpu", cwd=root, check=0)
    return root


def plan(workspace: Path, out: Path, format: str, **changed: object) -> Plan:
    values = {"seeds": range(60), "batch_size": 8, "shard_size": 20, "device": "cpu", **changed}
    return plan_sampling(
        workspace / "runs/diffusion/d", steps=3, workspace=Workspace(workspace), out=out,
        format=format, reporter=SilentReporter(), **values,
    )  # fmt: skip


def test_two_processes_write_the_shards_of_one(workspace, tmp_path):
    said = brics(*SAMPLE, "--device", "cpu,cpu", "--out", tmp_path / "s", "--json", cwd=workspace, check=0)
    assert tree(tmp_path / "s") == tree(workspace / "whole") and len(tree(tmp_path / "s")) == 6
    result = json.loads(said.stdout)
    assert result["num_now"] == 60 and result["batch_sizes"] == [[0, 59, 8]]
    assert read_provenance(tmp_path / "s").details["device"] == "cpu,cpu"


@pytest.mark.parametrize("format", ["png", "h5"])
def test_tasks_may_be_taken_by_anybody_in_any_order(workspace, tmp_path, format, monkeypatch):
    """What the processes of two devices do, one after the other: then there is nothing left to draw."""
    monkeypatch.setattr("brics_cli.sampling.plan.PNG_TASK", 16)
    planned = plan(workspace, tmp_path / f"s{'.h5' if format == 'h5' else ''}", format)
    planned.folder.mkdir(parents=True)
    work = pickle.loads(pickle.dumps(DeviceWork(planned, BatchSizes(planned.batch_size), 1)))
    tasks = planned.tasks[::-1]
    assert len(tasks) > 2
    for taken in (tasks[::2], tasks[1::2]):
        events = list(work("cpu")(iter(taken)))
        written = sum(event.num_written for event in events)
        assert written == sum(len(task.seeds) for task in taken)
    if format == "png":
        assert tree(planned.folder) == tree(workspace / "pngs")
    else:
        (planned.folder / "identity.json").write_text(json.dumps(planned.store[0].identity()))
        assert sample(planned, reporter=SilentReporter()).num_now == 0
        assert KeyCodeStore(planned.out).sha256 == KeyCodeStore(workspace / "codes.h5").sha256


def test_a_model_that_changes_meanwhile_is_refused(workspace, tmp_path):
    root = tmp_path / "w"
    shutil.copytree(workspace, root)
    planned = plan(root, tmp_path / "s", "png")
    sent = pickle.dumps(planned)
    weights = root / "runs/diffusion/d/model/model.safetensors"
    shutil.copy(weights.with_name("ema-0.05.safetensors"), weights)
    with pytest.raises(Exception, match="was written again while it was being loaded"):
        pickle.loads(sent)


class LittleMemory:
    """A denoiser's `denoise` whose device holds `fits` images until seed batches were asked for `calls` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fits: int, after: int = 0) -> None:
        self.fits, self.calls, self.after, self.sizes = fits, 0, after, []
        original = Denoiser.denoise

        def denoise(denoiser: Denoiser, x_t: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            self.calls += 1
            if self.calls > self.after and len(x_t) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
            self.sizes.append(len(x_t))
            return original(denoiser, x_t, *args, **kwargs)

        monkeypatch.setattr(Denoiser, "denoise", denoise)


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]).astype(int)


def test_out_of_memory_halves_the_batch_and_goes_on(workspace, tmp_path, monkeypatch):
    memory = LittleMemory(monkeypatch, fits=3, after=6)  # two whole batches of 8, at 3 evaluations each
    out = tmp_path / "s"
    finished = brics(*SAMPLE, "--format", "png", "--out", out, "--device", "cpu", cwd=workspace, check=0)
    said = [line for line in finished.stderr.splitlines() if line.startswith("warning: ")]
    assert said == [
        "warning: out of memory on cpu (CUDA out of memory. Tried to allocate 2.00 GiB.): going on with batches of "
        f"{size}; pixels may differ by 1 of 255 from those of larger batches"
        for size in (4, 2)
    ]
    assert set(memory.sizes) == {8, 2}
    runs = [[0, 15, 8], [16, 59, 2]]
    assert read_provenance(out).details["batch_sizes"] == runs
    assert read_provenance(out).details["settings"]["batch_size"] == 8  # as asked for: the same command goes on
    assert not (out / "batch-sizes.json").exists()
    ours, quiet = pixels(out), pixels(workspace / "pngs")
    assert (ours[:16] == quiet[:16]).all() and np.abs(ours - quiet).max() <= 1
    again = brics(*SAMPLE, "--format", "png", "--out", out, "--device", "cpu", cwd=workspace, check=0)
    assert "is complete already" in again.stderr


@pytest.mark.parametrize("name", ["s", "s.zip", "s.h5"])
def test_a_run_that_was_short_of_memory_goes_on_as_it_was(workspace, tmp_path, monkeypatch, name):
    """Killed after memory ran out, and gone on with by a device with enough of it: the same bytes as never killed."""
    monkeypatch.setattr("brics_cli.images.sinks.pieces.PIECE_SIZE", 20)
    flags = (*SAMPLE, "--device", "cpu", "--out")
    with monkeypatch.context() as short:
        LittleMemory(short, fits=4, after=12)  # batches 0 to 3: seeds 0 to 31
        brics(*flags, tmp_path / "whole" / name, cwd=workspace, check=0)
    with monkeypatch.context() as short:
        memory = LittleMemory(short, fits=4, after=12)
        put = Writer.put

        def put_and_wait(writer: Writer, *batch: object) -> None:  # what is on the disk must not depend on the clock
            put(writer, *batch)
            writer.finish()

        def dies(models: Models) -> torch.device:
            if memory.calls > 16:
                raise KeyboardInterrupt
            return original.fget(models)

        original = Models.device
        short.setattr(Writer, "put", put_and_wait)
        short.setattr("brics_cli.sampling.models.Models.device", property(dies))
        stopped = brics(*flags, tmp_path / "cut" / name, cwd=workspace, check=130)
        assert "going on with batches of 4" in stopped.stderr
    finished = brics(*flags, tmp_path / "cut" / name, "--json", cwd=workspace, check=0)
    assert json.loads(finished.stdout)["batch_sizes"] == [[0, 31, 8], [32, 59, 4]]
    assert "going on: 40 of 60 images are there" in finished.stderr
    ours, other = (tree(tmp_path / folder) for folder in ("cut", "whole"))
    if name == "s.h5":
        stores = [KeyCodeStore(tmp_path / folder / name) for folder in ("cut", "whole")]
        assert stores[0].sha256 == stores[1].sha256
        assert stores[0].artefact.details["batch_sizes"] == [[0, 31, 8], [32, 59, 4]]
        del ours[name], other[name]  # the time of its making is in it
    assert {k: v for k, v in ours.items() if "json" not in k} == {k: v for k, v in other.items() if "json" not in k}


def test_memory_for_not_even_one_image_ends_with_6(workspace, tmp_path, monkeypatch):
    LittleMemory(monkeypatch, fits=0)
    finished = brics(*SAMPLE, "--format", "png", "--out", tmp_path / "s", "--device", "cpu", cwd=workspace, check=6)
    assert error_line(finished) == (
        "out of memory on cpu with one image at a time (CUDA out of memory. Tried to allocate 2.00 GiB.). "
        "Free the memory that other programs hold there, or use --device cpu."
    )


def test_memory_that_runs_out_in_writing_ends_with_6_and_halves_nothing(workspace, tmp_path, monkeypatch):
    def write(sink: PngSink, *args: object, **kwargs: object) -> None:
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr(PngSink, "_put", write)
    finished = brics(*SAMPLE, "--format", "png", "--out", tmp_path / "s", "--device", "cpu", cwd=workspace, check=6)
    assert "memory" in error_line(finished) and "going on with batches" not in finished.stderr
    assert not read_provenance(tmp_path / "s").complete


def test_images_are_written_while_the_next_are_drawn(workspace, tmp_path, monkeypatch):
    """A slow disk and a slow network take the time of the slower one, not of both; and the split says so."""
    write, denoise = PngSink._put, Denoiser.denoise

    def slow_write(*args: object) -> None:
        time.sleep(0.005)
        write(*args)

    def slow_denoise(*args: object, **kwargs: object) -> torch.Tensor:
        time.sleep(0.02)
        return denoise(*args, **kwargs)

    monkeypatch.setattr(PngSink, "_put", slow_write)
    monkeypatch.setattr(Denoiser, "denoise", slow_denoise)
    done = sample(plan(workspace, tmp_path / "s", "png", seeds=range(56)), reporter=SilentReporter())
    assert done.writing_s >= 56 * 0.005  # 0.04 s per batch, beside 0.06 s of the network
    assert done.seconds["write"] < 0.5 * done.writing_s
    assert done.seconds["denoise"] >= 7 * 3 * 0.02
    assert tree(tmp_path / "s").keys() == {f"{seed:08d}.png" for seed in range(56)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.parametrize(("name", "free_kib"), [("s", 60), ("s.h5", 32)])
def test_a_full_disk_ends_with_6_and_the_same_command_goes_on(workspace, disk, name, free_kib):
    (disk / "ballast").write_bytes(bytes(2**20 - free_kib * 2**10))
    flags = (*SAMPLE, "--device", "cpu", "--out", disk / name)
    line = error_line(brics(*flags, cwd=workspace, check=6))
    assert line.startswith("no space left on the device: ") and line.endswith("run the same command again.")
    assert not list(disk.rglob("*.tmp"))
    (disk / "ballast").unlink()
    brics(*flags, cwd=workspace, check=0)
    if name == "s":
        assert tree(disk / name) == tree(workspace / "whole")
    else:
        assert KeyCodeStore(disk / name).sha256 == KeyCodeStore(workspace / "codes.h5").sha256


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["s", "png", "s.zip", "s.h5"])
def test_stopped_processes_go_on_to_the_same_bytes(workspace, tmp_path, how, name):
    flags = ["sample", "--steps", 8, "--batch-size", 50, "--n", 1200, "--shard-size", 100]
    flags += ["--format", "png"] if name == "png" else []
    whole, out = tmp_path / "whole" / name, tmp_path / "cut" / name
    brics(*flags, "--device", "cpu", "--out", whole, cwd=workspace, check=0)
    process = start_brics(*flags, "--device", "cpu,cpu", "--out", out, cwd=workspace)
    while process.poll() is None and not [path for path in out.parent.rglob("0*.*") if path.stat().st_size]:
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate(timeout=120)[1]
    if how != signal.SIGKILL:
        assert process.returncode == 130 and "Go on with: brics sample" in said.splitlines()[-1], said
        assert not list(out.parent.rglob("*.tmp")) and "Traceback" not in said
    brics(*flags, "--device", "cpu,cpu", "--out", out, cwd=workspace, check=0)
    ours, other = tree(out.parent), tree(whole.parent)
    if name == "s.h5":
        assert KeyCodeStore(out).sha256 == KeyCodeStore(whole).sha256
    assert {k: v for k, v in ours.items() if k[-4:] not in ("json", "5.h5", "s.h5")} == {
        k: v for k, v in other.items() if k[-4:] not in ("json", "5.h5", "s.h5")
    }
