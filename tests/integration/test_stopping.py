"""Being stopped, and losing the streams: what is saved, which exit code, and that nothing half-written stays."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import brics, environment, error_line
from diffusion_workspace import make_workspace
from image_files import noise
from killing import Command
from random_autoencoder import make_autoencoder
from store_files import write_store

from brics_cli import KeyCodeStore
from brics_cli.runtime.stopping import in_time

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
TRAIN = ("--recipe", "tiny", "--set", "training.batch_size=2", "--workers", "1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, an autoencoder, a diffusion model."""
    root = make_workspace(tmp_path_factory.mktemp("stopping"))
    (root / "images").mkdir()
    for number in range(300):
        (root / "images" / f"{number:03d}.png").write_bytes(noise(number, side=24))
    make_autoencoder(root / "ae", seed=0)
    return root


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks below `folder`."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))]


def wait_for(pattern: str, folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


BATCH = {
    "pack": (("pack", "images", "--size", "256", "--shard-size", "10", "--out"), "out", "out/00001.tar"),
    "encode-dataset": (("encode-dataset", "images", "--ae", "ae", "--batch-size", "2", "--out"), "out.h5",
                       "out.h5.parts/.*.h5.*.tmp"),
    "sample": (("sample", "--format", "png", "--n", "4000", "--steps", "8", "--out"),
               "out", "out/0000000*.png"),
}  # fmt: skip


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", BATCH)
def test_a_signal_keeps_what_is_whole_and_the_command_goes_on(workspace, tmp_path, monkeypatch, command, number):
    arguments, name, begun = BATCH[command]
    monkeypatch.chdir(workspace)
    for attempt in range(5):  # a machine that is busy elsewhere lets the command end before the signal is sent
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = Command([*arguments, str(folder / name)], folder / "said")
        code = process.stop_when(wait_for(begun, folder), number)
        if code:
            break
    assert code == 130
    said = (folder / "said").read_text().splitlines()[-1]
    assert said.startswith("error: interrupted") and "Traceback" not in said
    assert [path for path in leftovers(folder) if not path.endswith(".parts/.lock")] == []
    if command != "sample":  # 4,000 images are too many to wait for
        brics(*shlex.split(said.partition("Go on with: brics ")[2]), cwd=workspace, check=0)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_with_nothing_to_save_says_by_what_it_was_stopped(workspace, tmp_path, monkeypatch, number):
    monkeypatch.chdir(workspace)
    wide = ("sample", "--grid", "30x30", "--steps", "200", "--batch-size", "2", "--out", str(tmp_path / "grid.png"))
    process = Command([*wide], tmp_path / "said")
    log = tmp_path / "said"
    code = process.stop_when(wait_for(".grid.png.lock", tmp_path), number)
    assert code == 128 + number
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith("error: interrupted" if number == signal.SIGINT else f"error: stopped by {number.name}")
    )
    assert leftovers(tmp_path) == [] and not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_run_saves_on_every_signal(workspace, tmp_path, monkeypatch, number):
    monkeypatch.chdir(workspace)
    run = tmp_path / "run"
    process = Command(["train-ae", "images", *TRAIN, "--steps", "9999", "--out", str(run)], tmp_path / "said")
    assert process.stop_when(wait_for("metrics.jsonl", run), number) == 130
    said = (tmp_path / "said").read_text().splitlines()[-1]
    assert "saved. Go on with: brics train-ae --resume" in said
    assert leftovers(tmp_path) == [] and len(list((run / "checkpoints").glob("step-*/state.json"))) == 1


def test_nohup_is_respected(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = Command(["train-ae", "images", *TRAIN, "--steps", "9999", "--out", str(run)], tmp_path / "said")
    finally:
        signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGHUP)
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    grown = lambda: len((run / "metrics.jsonl").read_text().splitlines()) > lines + 2  # noqa: E731
    assert process.stop_when(grown, signal.SIGTERM) == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["pack", "encode-dataset", "train-ae"])
