"""Fingerprints: any change of any image is seen, a copy is recognised, and what was read once is not read again."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from image_files import noise, write_tar
from PIL import Image

from brics_cli.errors import ArtefactError
from brics_cli.images import Collection, fingerprints, load_shards, open_collection
from brics_cli.images import collection as collections
from brics_cli.images.fingerprints import (
    changed_shards,
    check_unchanged,
    digests,
    known_digests,
    known_fingerprint,
    remember,
)
from brics_cli.images.selection import every_nth_shard, select_keys
from brics_cli.runtime.reporting import SilentReporter

Files = dict[str, bytes]


def bmp(pixels: np.ndarray) -> bytes:
    """Equal sizes of image, equal numbers of bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def write_folder(path: Path, files: Files) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(method: int) -> Callable[[Path, Files], Path]:
    def write(path: Path, files: Files) -> Path:
        with zipfile.ZipFile(path.with_suffix(".zip"), "w", method) as file:
            for name, data in files.items():
                file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, method)
        return path.with_suffix(".zip")

    return write


def write_tars(mode: str) -> Callable[[Path, Files], Path]:
    def write(path: Path, files: Files) -> Path:
        path.mkdir(exist_ok=True)
        write_tar(path / ("x.tar.gz" if mode else "x.tar"), files.items(), mode=f"w:{mode}")
        return path

    return write


def write_lmdb(path: Path, files: Files) -> Path:
    path.mkdir(exist_ok=True)
    with lmdb.open(str(path), map_size=2**22) as file, file.begin(write=True) as transaction:
        for name, data in files.items():
            transaction.put(name.partition(".")[0].replace("/", "-").encode(), data)
    return path


def write_parquet(path: Path, files: Files) -> Path:
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": {"bytes": data, "path": name}, "label": 1} for name, data in files.items()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"), compression="none")
    return path.with_suffix(".parquet")


FORMS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": write_folder,
    "zip": write_zip(zipfile.ZIP_STORED),
    "deflated zip": write_zip(zipfile.ZIP_DEFLATED),
    "tar": write_tars(""),
    "tar.gz": write_tars("gz"),
    "LMDB": write_lmdb,
    "parquet": write_parquet,
}


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections are opened a minute after their files were written: their signatures can be trusted."""
    monkeypatch.setattr(collections.time, "time_ns", lambda now=time.time_ns: now() + 60 * 10**9)


def next_tick(folder: Path) -> None:
    """Wait until the clock of the file system has moved on."""
    probe = folder / ".probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()
    probe.unlink()


def reads(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are read of it from now on."""
    read: list[int] = []
    original = type(collection).read

    def counted(self: Collection, shard_index: int, index: int) -> object:
        read.append(index)
        return original(self, shard_index, index)

    monkeypatch.setattr(type(collection), "read", counted)
    return read


def any_change_is_seen(folder: Path, num_cases: int, *, seed: int) -> None:
    """Change one bit of one pixel of one image, names, sizes and mtimes kept: another fingerprint, each time."""
    generator = random.Random(seed)
    for case, (name, write) in zip(range(num_cases), itertools.cycle(FORMS.items()), strict=False):
        width, height, num = generator.randint(4, 9), generator.randint(4, 9), generator.randint(1, 4)
        draw = np.random.default_rng(generator.randrange(2**32))
        images = [draw.integers(0, 256, (height, width, 3), np.uint8) for _ in range(num)]
        files = {f"{'sub/' * (number % 2)}{number}.bmp": bmp(pixels) for number, pixels in enumerate(images)}
        (folder / f"{case}").mkdir()
        path = write(folder / f"{case}" / "x", files)
        before = open_collection(path).fingerprint
        copied = shutil.copytree(folder / f"{case}", folder / "elsewhere") / path.name
        assert open_collection(copied).fingerprint == before, (seed, case, name)
        places = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        times = {file: file.stat() for file in places}
        next_tick(folder)
        changed = generator.randrange(num)
        at = generator.randrange(height), generator.randrange(width), generator.randrange(3)
        images[changed][at] ^= 1 << generator.randrange(8)
        write(folder / f"{case}" / "x", {name: bmp(images[int(Path(name).stem)]) for name in files})
        for file, status in times.items():
            if name not in ("deflated zip", "tar.gz", "LMDB"):
                assert file.stat().st_size == status.st_size
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert open_collection(path).fingerprint != before, (seed, case, name)
        shutil.rmtree(folder / f"{case}")
        shutil.rmtree(folder / "elsewhere")


