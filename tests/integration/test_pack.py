"""brics pack by doing: the formats, resuming after kill -9 at random points, a full disk, every kind of source.

What is compared is bytes: shards, manifest and list of failures of an interrupted pack equal the uninterrupted one's.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
import webdataset
from commands import brics, error_line
from image_files import encoded, noise, read_all, write_tar
from killing import Command
from PIL import Image
from skimage import data as photographs

from brics_cli.cli.app import run
from brics_cli.images import open_collection, pixels
from brics_cli.images.packs import SourceLog
from brics_cli.images.pixels import load_pixels
from brics_cli.workspace import sha256_of_file

NUM_IMAGES = 120
SHARD_SIZE = 10
ARGUMENTS = ("--size", "64", "--shard-size", SHARD_SIZE, "--workers", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of photographs in three formats; one of them is a text, one a link to nothing."""
    root = tmp_path_factory.mktemp("photos")
    images = [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        top, left = generator.integers(0, 200, 2)
        crop = Image.fromarray(images[number % 3][top : top + 96, left : left + 80])
        crop.save(root / f"{number:04d}.{('png', 'jpg', 'webp')[number % 3]}")
    (root / "0100.jpg").write_text("not an image")
    (root / "0050.webp").unlink()
    (root / "0050.webp").symlink_to("gone")
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but the provenance, which holds the time."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "brics.json"}


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted pack."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    brics("pack", photos, "--out", out, *ARGUMENTS, "-q", cwd=out.parent, check=5)
    return out


def test_the_manifest_says_what_was_written(packed: Path, photos: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["transform"] == "crop-bicubic/pillow-1" and manifest["format"] == "webp"
    assert [shard["name"] for shard in manifest["shards"]] == [f"{number:05d}.tar" for number in range(12)]
    for shard in manifest["shards"]:
        tar = packed / shard["name"]
        assert shard["sha256"] == sha256_of_file(tar) and shard["num_bytes"] == tar.stat().st_size
    counts = {shard["name"]: shard["num_images"] for shard in manifest["shards"]}
    assert counts["00005.tar"] == counts["00010.tar"] == SHARD_SIZE - 1 and counts["00000.tar"] == SHARD_SIZE
    assert manifest["num_images"] == NUM_IMAGES - 2 and manifest["num_failed"] == 2
    assert [failure["key"] for failure in manifest["failures"]] == ["0050", "0100"]
    assert "No such file" in manifest["failures"][0]["reason"]
    assert manifest["source_sha256"] == open_collection(photos).fingerprint


def test_shards_that_no_longer_fit_their_manifest_are_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(packed), str(copy)], check=True)
    assert len(open_collection(copy)) == NUM_IMAGES - 2
    whole = (copy / "00003.tar").read_bytes()
    (copy / "00003.tar").write_bytes(whole + bytes(512))
    finished = brics("pack", copy, "--out", tmp_path / "again", "--size", 64, cwd=tmp_path, check=3)
    assert f"00003.tar has {len(whole) + 512:,} bytes, and manifest.json says {len(whole):,}" in error_line(finished)
    (copy / "00003.tar").unlink()
    finished = brics("pack", copy, "--out", tmp_path / "again", "--size", 64, cwd=tmp_path, check=3)
    assert "00003.tar is missing, and manifest.json lists it" in error_line(finished)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats_repeat_to_the_byte_and_webdataset_reads_them(photos: Path, tmp_path: Path, format: str) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in (0, 1, 2):
        source = next(photos.glob(f"{number:04d}.*"))
        (few / source.name).write_bytes(source.read_bytes())
        (few / f"{source.stem}.cls").write_text(str(number))
        (few / f"{source.stem}.json").write_text(json.dumps({"n": number}))
    for out, workers in (("one", 1), ("two", 3)):
        brics("pack", few, "--out", out, "--size", 64, "--codec", format, "--workers", workers, cwd=tmp_path, check=0)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    extension = "jpg" if format == "jpeg" else format
    samples = list(webdataset.WebDataset(str(tmp_path / "one" / "00000.tar"), shardshuffle=False))
    for sample, source in zip(samples, sorted(path for path in few.iterdir() if path.suffix[1:] in "pngjpgwebp"),
                              strict=True):  # fmt: skip
        assert sample["__key__"] == source.stem
        assert int(sample["cls"]) == int(source.stem) and json.loads(sample["json"]) == {"n": int(source.stem)}
        found = load_pixels(sample[extension], transform="none", size=64)
        wanted = load_pixels(source.read_bytes(), transform="crop-bicubic", size=64)
        if format == "jpeg":
            assert 0 < np.abs(found.astype(int) - wanted).mean() < 3
        else:
            assert np.array_equal(found, wanted)


