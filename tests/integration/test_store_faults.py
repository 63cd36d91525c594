"""encode-dataset and decode by doing: which images, in how many parts, on how many devices; and what goes wrong.

What is compared is rows, keys, order and hashes: whatever happened on the way, they are those of one quiet run.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import brics, error_line
from killing import Command
from PIL import Image
from random_autoencoder import make_autoencoder
from skimage import data as photographs

from brics_cli import KeyCodeStore, open_collection
from brics_cli.codes import StoreWriter, verify_store
from brics_cli.images import ImageError
from brics_cli.images.sinks import pieces
from brics_cli.jobs.encode_dataset import plan_encoding
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import Workspace, read_provenance

NUM_SHARDS, SHARD_SIZE = 6, 20
ENCODE = ("encode-dataset", "shards", "--flips", "--ae", "ae")


def write_shards(folder: Path, *, num_shards: int, first: int = 0) -> None:
    """Shards of crops of a photograph, with classes; image 7 of each is a text."""
    folder.mkdir(parents=True)
    image = photographs.astronaut()
    generator = np.random.default_rng(first)
    for shard in range(first, first + num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(SHARD_SIZE):
                top, left = generator.integers(0, 400, 2)
                buffer = BytesIO()
                Image.fromarray(image[top : top + 72, left : left + 64]).save(buffer, "PNG")
                for name, content in (("png", buffer.getvalue() if index != 7 else b"text"), ("cls", b"%d" % shard)):
                    member = tarfile.TarInfo(f"{index:03d}.{name}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights, shards, and the store of one quiet run."""
    root = tmp_path_factory.mktemp("faults")
    make_autoencoder(root / "ae", seed=0)
    make_autoencoder(root / "other-ae", seed=1)
    write_shards(root / "shards", num_shards=NUM_SHARDS)
    brics(*ENCODE, "--out", "codes.h5", cwd=root, check=5)
    return root


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def contents(path: Path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file if name != "stats"}


def same_store(path: Path, other: Path) -> bool:
    return KeyCodeStore(path).sha256 == KeyCodeStore(other).sha256 and contents(path) == contents(other)


def test_parts_and_merge_give_what_one_run_gives(inside, tmp_path):
    for part in (1, 2, 3):
        brics(*ENCODE, "--part", f"{part}/3", "--out", tmp_path / f"{part}.h5", cwd=inside, check=5)
    said = json.loads(
        brics("merge", *[tmp_path / f"{part}.h5" for part in (3, 1, 2)], "--out", tmp_path / "all.h5", "--verify",
              "--json", cwd=inside, check=0).stdout
    )  # fmt: skip
    assert (said["num_images"], said["num_failed"], said["broken"]) == (114, 6, [])
    assert same_store(tmp_path / "all.h5", inside / "codes.h5")
    again = brics(*ENCODE, "--out", tmp_path / "all.h5", cwd=inside, check=5)
    assert "is complete already" in again.stderr


def test_the_images_of_a_list_of_keys(inside, tmp_path):
    store = KeyCodeStore("codes.h5")
    wanted = [store.keys[index] for index in (100, 3, 40)]
    listed = "\n".join([*wanted, "", wanted[0]]) + "\n"
    (tmp_path / "keys.txt").write_text(listed, encoding="utf-8-sig")  # as Windows' editors save it
    brics(*ENCODE, "--keys", tmp_path / "keys.txt", "--out", tmp_path / "few.h5", cwd=inside, check=0)
    few = KeyCodeStore(tmp_path / "few.h5")
    assert few.keys == sorted(wanted) and few.labels.tolist() == [0, 2, 5]
    assert np.abs(few.raw(slice(None)).astype(int) - store.raw([3, 40, 100])).max() <= 1
    assert verify_store(few.path) == []
    refused = brics(*ENCODE, "--out", tmp_path / "few.h5", cwd=inside, check=3)
    assert "selection: was" in error_line(refused)
    (tmp_path / "keys.txt").write_text("00000/000\nnowhere\n")
    missing = brics(*ENCODE, "--keys", tmp_path / "keys.txt", "--out", tmp_path / "x.h5", cwd=inside, check=2)
    assert "1 of 2 keys are not in" in error_line(missing) and "'nowhere'" in error_line(missing)