def test_any_change_of_any_pixel_in_any_form_is_seen(tmp_path: Path, later: None) -> None:
    any_change_is_seen(tmp_path, 140, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_any_change_of_any_pixel_is_seen_1000_times(tmp_path: Path, later: None, seed: int) -> None:
    any_change_is_seen(tmp_path, 1000, seed=seed)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_decoded_has_the_digest_of_what_is_read(form: str, tmp_path: Path) -> None:
    """`load_shards` takes it on the way, of files that are no image too."""
    files = {f"{number}.png": noise(number, 16) for number in range(7)} | {"8.png": b"no image" * 20}
    collection = open_collection(FORMS[form](tmp_path / "x", files))
    contents = [
        batch.content for batch in load_shards(collection, transform="none", size=16, batch_size=3) if batch.content
    ]
    assert [content.digest for content in contents] == list(digests(collection).values())
    assert not any(content.unchanged is False for content in contents)


def test_processes_that_decode_take_the_same_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = open_collection(write_folder(tmp_path / "x", {f"{i}.png": noise(i) for i in range(40)}))
    expected = digests(collection)[0]
    monkeypatch.setattr("brics_cli.images.loader.WORTH_A_PROCESS", 1)
    batches = list(load_shards(collection, transform="crop-bicubic", size=8, num_workers=1, batch_size=8))
    assert batches[-1].content is not None and batches[-1].content.digest == expected


def test_label_metadata_key_and_order_are_part_of_it(tmp_path: Path) -> None:
    files = {"a.png": noise(1), "a.cls": b"1", "b.png": noise(2), "b.json": b'{"n": 1}'}
    annotated: list[Files] = [
        files,
        {**files, "a.cls": b"2"},
        {**files, "b.json": b'{"n": 2}'},
        {name: data for name, data in files.items() if name != "a.cls"},
        {**files, "b.cls": b"1"},
    ]
    renamed: list[Files] = [
        {**files, "a.png": noise(2), "b.png": noise(1)},
        {name.replace("b.", "c."): data for name, data in files.items()},
        {"a.png": noise(1)},
    ]
    for form, write in (("folder", write_folder), ("zip", write_zip(zipfile.ZIP_STORED))):
        opened = [
            open_collection(write(tmp_path / f"{number}-{form}", variant))
            for number, variant in enumerate([*annotated, *renamed])
        ]
        assert len({digests(collection)[0] for collection in opened}) == len(opened)
        assert len({collection.fingerprint for collection in opened}) == 1 + len(renamed), "labels are no images"
    assert open_collection(tmp_path / "0-folder").fingerprint == open_collection(tmp_path / "0-zip.zip").fingerprint


def test_the_fingerprint_is_of_images_whatever_labels_they_are_given(tmp_path: Path, later: None) -> None:
    path = write_folder(tmp_path / "x", {"a/0.png": noise(1), "b/0.png": noise(2)})
    plain, classes = open_collection(path), open_collection(path, labels="folder")
    assert plain.fingerprint == classes.fingerprint
    assert digests(plain) != digests(classes)
    assert known_digests(open_collection(path)) == digests(plain)
    assert known_digests(open_collection(path, labels="folder")) == digests(classes)
    path = write_folder(tmp_path / "y", {"0.png": noise(1), "0.cls": b"1"})
    assert digests(open_collection(path)) != digests(open_collection(path, labels="none"))
    assert known_digests(open_collection(path)) != known_digests(open_collection(path, labels="none"))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_read_once_is_not_read_again(
    form: str, tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FORMS[form](tmp_path / "x", {f"{number}.png": noise(number) for number in range(5)})
    first = open_collection(path)
    assert known_fingerprint(first) is None
    fingerprint = first.fingerprint
    read = reads(first, monkeypatch)
    again = open_collection(path)
    assert known_fingerprint(again) == again.fingerprint == fingerprint and not read


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", 3)
    whole = open_collection(write_folder(tmp_path / "x", {f"{i}.png": noise(i) for i in range(7)}))
    views = [
        whole,
        whole.first(4),
        whole.first(5),
        select_keys(whole, ["0", "4"]),
        select_keys(whole, ["1", "4"]),
        every_nth_shard(whole, part=1, num_parts=2),
    ]
    for _ in range(2):  # read, then remembered
        assert len({fingerprints.fingerprint(view) for view in views}) == len(views)
    everything = select_keys(whole, list(whole.keys()))
    read = reads(whole, monkeypatch)
    assert fingerprints.fingerprint(everything) == whole.fingerprint and not read


def test_files_just_written_are_not_trusted_by_their_times(tmp_path: Path) -> None:
    """git's racy index: a rewrite within one tick of the clock would not be seen."""
    path = write_folder(tmp_path / "x", {"a.png": noise(1)})
    collection = open_collection(path)
    assert digests(collection) and not known_digests(open_collection(path))


def test_a_file_that_changes_while_it_is_read_is_not_trusted(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "x", {f"{i}.png": noise(i) for i in range(4)})
    collection = open_collection(path)
    original = type(collection).read

    def read(self: Collection, shard_index: int, index: int) -> object:
        raw = original(self, shard_index, index)
        if index == 2:
            next_tick(tmp_path)
            (path / "2.png").write_bytes(noise(99))
        return raw

    monkeypatch.setattr(type(collection), "read", read)
    content = list(load_shards(collection, transform="none", size=16, num_workers=1))[-1].content
    assert content is not None and not content.unchanged
    assert not known_digests(open_collection(path))


def test_rewritten_in_place_with_its_time_set_back(tmp_path: Path, later: None) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    path = write_folder(tmp_path / "x", {"a.bmp": bmp(pixels)})
    before, status = open_collection(path).fingerprint, (path / "a.bmp").stat()
    next_tick(tmp_path)
    with (path / "a.bmp").open("r+b") as file:
        file.write(bmp(pixels + 1))
    os.utime(path / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    now = (path / "a.bmp").stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (status.st_size, status.st_mtime_ns, status.st_ino)
    assert known_fingerprint(open_collection(path)) is None
    assert open_collection(path).fingerprint != before


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_touched_shard_is_read_and_accepted_and_a_changed_one_is_named(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", 2)
    path = write_folder(tmp_path / "x", {f"{i}.png": noise(i) for i in range(6)})
    recorded = digests(open_collection(path))
    heard = Heard()
    assert changed_shards(open_collection(path), recorded, reporter=heard) == {} and not heard.said
    next_tick(tmp_path)
    os.utime(path / "3.png")
    assert changed_shards(open_collection(path), recorded, reporter=heard) == {}
    assert len(heard.said) == 1 and "1 of 3 shards were read" in heard.said[0] and "same images" in heard.said[0]
    (path / "3.png").write_bytes(noise(2))
    (path / "2.png").write_bytes(noise(3))
    with pytest.raises(ArtefactError, match=r"of 3 shards 1 hold other images.*first is 00001, from '2' on.*Do this"):
        check_unchanged(open_collection(path), recorded, output=Path("out"), reporter=heard, next="Do this.")


def test_a_copy_elsewhere_is_the_same(tmp_path: Path, later: None) -> None:
    path = write_folder(tmp_path / "x", {"a/1.png": noise(1), "b.png": noise(2)})
    fingerprint = open_collection(path).fingerprint
    assert open_collection(shutil.copytree(path, tmp_path / "copy")).fingerprint == fingerprint
    assert open_collection(path.rename(tmp_path / "moved")).fingerprint == fingerprint


def test_a_file_that_cannot_be_read_is_part_of_it(tmp_path: Path, later: None) -> None:
    path = write_folder(tmp_path / "x", {"a.png": noise(1)})
    (path / "b.png").symlink_to("nowhere")
    before = open_collection(path).fingerprint
    assert known_fingerprint(open_collection(path)) == before
    (path / "nowhere").write_bytes(b"")
    assert open_collection(path).fingerprint != before


def test_writers_at_the_same_time_keep_each_others_digests(tmp_path: Path) -> None:
    collection = open_collection(write_folder(tmp_path / "x", {"a.png": noise(1)}))
    threads = [
        threading.Thread(
            target=lambda first=first: [remember(collection, {f"{first + n:064x}": f"{n:0128x}"}) for n in range(100)]
        )
        for first in range(0, 800, 100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fingerprints._remembered(collection)) == 800


def test_a_line_cut_short_is_no_digest(tmp_path: Path, memory: Path) -> None:
    collection = open_collection(write_folder(tmp_path / "x", {"a.png": noise(1)}))
    remember(collection, {"a" * 64: "b" * 128})
    file = next(memory.iterdir())
    for num_bytes in range(194):
        file.write_text(f"{'a' * 64} {'b' * 128}\n" + f"{'c' * 64} {'d' * 128}\n"[:num_bytes])
        remember(collection, {"e" * 64: "f" * 128})
        found = fingerprints._remembered(collection)
        assert found["a" * 64] == "b" * 128 and set(found) <= {"a" * 64, "e" * 64}
    file.write_bytes(os.urandom(1000))
    assert fingerprints._remembered(collection) == {}


def test_without_a_place_to_remember_everything_is_read(
    tmp_path: Path, later: None, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text("no folder can be made here")
    path = write_folder(tmp_path / "x", {"a.png": noise(1)})
    fingerprint = open_collection(path).fingerprint
    read = reads(open_collection(path), monkeypatch)
    assert open_collection(path).fingerprint == fingerprint and read == [0]


def test_another_version_of_brics_reads_again(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may make other labels of the same files."""
    path = write_folder(tmp_path / "x", {"a.png": noise(1)})
    assert open_collection(path).fingerprint == known_fingerprint(open_collection(path))
    monkeypatch.setattr("brics_cli.__version__", "0.0.0")
    assert known_fingerprint(open_collection(path)) is None


def test_recognising_takes_few_calls_per_image(tmp_path: Path, later: None) -> None:
    """Time is measured on a quiet machine (test_changed_sources.py, slow); calls are the same on a busy one."""

    def calls_to_recognise(num: int) -> int:
        path = write_numbered(tmp_path / str(num), num)
        assert open_collection(path).fingerprint
        num_calls = 0

        def count_calls(_frame: object, event: str, _arg: object) -> None:
            nonlocal num_calls
            num_calls += event in ("call", "c_call")

        sys.setprofile(count_calls)
        try:
            assert known_fingerprint(open_collection(path)) is not None
        finally:
            sys.setprofile(None)
        return num_calls

    assert (calls_to_recognise(3_000) - calls_to_recognise(1_000)) / 2_000 <= 250  # 191 when this was written


def write_numbered(path: Path, num: int) -> Path:
    """A folder of `num` equal images, and a dataset.json with a label of each."""
    data, listing = noise(1), {"labels": [[f"{n:05d}.png", n] for n in range(num)]}
    write_folder(path, {f"{n:05d}.png": data for n in range(num)})
    (path / "dataset.json").write_text(json.dumps(listing))
    return path