def test_a_signal_at_any_moment(workspace, tmp_path, monkeypatch, command, number):
    """Twelve moments of its time, and one when something is written: the code is a signal's or that of success, that
    of saved work at the last, and nothing is left behind."""
    monkeypatch.chdir(workspace)

    def start(folder: Path) -> Command:
        folder.mkdir()
        words = BATCH[command][0] if command in BATCH else ("train-ae", "images", *TRAIN, "--steps", "60", "--out")
        return Command([*words, str(folder / BATCH[command][1] if command in BATCH else folder / "run")],
                       folder / "said")  # fmt: skip

    began = time.monotonic()
    os.waitpid(start(tmp_path / "undisturbed").pid, 0)
    seconds = time.monotonic() - began
    for moment in range(13):
        folder = tmp_path / str(moment)
        process = start(folder)
        if moment < 12:
            time.sleep(seconds * (moment + 0.5) / 12)
        else:
            written = wait_for(BATCH[command][2] if command in BATCH else "run/metrics.jsonl", folder)
            while not written():
                assert time.monotonic() - began < 600
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if not pid:
            os.kill(process.pid, number)
            status = os.waitpid(process.pid, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        said = (folder / "said").read_text()
        assert code in (0, 130, 128 + number, -number), said  # -number: before there was a command
        assert "Traceback" not in said and "bug" not in said, said
        assert [path for path in leftovers(folder) if not path.endswith(".parts/.lock")] == [], said
    assert code == 130


@pytest.mark.parametrize("reader", ["stderr", "stdout"])
def test_a_training_run_outlives_its_readers(workspace, tmp_path, reader):
    """`2> >(head -1)` and `| head -1`: the pipe's other end is closed before the first word."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "brics_cli", "train-ae", "images", *TRAIN, "--steps", "3", "--out"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, reader: write}
    done = subprocess.run([*command, tmp_path / "run"], cwd=workspace, env=environment(), check=False, **streams)
    os.close(write)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("brics info codes.h5 >&-", 0, ""),
        ("brics info codes.h5 2>&-", 0, ""),
        ("brics info codes.h5 <&- >&- 2>&-", 0, ""),
        ("brics info gone.h5 2>&-", 3, ""),
        ("brics info codes.h5 | head -1; exit ${PIPESTATUS[0]}", 0, ""),
        ("brics info codes.h5 > /dev/full", 6, "error: no space left on the device: standard output."),
        ("brics info codes.h5 --json > /dev/full", 6, "error: no space left on the device: standard output."),
        ("brics --help > /dev/full", 6, "error: no space left on the device: standard output."),
        ("brics info gone.h5 2> /dev/full", 3, ""),
        ("PYTHONIOENCODING=ascii brics info codes.h5", 0, ""),
        ("PYTHONIOENCODING=latin-1 brics recipes", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 brics status", 0, ""),
    ],
)
def test_streams_that_are_not_there(tmp_path, how, code, said):
    write_store(tmp_path / "codes.h5", ["a", "ж"])
    shell = f'brics() {{ "{sys.executable}" -m brics_cli "$@"; }}\nexport -f brics\n{how}'
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment(), capture_output=True, check=False)
    assert done.returncode == code, done
    assert done.stderr.decode().startswith(said) and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_json_in_any_encoding_says_the_same(tmp_path):
    write_store(tmp_path / "codes.h5", ["a"])
    (tmp_path / "codes.h5").rename(tmp_path / "ключ.h5")
    read = []
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "brics_cli", "info", "ключ.h5", "--json"],
            cwd=tmp_path, env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=True,
        )  # fmt: skip
        read.append(json.load(io.TextIOWrapper(io.BytesIO(done.stdout), encoding)))
    assert read[0] == read[1] == read[2] and read[0]["path"] == "ключ.h5"


def test_the_process_of_a_world_ends_before_it_is_killed():
    """A main thread that gets nowhere, as in a collective call whose partner has gone."""
    stuck = (
        "import time\n"
        "from brics_cli.runtime.stopping import in_time, stop_signals\n"
        "with stop_signals(), in_time(leader=True, seconds=0.5):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", stuck], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - start < 10
    assert said == "error: SIGTERM came, and this step did not end in time to be saved.\n"


def test_a_process_that_ends_in_time_is_left_alone():
    before = signal.set_wakeup_fd(-1)
    with in_time(leader=True, seconds=0.1):
        pass
    time.sleep(0.3)
    assert signal.set_wakeup_fd(-1) == before == -1


@pytest.mark.slow
def test_torchrun_s_two_processes_are_done_within_its_30_s(workspace, tmp_path):
    """SIGTERM to torchrun at moments from the first import to the steps: nobody is left for SIGKILL."""
    for moment in (1.0, 4.0, 8.0, 14.0):
        run = tmp_path / f"run{moment}"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
        world = subprocess.Popen(
            [*command, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "brics_cli", "train-ae", "images",
             *TRAIN, "--steps", "99999", "--device", "cpu", "--out", str(run)],
            cwd=workspace, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(moment)
        world.send_signal(signal.SIGTERM)
        start = time.monotonic()
        _, said = world.communicate(timeout=120)
        assert time.monotonic() - start < 28, said
        assert "bug in brics" not in said, said
        assert leftovers(tmp_path) == []


def test_a_store_that_is_cut_while_it_is_read_is_one_line(tmp_path):
    path = write_store(tmp_path / "codes.h5", [f"s{number}" for number in range(40)])
    store = KeyCodeStore(path)
    rows = store.raw([0, 50])
    os.truncate(path, 2500)
    assert rows.shape == (2, 2, 3, 3)
    line = error_line(brics("info", path, cwd=tmp_path, check=3))
    assert "damaged" in line
    with pytest.raises(Exception, match="was cut short while it was read"):
        store.raw([0])


def test_sigbus_is_one_line(tmp_path):
    """What no look at the size can prevent: the file is cut between the look and the read."""
    (tmp_path / "mapped").write_bytes(b"\1" * 2**20)
    reads = (
        "import mmap, os, threading\n"
        "import numpy as np\n"
        "from brics_cli.cli.streams import explain_sigbus\n"
        "explain_sigbus(6)\n"
        "mapped = np.memmap('mapped', np.uint8, 'r')\n"
        "os.truncate('mapped', 0)\n"
        "read = lambda: mapped.take(np.arange(2**19))\n"
        "{how}\n"
    )
    for how in ("read()", "thread = threading.Thread(target=read); thread.start(); thread.join()"):
        done = subprocess.run(
            [sys.executable, "-c", reads.format(how=how)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 6 and done.stderr.startswith("error: a file was cut short"), done
        assert len(done.stderr.splitlines()) == 1
        (tmp_path / "mapped").write_bytes(b"\1" * 2**20)