def test_the_processes_of_devices_share_the_shards(inside, tmp_path):
    """What two devices do, in this process: each takes some shards, and their parts are those of one run."""
    plan = plan_encoding(
        "shards", autoencoder=Path("ae"), out=tmp_path / "c.h5", device="cpu", flips=True, num_workers=1,
        workspace=Workspace(inside), reporter=SilentReporter(),
    )  # fmt: skip
    with StoreWriter(plan.out, plan.header, plan.shards) as writer:
        work = plan.work(writer.parts_directory)
        for taken in ([4, 0, 2], [1, 5, 3]):
            device_work = pickle.loads(pickle.dumps(replace(work, num_processes=2)))
            events = pickle.loads(pickle.dumps(list(device_work("cpu")(iter(taken)))))
            assert sum(event.num_read for event in events) == 3 * SHARD_SIZE
            assert sum(len(event.failures) for event in events) == 3
        assert writer.pending == []
        writer.merge(parents=())
    assert same_store(plan.out, inside / "codes.h5")


@pytest.mark.slow
def test_two_devices_give_the_same_rows(inside, tmp_path):
    said = brics(
        *ENCODE, "--device", "cpu,cpu", "--out", tmp_path / "two.h5", "--verify", "--json", cwd=inside, check=5
    )
    assert same_store(tmp_path / "two.h5", inside / "codes.h5")
    result = json.loads(said.stdout)
    assert set(result["seconds"]) == {"wait", "compute", "write"} and result["broken"] == []


def test_the_summary_says_what_it_cost(inside, tmp_path):
    done = brics(*ENCODE, "--out", tmp_path / "s.h5", cwd=inside, check=5)
    source_bytes = sum(tar.stat().st_size for tar in (inside / "shards").iterdir()) / (NUM_SHARDS * SHARD_SIZE)
    ratio = source_bytes / KeyCodeStore("codes.h5").header.bytes_per_image
    assert f"1/{ratio:.3g} of its file" in done.stdout and "dB PSNR" in done.stdout and "img/s" in done.stdout
    assert "wait " in done.stderr and "compute " in done.stderr and "write " in done.stderr
    assert "6 of 120 images failed" in done.stderr


def kill_and_resume(arguments: list[str], whole_s: float, point: float, log: Path) -> int:
    """Kill `brics ARGUMENTS` at a part of its time, then run it again to its end; what the kill gave."""
    code = Command(arguments, log).kill_after(whole_s * point)
    assert code in (-signal.SIGKILL, 0, 5), log.read_text()
    brics(*arguments, cwd=Path.cwd())
    return code


def points(num: int, seed: int) -> list[float]:
    """One random point in each `num`-th of a run."""
    generator = random.Random(seed)
    return [(number + generator.random()) / num for number in range(num)]


DEFAULT_POINTS = points(3, seed=0)
ALL_POINTS = [pytest.param(point, marks=[] if point in DEFAULT_POINTS else pytest.mark.slow, id=f"{point:.3f}")
              for point in [*DEFAULT_POINTS, *points(17, seed=1)]]  # fmt: skip


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


