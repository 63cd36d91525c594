"""Tars beyond the plain ones: compressed, made by img2dataset, with links, hostile names and pickles."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from image_files import grey, keys_of, noise, read_all, write_tar

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.images import open_collection, unpacking
from brics_cli.runtime.reporting import SilentReporter

MEMBERS = [(f"{number}.png", noise(number)) for number in range(3)]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_reads_as_the_plain_one(tmp_path, mode, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    suffix = mode.removeprefix("w:")
    plain = open_collection(write_tar(tmp_path / "plain" / "x.tar", MEMBERS))
    packed = open_collection(write_tar(tmp_path / f"x.tar.{suffix}", MEMBERS, mode=mode))
    assert [(raw.key, raw.data) for raw in read_all(packed)] == [(raw.key, raw.data) for raw in read_all(plain)]
    assert packed.describe() == "3 images, WebDataset, 1 shard, compressed"
    assert pickle.loads(pickle.dumps(packed)).read(0, 2).data == MEMBERS[2][1]


def test_compression_is_seen_in_the_bytes_not_in_the_name(tmp_path):
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    write_tar(tmp_path / "y.tgz", MEMBERS)  # not compressed
    write_tar(tmp_path / "noname", MEMBERS)
    assert keys_of(open_collection(tmp_path / "x.tar")) == ["x/0", "x/1", "x/2"]
    assert keys_of(open_collection(tmp_path / "y.tgz")) == ["y/0", "y/1", "y/2"]
    assert len(open_collection(tmp_path / "noname")) == 3


def test_a_folder_and_a_pattern_of_compressed_tars(tmp_path):
    for number in range(6):  # more than are kept unpacked at a time
        write_tar(tmp_path / f"{number}.tar.gz", [("a.png", grey(number))], mode="w:gz")
    folder = open_collection(tmp_path)
    assert [raw.data for raw in read_all(folder)] == [grey(number) for number in range(6)]
    assert folder.read(0, 0).data == grey(0)
    assert keys_of(open_collection(f"{tmp_path}/{{0..5}}.tar.gz")) == keys_of(folder)


@pytest.mark.parametrize("cut", [5, 100, 400])
def test_a_truncated_compressed_tar_names_its_shard(tmp_path, cut):
    tar = write_tar(tmp_path / "x.tar.gz", MEMBERS, mode="w:gz")
    tar.write_bytes(tar.read_bytes()[:-cut])
    with pytest.raises(ArtefactError, match=r"x\.tar\.gz is truncated or damaged"):
        open_collection(tar)


def write_img2dataset(folder: Path, number: int, *, successes: int, num_images: int = 2) -> Path:
    """What img2dataset leaves of one shard: the tar, the table of what was downloaded, and last the statistics."""
    name = f"{number:05d}"
    members = []
    for index in range(num_images):
        key = f"{name}{index:04d}"
        members.append((f"{key}.jpg", noise(index, format="JPEG")))
        members.append((f"{key}.txt", f"caption {index}".encode()))
        members.append((f"{key}.json", json.dumps({"key": key, "url": "u", "status": "success"}).encode()))
    stats = {"count": 3, "successes": successes, "failed_to_download": 1, "failed_to_resize": 0, "status_dict": {}}
    tar = write_tar(folder / f"{name}.tar", members)
    (folder / f"{name}.parquet").write_bytes(b"PAR1 url, caption, key, status, but no images PAR1")
    (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    return tar


def test_img2dataset_output_keeps_captions_and_its_counts_are_checked(tmp_path):
    for number in range(2):
        write_img2dataset(tmp_path, number, successes=2)
    collection = open_collection(tmp_path)
    assert collection.describe() == "4 images, WebDataset, 2 shards, made by img2dataset (counts checked)"
    assert collection.passed_over.to_json()["images that img2dataset could not download"] == 2
    first = collection.read(0, 0)
    assert first.key == "00000/000000000"
    assert first.meta == {"key": "000000000", "url": "u", "status": "success", "txt": "caption 0"}


def test_img2dataset_counts_that_differ_and_shards_that_are_not_finished(tmp_path):
    write_img2dataset(tmp_path, 0, successes=2)
    short = write_img2dataset(tmp_path, 1, successes=3)
    with pytest.raises(ArtefactError, match=r"00001\.tar holds 2 images, and 00001_stats\.json says 3"):
        open_collection(tmp_path)
    short.with_name("00001_stats.json").unlink()
    with pytest.raises(ArtefactError, match=r"not finished .*00001\.tar: 00001_stats\.json is missing"):
        open_collection(tmp_path)


def test_samples_never_merge_across_shards(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", grey(1)), ("b.json", b'{"n": 0}')])
    write_tar(tmp_path / "1.tar", [("b.png", grey(2)), ("a.cls", b"1")])
    assert [(raw.key, raw.label, raw.meta) for raw in read_all(open_collection(tmp_path))] == [
        ("0/a", None, None), ("1/b", None, None),
    ]  # fmt: skip


def test_keys_repeat_across_shards_and_are_still_unique(tmp_path):
    for name in ("0", "1"):
        write_tar(tmp_path / f"{name}.tar", [("same.png", grey())])
    assert keys_of(open_collection(tmp_path)) == ["0/same", "1/same"]


def test_nothing_in_a_tar_is_unpickled_or_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    bomb = pickle.dumps(Bomb())
    members = [("a.png", grey()), *((f"a.{extension}", bomb) for extension in ("cls", "pyd", "pkl", "pth", "json"))]
    raw = open_collection(write_tar(tmp_path / "x.tar", members)).read(0, 0)
    assert raw.data == grey() and raw.label is None
    assert not (tmp_path / "exploded").exists()


def test_hard_links_are_the_files_they_link_to_and_symbolic_links_are_refused(tmp_path):
    def tar_with_link(kind: bytes, target: str) -> Path:
        path = write_tar(tmp_path / "x.tar", MEMBERS)
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, target
            tar.addfile(info)
        return path

    assert open_collection(tar_with_link(tarfile.LNKTYPE, "1.png")).read(0, 3).data == MEMBERS[1][1]
    for kind, target in ((tarfile.SYMTYPE, "1.png"), (tarfile.LNKTYPE, "gone.png")):
        with pytest.raises(ArtefactError, match="as a link"):
            open_collection(tar_with_link(kind, target))


def test_names_are_tidied_and_hidden_ones_passed_over(tmp_path):
    names = ["./a.png", "b//c.png", "/d/./e.png", ".hidden.png", "__MACOSX/f.png", "._g.png"]
    collection = open_collection(write_tar(tmp_path / "x.tar", [(name, grey()) for name in names]))
    assert keys_of(collection) == ["x/a", "x/b/c", "x/d/e"]


def test_names_that_are_not_utf8_can_be_printed_and_stored(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("caf\udce9.png", grey())], encoding="utf-8", errors="surrogateescape")
    (key,) = keys_of(open_collection(tar))
    assert key == "x/caf\\xe9" and key.encode()


def test_a_sparse_member_is_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ArtefactError, match="sparse"):
        open_collection(path)


def test_a_tar_that_grew_shorter_is_no_silent_end(tmp_path):
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    collection = open_collection(tar)
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ArtefactError, match="became shorter"):
        collection.read(0, 2)


def test_a_pattern_that_names_a_tar_twice_is_refused(tmp_path):
    write_tar(tmp_path / "x.tar", MEMBERS)
    with pytest.raises(UsageError, match="twice"):
        open_collection(f"{tmp_path}/{{x,x}}.tar")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_what_unpacks_to_more_than_its_share_of_the_disk_is_refused(tmp_path, monkeypatch, suffix):
    """200 MB of zeros in some kilobytes, and 20 MB free: no more than its share is ever written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000_000))
    packers = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": zstandard.ZstdCompressor().compress,
    }
    plain = write_tar(tmp_path / "plain.tar", [*MEMBERS, ("bomb.bin", bytes(200_000_000))])
    bomb = tmp_path / f"bomb.tar.{suffix}"
    bomb.write_bytes(packers[suffix](plain.read_bytes()))
    plain.unlink()
    written = []
    with pytest.raises(MachineError, match=r"more than 0\.01 GB") as said:
        open_collection(bomb, reporter=Says(written))
    assert "TMPDIR" in said.value.next and [path.name for path in tmp_path.iterdir()] == [bomb.name]
    assert written == [f"{bomb}: 1 compressed tar, unpacked in {tmp_path}, where each may take 50% of the 0.0 GB free"]


class Says(SilentReporter):
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def message(self, text: str) -> None:
        self.said.append(text)