def test_quality_is_jpegs_and_part_of_what_a_pack_is(photos: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in (40, 98):
        arguments = ("pack", photos, "--out", f"q{quality}", "--size", 64, "--codec", "jpeg", "--quality", quality)
        brics(*arguments, cwd=tmp_path, check=5)
        manifest = json.loads((tmp_path / f"q{quality}" / "manifest.json").read_text())
        assert manifest["format"] == f"jpeg-{quality}"
        sizes.append(manifest["num_bytes"])
    assert sizes[0] < sizes[1]
    again = brics("pack", photos, "--out", "q98", "--size", 64, "--codec", "jpeg", cwd=tmp_path, check=4)
    assert "q98 is already there" in error_line(again)


def test_every_kind_of_source_gives_the_same_shards(tmp_path: Path) -> None:
    """The same images as a folder, a tar, a tar.gz, a zip, an LMDB and a parquet table: the same pixels and labels."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = {f"{number:02d}": noise(number, side=24) for number in range(5)}
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for key, data in images.items():
            (tmp_path / "folder" / f"{key}.png").write_bytes(data)
            archive.writestr(f"{key}.png", data)
    members = [(f"{key}.png", data) for key, data in images.items()]
    write_tar(tmp_path / "x.tar", members)
    write_tar(tmp_path / "x.tar.gz", members, mode="w:gz")
    (tmp_path / "lsun" / "x_train_lmdb").mkdir(parents=True)
    database = str(tmp_path / "lsun" / "x_train_lmdb")
    with lmdb.open(database, map_size=2**22) as environment, environment.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    column = pyarrow.array([{"bytes": data, "path": None} for data in images.values()],
                           pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))  # fmt: skip
    parquet.write_table(pyarrow.table({"image": column}), tmp_path / "x.parquet")
    pixels = {}
    for source in ("folder", "x.zip", "x.tar", "x.tar.gz", "lsun", "x.parquet"):
        out = tmp_path / "out" / source.replace(".", "-")
        brics("pack", source, "--out", out, "--size", 16, cwd=tmp_path, check=0)
        pixels[source] = [raw.data for raw in read_all(open_collection(out))]
    assert len(pixels["folder"]) == 5 and all(found == pixels["folder"] for found in pixels.values())


def test_labels_of_folders_and_subsets(tmp_path: Path) -> None:
    for name in ("train/cats/a.png", "train/dogs/a.png", "val/cats/b.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(noise(0))
    arguments = ("pack", "data", "--subset", "train", "--labels", "folder", "--out", "out", "--size", 16)
    brics(*arguments, cwd=tmp_path, check=0)
    read = read_all(open_collection(tmp_path / "out"))
    assert [(raw.key, raw.label) for raw in read] == [("00000/cats/a", 0), ("00000/dogs/a", 1)]
    assert "subset" in error_line(brics("pack", "data", "--subset", "test", "--out", "x", cwd=tmp_path, check=2))


@pytest.fixture(scope="module")
def seconds(packed: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """What an uninterrupted pack takes in a forked process."""
    root = tmp_path_factory.mktemp("timed")
    start = time.monotonic()
    command = Command(["pack", str(photos), "--out", str(root / "out"), *map(str, ARGUMENTS), "-q"], root / "log")
    assert command.kill_after(120) == 5
    return time.monotonic() - start


@pytest.mark.parametrize("point", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 20))])
def test_kill_9_at_a_random_point_and_resume(
    photos: Path, packed: Path, seconds: float, tmp_path: Path, point: int
) -> None:
    out = tmp_path / "out"
    arguments = ["pack", str(photos), "--out", str(out), *map(str, ARGUMENTS), "-q"]
    fraction = random.Random(point).random()
    assert Command(arguments, tmp_path / "log").kill_after(fraction * seconds) in (-signal.SIGKILL, 5)
    left = len(list(out.glob("*.tar"))) if out.exists() else 0
    assert run(arguments) == 5
    assert files_of(out) == files_of(packed), f"killed after {fraction:.0%}, {left} shards were whole"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] in ([], [".out.lock"])


def test_killed_right_after_it_was_complete(
    photos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["pack", str(photos), "--out", str(out), *map(str, ARGUMENTS), "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(SourceLog, "discard", lambda self: os._exit(9))
        assert Command(arguments, tmp_path / "log").kill_after(120) == 9
    assert (out / SourceLog.NAME).exists() and json.loads((out / "brics.json").read_text())["complete"]
    assert run(arguments) == 5 and files_of(out) == files_of(packed)


def test_ctrl_c_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    arguments = ["pack", str(photos), "--out", str(tmp_path / "out"), *map(str, ARGUMENTS)]
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: any(tmp_path.glob("out/*.tar")), signal.SIGINT) == 130
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "interrupted; whole shards in" in last and f"brics pack {photos}" in last
    assert run([*arguments, "-q"]) == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB; skipped where mounting is not allowed."""
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_keeps_whole_shards_and_goes_on_when_there_is_space(
    photos: Path, packed: Path, small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "shards"
    finished = brics("pack", photos, "--out", out, *ARGUMENTS, "-q", cwd=tmp_path, check=6)
    assert "no space left on the device" in error_line(finished)
    whole = sorted(path.name for path in out.glob("*.tar"))
    assert 0 < len(whole) < 12
    assert all((out / name).read_bytes() == (packed / name).read_bytes() for name in whole)
    assert not (out / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    brics("pack", photos, "--out", out, *ARGUMENTS, "-q", cwd=tmp_path, check=5)
    assert files_of(out) == files_of(packed)


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(noise(number))
    (tmp_path / "in" / "9.png").write_text("no image")
    arguments = ("pack", "in", "--out", "out", "--size", 16, "--shard-size", 2)
    brics(*arguments, "--max-failures", 0, cwd=tmp_path, check=5)  # stops before it is complete
    (tmp_path / "in" / "5.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    finished = brics(*arguments, cwd=tmp_path, check=3)
    assert "has changed since out was made from it: it holds other images, or other names" in error_line(finished)
    brics(*arguments, "--overwrite", cwd=tmp_path, check=5)
    assert len(open_collection(tmp_path / "out")) == 5


def test_two_packs_of_one_output_at_once(photos: Path, packed: Path, tmp_path: Path) -> None:
    first = Command(["pack", str(photos), "--out", str(tmp_path / "out"), *map(str, ARGUMENTS)], tmp_path / "log")
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "brics.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = brics("pack", photos, "--out", "out", *ARGUMENTS, cwd=tmp_path, check=6)
        assert "another brics process is writing out" in error_line(second)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.kill_after(120) == 5 and files_of(tmp_path / "out") == files_of(packed)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A FIFO is no image and hangs nobody; a file that the disk cannot give is the machine's fault."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(noise(0))
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    brics("pack", "in", "--out", "out", "--size", 16, cwd=tmp_path, check=0)
    assert len(open_collection(tmp_path / "out")) == 1
    (folder / "b.png").symlink_to("/proc/self/mem")  # reading it is EIO
    finished = brics("pack", "in", "--out", "other", "--size", 16, cwd=tmp_path, check=6)
    assert "input/output error" in error_line(finished)


@pytest.mark.parametrize(
    ("dry", "helps"),
    [
        ([], "Use fewer --workers; whole shards are kept."),
        (["--dry-run"], "Free some memory: one image is decoded at a time."),
    ],
)
def test_out_of_memory_names_what_helps(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: list[str], helps: str
) -> None:
    def no_memory(_: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "decode_image", no_memory)
    finished = brics("pack", photos, "--out", "out", *ARGUMENTS, *dry, cwd=tmp_path, check=6)
    assert f"error: out of memory (decoding). {helps}" in finished.stderr