@pytest.fixture(scope="module")
def encoding_s(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    out = tmp_path_factory.mktemp("timed") / "codes.h5"
    return seconds_of(lambda: brics(*ENCODE, "--out", out, cwd=workspace, check=5))


@pytest.mark.parametrize("point", ALL_POINTS)
def test_kill_9_while_encoding_changes_nothing(inside, tmp_path, encoding_s, point):
    out = tmp_path / "killed.h5"
    kill_and_resume([*ENCODE, "--out", str(out)], encoding_s, point, tmp_path / "log")
    assert same_store(out, inside / "codes.h5") and verify_store(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "log"]


MERGE_POINTS = {
    "while rows are copied": "brics_cli.codes.finishing.Statistics.merge",
    "before the rename": "brics_cli.codes.finishing.put_in_place",
    "before the parts go": "brics_cli.codes.writer.shutil.rmtree",
}


@pytest.mark.parametrize("point", MERGE_POINTS)
def test_kill_9_while_merging_changes_nothing(inside, tmp_path, monkeypatch, point):
    out = tmp_path / "killed.h5"
    with monkeypatch.context() as patch:  # the forked process has it too
        patch.setattr(MERGE_POINTS[point], lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        assert Command([*ENCODE, "--out", str(out)], tmp_path / "log").kill_after(60) == -signal.SIGKILL
    parts = tmp_path / "killed.h5.parts"
    assert len(list(parts.glob("*.h5"))) == NUM_SHARDS and out.exists() == (point == "before the parts go")
    assert (tmp_path / "killed.h5.tmp").exists() == (not out.exists())
    resumed = brics(*ENCODE, "--out", out, cwd=inside, check=5)
    assert ("is complete already" in resumed.stderr) == (point == "before the parts go")
    assert same_store(out, inside / "codes.h5") and verify_store(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "log"]


def test_a_folder_keeps_the_parts_and_is_the_same_store(inside, tmp_path, monkeypatch):
    """Killed before its index is there it goes on with its parts; then every command takes it as it takes a file."""
    out = tmp_path / "codes"
    with monkeypatch.context() as patch:
        patch.setattr("brics_cli.codes.finishing.atomic_path", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        assert Command([*ENCODE, "--out", f"{out}/"], tmp_path / "log").kill_after(60) == -signal.SIGKILL
    parts = {path: path.stat().st_ino for path in out.glob("parts/*.h5")}
    assert len(parts) == NUM_SHARDS and not (out / "index.h5").exists()
    line = error_line(brics("info", out, cwd=inside, check=3))
    assert "holds parts of a key-code store that is not finished" in line
    resumed = brics(*ENCODE, "--out", f"{out}/", "--json", cwd=inside, check=5)
    said = json.loads(resumed.stdout)
    assert (said["num_now"], said["num_images"], said["num_failed"]) == (0, 114, 6)
    assert resumed.stderr.splitlines()[-1].endswith(f"brics train-diffusion {out}")
    assert parts == {path: path.stat().st_ino for path in out.glob("parts/*.h5")}
    assert sorted(path.name for path in out.iterdir()) == ["index.h5", "parts"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "log"]
    assert KeyCodeStore(out).sha256 == KeyCodeStore(inside / "codes.h5").sha256 and verify_store(out) == []
    brics("merge", out, "--out", tmp_path / "one.h5", cwd=inside, check=0)
    assert same_store(tmp_path / "one.h5", inside / "codes.h5")
    described = json.loads(brics("info", out, "--json", cwd=inside, check=0).stdout)
    assert (described["facts"]["parts"], described["facts"]["images"]) == (NUM_SHARDS, 114)


@pytest.mark.slow
@pytest.mark.parametrize("point", points(6, seed=2))
def test_kill_9_while_encoding_into_a_folder_changes_nothing(inside, tmp_path, encoding_s, point):
    out = tmp_path / "killed"
    kill_and_resume([*ENCODE, "--out", str(out)], encoding_s, point, tmp_path / "log")
    assert KeyCodeStore(out).sha256 == KeyCodeStore(inside / "codes.h5").sha256 and verify_store(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "log"]


@pytest.mark.slow
def test_what_takes_a_store_takes_a_folder(inside, tmp_path):
    """The same figures and images; the workspace finds it, and it is named in the lineage."""
    folder, tiny = tmp_path / "codes", ("--recipe", "tiny", "--steps", 2, "--set", "training.batch_size=4")
    brics(*ENCODE, "--out", folder, cwd=inside, check=5)
    images = {}
    for store, name in ((folder, "of-folder"), (inside / "codes.h5", "of-file")):
        brics("decode", store, "--out", tmp_path / f"{name}.npz", cwd=inside, check=0)
        brics("export", store, "--to", "lightningdit", "--no-labels", "--out", tmp_path / name, cwd=inside, check=0)
        report = brics("eval", "--metric", "psnr", "--fake", store, "--json", cwd=inside).stdout
        written = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))]
        psnr = json.loads(report)["results"][0]["value"]
        images[name] = ((tmp_path / f"{name}.npz").read_bytes(), written, psnr)
    assert images["of-folder"] == images["of-file"]
    said = brics("train-diffusion", *tiny, "--out", "run", cwd=tmp_path, check=0).stderr
    assert "CODES not given: using codes" in said
    assert "shuffle_window: 262144" in (tmp_path / "run" / "config.yaml").read_text()
    assert read_provenance(tmp_path / "run").parent("store").path == str(folder)
    assert "codes" in brics("status", cwd=tmp_path, check=0).stdout
    brics("report", "--out", "page.html", cwd=tmp_path, check=0)
    brics("plot", "run", "--out", "curves.png", cwd=tmp_path, check=0)
    assert "every invariant" in brics("info", folder, "--verify", cwd=tmp_path, check=0).stdout


