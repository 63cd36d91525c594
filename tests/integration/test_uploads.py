"""Outputs at URLs: the bytes of local ones, whole or absent, one writer, and the same command goes on anywhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from commands import brics, error_line
from image_files import noise
from remote_servers import Between, conditional_s3_server, s3_environment, s3_server

from brics_cli.errors import MachineError
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import remote, uploads
from brics_cli.workspace.uploads import staged

PACK = ("--size", 16, "--shard-size", 4, "--workers", 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(18):
        (folder / f"{number:02}.png").write_bytes(noise(number))
    return folder


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.01)


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket").mkdir()
    return folder


@pytest.fixture(scope="module")
def s3_of(buckets: Path) -> Iterator[Between]:
    pytest.importorskip("s3fs")
    with s3_server(buckets) as between:
        yield between


@pytest.fixture
def s3(s3_of: Between, monkeypatch: pytest.MonkeyPatch) -> Between:
    import s3fs

    s3_of.is_read_only = False
    s3_of.gets.clear()
    for name, value in s3_environment(s3_of.url).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    remote.s3_session.cache_clear()
    return s3_of


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "brics.json"}


def test_a_pack_on_s3_is_the_local_one(images: Path, s3: Between, buckets: Path, tmp_path: Path) -> None:
    brics("pack", images, "--out", tmp_path / "local", *PACK, cwd=tmp_path, check=0)
    done = brics("pack", images, "--out", "s3://bucket/packed", *PACK, cwd=tmp_path, check=0)
    assert "s3://bucket/packed.lock is a note" in done.stderr, "rclone has no conditional writes"
    built, *others = [line for line in done.stderr.splitlines() if "cache/outputs" in line]
    assert "next: brics train-ae s3://bucket/packed" in done.stderr and "is built in" in built and not others
    assert _bytes_of(buckets / "bucket" / "packed") == _bytes_of(tmp_path / "local")
    assert not (buckets / "bucket" / "packed.lock").exists() and not any((tmp_path / "cache" / "outputs").iterdir())
    before = (buckets / "bucket" / "packed" / "00000.tar").stat().st_mtime_ns
    again = brics("pack", images, "--out", "s3://bucket/packed", *PACK, cwd=tmp_path, check=0)
    assert "complete already" in again.stderr and s3.num_gets("00000.tar") == 0, "its shards are not fetched for that"
    other = brics("pack", images, "--out", "s3://bucket/packed", "--size", 8, cwd=tmp_path, check=4)
    assert "s3://bucket/packed" in error_line(other)
    assert (buckets / "bucket" / "packed" / "00000.tar").stat().st_mtime_ns == before
    brics("pack", images, "--out", "s3://bucket/packed", "--size", 8, "--overwrite", cwd=tmp_path, check=0)
    names = {path.name for path in (buckets / "bucket" / "packed").iterdir()}
    assert "00000.tar" in names and "00001.tar" not in names, "what an older one had more is removed"


def test_what_is_whole_is_gone_on_with_on_another_machine(
    images: Path, s3: Between, buckets: Path, tmp_path: Path, monkeypatch
) -> None:
    from brics_cli.images import packing

    settled, calls = packing.settled_digest, []

    def stop(*arguments: object) -> str:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return settled(*arguments)

    monkeypatch.setattr(packing, "settled_digest", stop)
    brics("pack", images, "--out", "s3://bucket/resumed", *PACK, cwd=tmp_path, check=130)
    there = {path.name for path in (buckets / "bucket" / "resumed").iterdir()}
    assert {"00000.tar", "00001.tar", "brics.json"} <= there and "manifest.json" not in there
    monkeypatch.setattr(packing, "settled_digest", settled)
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache of another machine"))
    done = brics("pack", images, "--out", "s3://bucket/resumed", *PACK, cwd=tmp_path, check=0)
    assert "fetched to go on" in done.stderr
    assert any(f"going on after {num} images" in done.stderr for num in (8, 12)), done.stderr
    brics("pack", images, "--out", tmp_path / "local", *PACK, cwd=tmp_path, check=0)
    assert _bytes_of(buckets / "bucket" / "resumed") == _bytes_of(tmp_path / "local")


def test_a_bucket_that_may_not_be_written(images: Path, s3: Between, tmp_path: Path) -> None:
    s3.is_read_only = True
    done = brics("pack", images, "--out", "s3://bucket/forbidden", *PACK, cwd=tmp_path, check=6)
    assert "s3:// does not let you write s3://bucket/forbidden" in error_line(done)


def _write(url: str, text: bytes = b"whole") -> None:
    with staged(url, reporter=SilentReporter()) as place:
        place.path.write_bytes(text)


def _read(name: str) -> bytes:
    import fsspec

    return fsspec.filesystem("memory").cat_file(name)


def test_a_file_is_put_when_it_is_whole(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with pytest.raises(ZeroDivisionError), staged("memory://one/codes.h5", reporter=SilentReporter()) as place:
        place.path.write_bytes(b"half")
        raise ZeroDivisionError
    assert not memory.exists("/one/codes.h5") and not memory.exists("/one/codes.h5.lock")
    with staged(Path("memory://one/codes.h5"), reporter=SilentReporter()) as place:
        assert place.path.read_bytes() == b"half", "the same command goes on here"
        (place.path.parent / "codes.h5.parts").mkdir()
        (place.path.parent / "codes.h5.parts" / "a.h5").write_bytes(b"part")
        place.path.write_bytes(b"whole")
        assert not memory.exists("/one/codes.h5")
    assert _read("/one/codes.h5") == b"whole" and memory.ls("/one", detail=False) == ["/one/codes.h5"]


def test_one_writer_at_a_time() -> None:
    import fsspec

    memory, url = fsspec.filesystem("memory"), "memory://two/x.zip"
    with staged(url, reporter=SilentReporter()) as place:
        with pytest.raises(MachineError, match=r"another brics process is writing memory://two/x\.zip"):
            _write(url)
        place.path.write_bytes(b"first")
    assert _read("/two/x.zip") == b"first"
    memory.pipe_file("/two/x.zip.lock", json.dumps({"host": "elsewhere", "pid": 7}).encode())
    with pytest.raises(
        MachineError, match=r"another brics process, 7 on elsewhere, is writing .*remove .*x\.zip\.lock"
    ):
        _write(url)
    memory.pipe_file("/two/x.zip.lock", json.dumps({"host": socket.gethostname(), "pid": 7}).encode())
    _write(url, b"a lock of a process of this machine that was killed is none")
    assert _read("/two/x.zip").startswith(b"a lock of")


@pytest.mark.slow
def test_two_that_start_at_once_on_s3_with_conditional_writes(monkeypatch, tmp_path: Path) -> None:
    import s3fs

    with conditional_s3_server() as url:
        for name, value in s3_environment(url).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        remote.s3_session.cache_clear()
        monkeypatch.setattr(s3fs.S3FileSystem, "exists", lambda *arguments, **settings: False)  # both have looked
        with staged("s3://bucket/x.zip", reporter=SilentReporter()) as place:
            place.path.write_bytes(b"first")
            monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "another machine's"))
            with pytest.raises(MachineError, match=r"another brics process is writing s3://bucket/x\.zip"):
                _write("s3://bucket/x.zip")
        assert s3fs.S3FileSystem().cat_file("bucket/x.zip") == b"first"


def test_whole_shards_are_put_while_the_next_are_made(monkeypatch) -> None:
    import threading

    seen = threading.Event()
    monkeypatch.setattr(uploads, "EVERY_S", 0.01)
    put = uploads._Upload._put
    monkeypatch.setattr(
        uploads._Upload, "_put", lambda self, name: (put(self, name), name.endswith(".tar") and seen.set())
    )
    with staged("memory://three/shards", reporter=SilentReporter()) as place:
        place.path.mkdir()
        (place.path / "00000.tar").write_bytes(b"tar")
        (place.path / "brics.json").write_text('{"complete": false}')
        assert seen.wait(60)
        assert _read("/three/shards/00000.tar") == b"tar"


def test_commands_that_write_here_alone_say_so(tmp_path: Path) -> None:
    for words in (["export", "c.h5", "--to", "lightningdit"], ["train-ae", "x"], ["eval", "--metric", "psnr"]):
        done = brics(*words, "--out", "s3://bucket/x", cwd=tmp_path, check=2)
        assert "s3://bucket/x is a URL, and this command writes to files of this machine" in error_line(done)
    assert not list(tmp_path.iterdir())


def test_from_s3_to_s3_codes_are_those_of_the_disk(images: Path, s3: Between, buckets: Path, tmp_path: Path) -> None:
    brics("pack", images, "--out", "s3://bucket/shards", *PACK, cwd=tmp_path, check=0)
    ours = ("encode-dataset", "s3://bucket/shards", "--out", "s3://bucket/codes.h5", "--size", 16, "--device", "cpu")
    done = brics(*ours, cwd=tmp_path, check=0)
    assert "next: brics train-diffusion s3://bucket/codes.h5" in done.stderr
    local = ("encode-dataset", buckets / "bucket" / "shards", "--out", "local.h5", "--size", 16, "--device", "cpu")
    brics(*local, cwd=tmp_path, check=0)
    with h5py.File(buckets / "bucket" / "codes.h5") as there, h5py.File(tmp_path / "local.h5") as here:
        assert there.attrs["sha256"] == here.attrs["sha256"] and (there["codes"][:] == here["codes"][:]).all()
        assert '"s3://bucket/shards"' in there.attrs["provenance"]
    assert not (buckets / "bucket" / "codes.h5.parts").exists()
    assert "complete already" in brics(*ours, cwd=tmp_path, check=0).stderr
    assert (
        "18 images"
        in brics("decode", "s3://bucket/codes.h5", "--out", "s3://bucket/b.zip", cwd=tmp_path, check=0).stdout
    )
    assert "s3://bucket/codes.h5" in brics("info", "s3://bucket/codes.h5", cwd=tmp_path, check=0).stdout
    report = brics("eval", "--metric", "psnr", "--real", "s3://bucket/shards", "--fake", "s3://bucket/b.zip", "--json",
                   "--device", "cpu", cwd=tmp_path, check=0)  # fmt: skip
    assert json.loads(report.stdout)["results"]


@pytest.mark.slow
def test_training_reads_through_the_cache(images: Path, s3: Between, tmp_path: Path) -> None:
    few = ("--device", "cpu", "--steps", 4, "--batch-size", 4)
    brics("pack", images, "--out", "s3://bucket/images", *PACK, cwd=tmp_path, check=0)
    small = ("--recipe", "tiny", "--set", "model.image_size=32", "--set", "data.cache_gib=0")
    brics("train-ae", "s3://bucket/images", *small, *few, "--out", "run", cwd=tmp_path, check=0)
    assert s3.num_gets("00000.tar") == 1
    brics("train-ae", "--resume", "run", "--device", "cpu", cwd=tmp_path)
    brics("encode-dataset", "--ae", "run", "--out", "s3://bucket/c.h5", "--device", "cpu", cwd=tmp_path, check=0)
    brics("train-diffusion", "s3://bucket/c.h5", "--recipe", "tiny", *few, "--out", "d", cwd=tmp_path, check=0)
    drawn = ("sample", "--model", "d", "--n", 4, "--steps", 2, "--device", "cpu")
    assert "s3://bucket/drawn" in brics(*drawn, "--out", "s3://bucket/drawn", cwd=tmp_path, check=0).stdout


def test_a_store_in_parts_goes_to_s3_part_by_part(images: Path, s3: Between, buckets: Path, tmp_path: Path) -> None:
    brics("pack", images, "--out", "shards", *PACK, cwd=tmp_path, check=0)
    ours = ("encode-dataset", "shards", "--size", 16, "--device", "cpu", "--out")
    brics(*ours, "s3://bucket/parts-of-codes/", cwd=tmp_path, check=0)
    brics(*ours, "local", cwd=tmp_path, check=0)
    there = buckets / "bucket" / "parts-of-codes"
    assert {path.name for path in (there / "parts").iterdir()} == {
        path.name for path in (tmp_path / "local/parts").iterdir()
    }
    with h5py.File(there / "index.h5") as index, h5py.File(tmp_path / "local" / "index.h5") as here:
        assert index.attrs["sha256"] == here.attrs["sha256"] and (index["codes"][:] == here["codes"][:]).all()
    assert "complete already" in brics(*ours, "s3://bucket/parts-of-codes", cwd=tmp_path, check=0).stderr
    decoded = brics("decode", "s3://bucket/parts-of-codes", "--out", "back.zip", cwd=tmp_path, check=0)
    assert "18 images" in decoded.stdout
    assert "s3://bucket/parts-of-codes" in brics("info", "s3://bucket/parts-of-codes", cwd=tmp_path, check=0).stdout