def test_files_that_cannot_be_read_are_failures(inside, tmp_path):
    """Links to nothing and in circles, and a file that goes before it is read; what a disk cannot give ends the job."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(photographs.astronaut()[number : number + 64, :64]).save(folder / f"{number}.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "nothing.png").symlink_to("nowhere.png")
    done = brics("encode-dataset", "images", "--ae", inside / "ae", "--verify", "--json", cwd=tmp_path, check=5)
    assert dict(json.loads(done.stdout)["failures"]) == {
        "circle": "cannot be read: Too many levels of symbolic links",
        "nothing": "cannot be read: No such file or directory",
    }
    assert KeyCodeStore(tmp_path / "codes.h5").keys == ["0", "1", "2"]
    assert "2 of 5 images failed, listed in" in done.stderr
    opened = open_collection(folder)
    (folder / "1.png").unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        opened.read(0, 1)
    (folder / "memory.png").symlink_to("/proc/self/mem")  # reading it is EIO
    ended = brics("encode-dataset", "images", "--ae", inside / "ae", "--out", "x.h5", cwd=tmp_path, check=6)
    assert "input/output error" in error_line(ended) and not (tmp_path / "x.h5").exists()


@pytest.mark.parametrize(
    ("out", "point"),
    [
        pytest.param(out, point, marks=[] if (out, number) in {("pngs", 1), ("x.zip", 2)} else pytest.mark.slow)
        for out in ("pngs", "shards-out", "x.zip", "x.tar")
        for number, point in enumerate(points(4, seed=2))
    ],
)
def test_kill_9_while_decoding_changes_nothing(inside, tmp_path, monkeypatch, out, point):
    monkeypatch.setattr(pieces, "PIECE_SIZE", 25)
    arguments = ["decode", "codes.h5", "--ae", "ae", "--batch-size", "8", "--out"]
    settings = ["--format", "wds"] if out == "shards-out" else []
    whole, killed = tmp_path / "whole" / out, tmp_path / "killed" / out
    for path in (whole, killed):
        path.parent.mkdir()
    whole_s = seconds_of(lambda: brics(*arguments, whole, *settings, cwd=inside, check=0))
    kill_and_resume([*arguments, str(killed), *settings], whole_s, point, tmp_path / "log")
    assert files_below(killed.parent) == files_below(whole.parent)
    assert [path for path in killed.parent.rglob("*") if path.name.endswith((".tmp", ".pieces", ".lock"))] == []


def files_below(folder: Path) -> dict[str, bytes]:
    """Everything but provenance, which holds the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("brics.json")
    }


def test_decoded_files_hold_keys_and_classes(inside, tmp_path):
    store = KeyCodeStore("codes.h5")
    for name in ("x.zip", "x.tar"):
        brics("decode", "codes.h5", "--ae", "ae", "--out", tmp_path / name, cwd=inside, check=0)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        listing = json.loads(archive.read("dataset.json"))
    assert [key for _, key in listing["keys"]] == store.keys
    assert [label for _, label in listing["labels"]] == store.labels.tolist()
    read = list(open_collection(tmp_path / "x.tar").iter_shard(0))
    assert [raw.key for raw in read] == [f"x/{key}" for key in store.keys]
    assert [raw.label for raw in read] == store.labels.tolist()


def test_what_another_store_began_in_a_zip_is_not_gone_on_with(inside, tmp_path):
    arguments = ["decode", "codes.h5", "--ae", "ae", "--batch-size", "4", "--out", str(tmp_path / "x.zip")]
    begun = tmp_path / "x.zip.pieces"
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: (begun / "brics.json").exists(), signal.SIGKILL) == -9
    brics("encode-dataset", "shards", "--ae", "ae", "--limit", 20, "--out", tmp_path / "few.h5", cwd=inside, check=5)
    other = brics("decode", tmp_path / "few.h5", "--ae", "ae", "--out", tmp_path / "x.zip", cwd=inside, check=3)
    assert "was begun with other inputs: store: was" in error_line(other)
    brics(*arguments, cwd=inside, check=0)
    assert not begun.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_another_file_system(inside, disk):
    brics(*ENCODE, "--out", disk / "codes.h5", cwd=inside, check=5)
    assert same_store(disk / "codes.h5", inside / "codes.h5")
    assert [path.name for path in disk.iterdir()] == ["codes.h5"]


@pytest.mark.parametrize("free_kib", [60, 250, 420], ids="{} KiB free".format)
def test_a_full_disk_ends_with_6_and_the_same_command_goes_on(inside, disk, free_kib):
    """Room for no part, for some, for all of them but not for the store."""
    (disk / "ballast").write_bytes(bytes(2**20 - free_kib * 2**10))
    line = error_line(brics(*ENCODE, "--out", disk / "codes.h5", cwd=inside, check=6))
    assert "no space left on the device" in line and "run the same command again" in line
    assert not (disk / "codes.h5").exists() and not list(disk.glob("*.tmp"))
    (disk / "ballast").unlink()
    brics(*ENCODE, "--out", disk / "codes.h5", cwd=inside, check=5)
    assert same_store(disk / "codes.h5", inside / "codes.h5")
    assert [path.name for path in disk.iterdir()] == ["codes.h5"]


def test_a_read_only_place(inside, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for command in (
        [*ENCODE, "--out", disk / "codes.h5"],
        ["merge", "codes.h5", "more.h5", "--out", disk / "codes.h5"],
        ["decode", "codes.h5", "--ae", "ae", "--out", disk / "x.zip"],
        ["decode", "codes.h5", "--ae", "ae", "--out", disk / "pngs"],
        ["reconstruct", photograph(inside), "--ae", "ae", "--out", disk / "sheet.png"],
    ):
        if command[0] == "merge":
            more_images(inside)
        assert "the file system is read-only" in error_line(brics(*command, cwd=inside, check=6)), command


def photograph(folder: Path) -> Path:
    path = folder / "photograph.png"
    Image.fromarray(photographs.astronaut()[:100, :100]).save(path)
    return path


def more_images(inside: Path) -> None:
    """A second collection and its store, `more.h5`."""
    if not (inside / "more").exists():
        write_shards(inside / "more", num_shards=1, first=NUM_SHARDS)
        brics("encode-dataset", "more", "--flips", "--ae", "ae", "--out", "more.h5", cwd=inside, check=5)


def test_a_collection_grows(inside, tmp_path):
    more_images(inside)
    brics("merge", "codes.h5", "more.h5", "--out", tmp_path / "all.h5", "--verify", cwd=inside, check=0)
    grown = KeyCodeStore(tmp_path / "all.h5")
    assert grown.keys == KeyCodeStore("codes.h5").keys + KeyCodeStore("more.h5").keys and len(grown) == 133
    brics("decode", grown.path, "--ae", "ae", "--out", tmp_path / "x.zip", cwd=inside, check=0)


def test_truncated_files_are_seen(inside, tmp_path):
    out = tmp_path / "codes.h5"
    command = Command([*ENCODE, "--out", str(out)], tmp_path / "log")
    parts = tmp_path / "codes.h5.parts"
    assert command.stop_when(lambda: len(list(parts.glob("*.h5"))) >= 2, signal.SIGKILL) == -9
    part = sorted(parts.glob("*.h5"))[0]
    part.write_bytes(part.read_bytes()[:-100])
    again = brics(*ENCODE, "--out", out, cwd=inside, check=5)
    assert "encoding again" in again.stderr and same_store(out, inside / "codes.h5")
    out.write_bytes(out.read_bytes()[:-1000])
    for command_line in (["info", out, "--verify"], ["decode", out, "--ae", "ae", "--out", tmp_path / "x"],
                         ["merge", out, "codes.h5", "--out", tmp_path / "m.h5"]):  # fmt: skip
        line = error_line(brics(*command_line, cwd=inside, check=3))
        assert "truncated" in line and "codes.h5" in line


def test_the_source_or_the_autoencoder_changed_in_between(inside, tmp_path):
    source = tmp_path / "shards"
    shutil.copytree(inside / "shards", source)
    arguments = ["encode-dataset", str(source), "--ae", "ae", "--out", str(tmp_path / "c.h5")]
    command = Command(arguments, tmp_path / "log")
    parts = tmp_path / "c.h5.parts"
    assert command.stop_when(lambda: any(parts.glob("*.h5")), signal.SIGKILL) == -9
    other = brics(*arguments, "--ae", "other-ae", cwd=inside, check=3)
    assert "holds the beginning of another store: autoencoder: was" in error_line(other)
    write_shards(tmp_path / "new", num_shards=1, first=NUM_SHARDS)
    (tmp_path / "new" / f"{NUM_SHARDS:05d}.tar").rename(source / f"{NUM_SHARDS:05d}.tar")
    line = error_line(brics(*arguments, cwd=inside, check=3))
    assert "num_images: was 120, now 140; source: was" in line and "--overwrite" in line
    brics(*arguments, "--overwrite", cwd=inside, check=5)
    assert len(KeyCodeStore(tmp_path / "c.h5")) == 133 and not parts.exists()


def test_two_writers_at_once(inside, tmp_path):
    arguments = [*ENCODE, "--out", str(tmp_path / "c.h5")]
    first = Command(arguments, tmp_path / "log")
    while not (tmp_path / "c.h5.parts" / "identity.json").exists():
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)  # so that it surely holds the lock while the second one tries
    try:
        second = brics(*arguments, cwd=inside, check=6)
        assert "another brics process is writing" in error_line(second)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(first.pid, 0)[1]) == 5
    assert same_store(tmp_path / "c.h5", inside / "codes.h5")
