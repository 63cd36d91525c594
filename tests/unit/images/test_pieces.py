"""One file written in pieces: the same bytes however often it was interrupted, and what a plain sink would write."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import write_images

from brics_cli.errors import UsageError
from brics_cli.images.sinks import OutputImage, base, discard_pieces, open_sink, pieces
from brics_cli.images.sinks.pieces import pieces_directory
from brics_cli.runtime.reporting import SilentReporter

KEYS = [f"s/my.photo.{number}" if number % 2 else f"s/{number}" for number in range(10)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_SIZE", 4)


def some_images(start: int = 0, stop: int | None = None) -> Iterator[OutputImage]:
    """Image `start` and those after it; instead of number `stop` comes a Ctrl-C."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(KEYS), 6, 6, 3), dtype=np.uint8)
    for number in range(start, len(KEYS)):
        if number == stop:
            raise KeyboardInterrupt
        yield OutputImage(KEYS[number], pixels[number], number)


def write(path: Path, *, stop: int | None = None) -> int:
    """Write all images, or up to number `stop`; where it began."""
    sink = open_sink(path)
    start = sink.resume_point(KEYS)
    sink.write(some_images(start, stop), start=start)
    sink.finish(SilentReporter())
    return start


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.npz"])
@pytest.mark.parametrize("stop", [None, 3, 4, 9])
def test_an_interrupted_file_is_gone_on_with(tmp_path, name, stop, monkeypatch):
    plain, path = tmp_path / "plain" / name, tmp_path / name
    with monkeypatch.context() as in_one_piece:
        in_one_piece.setattr(pieces, "PIECE_SIZE", 100)
        write_images(plain, some_images())
    if stop is not None:
        monkeypatch.setattr(base, "_MAX_PENDING", 0)
        with pytest.raises(KeyboardInterrupt):
            write(path, stop=stop)
        assert not path.exists()
    assert write(path) == (stop or 0) // 4 * 4
    discard_pieces(path)
    assert path.read_bytes() == plain.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["plain", name])


def test_a_tar_is_one_shard_of_its_images(tmp_path):
    write(tmp_path / "x.tar")
    write_images(tmp_path / "folder", some_images(), shard_size=100)
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "folder" / "00000.tar").read_bytes()


def test_an_npz_is_what_numpy_would_have_saved(tmp_path):
    path = tmp_path / "x.npz"
    write(path)
    images = np.random.default_rng(0).integers(0, 256, (len(KEYS), 6, 6, 3), dtype=np.uint8)
    with np.load(path, allow_pickle=False) as saved:
        assert saved.files == ["arr_0", "arr_1", "keys"]
        assert np.array_equal(saved["arr_0"], images) and saved["arr_0"].dtype == np.uint8
        assert np.array_equal(saved["arr_1"], np.arange(len(KEYS))) and saved["arr_1"].dtype == np.int64
        assert [key.decode() for key in saved["keys"]] == KEYS
    oracle = io.BytesIO()
    np.savez(oracle, images, np.arange(len(KEYS)))
    with zipfile.ZipFile(oracle) as numpys, zipfile.ZipFile(path) as ours:
        for name in ("arr_0.npy", "arr_1.npy"):
            assert ours.read(name) == numpys.read(name)
            assert ours.getinfo(name).compress_type == zipfile.ZIP_STORED


def test_adms_evaluator_reads_an_npz_in_batches(tmp_path):
    """As its documented way goes: the member is opened in the zip, its version 1.0 or 2.0 header read, and uint8 rows
    in C order are taken from the stream, batch by batch."""
    path = tmp_path / "x.npz"
    write(path)
    images = np.random.default_rng(0).integers(0, 256, (len(KEYS), 6, 6, 3), dtype=np.uint8)
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert (shape, fortran, dtype) == ((10, 6, 6, 3), False, np.dtype("u1"))
        for first in range(0, shape[0], 4):
            num = min(4, shape[0] - first)
            batch = np.frombuffer(member.read(num * 6 * 6 * 3), dtype).reshape(num, 6, 6, 3)
            assert np.array_equal(batch, images[first : first + num])
        assert member.read(1) == b""


def test_labels_of_some_images_are_no_labels(tmp_path):
    path = tmp_path / "x.npz"
    write_images(path, [OutputImage(str(number), np.zeros((2, 3, 3), np.uint8), number or None) for number in range(6)])
    with np.load(path) as saved:
        assert saved.files == ["arr_0", "keys"] and saved["arr_0"].shape == (6, 2, 3, 3)


def test_an_npz_holds_images_of_one_size(tmp_path):
    images = [OutputImage(str(height), np.zeros((height, 3, 3), np.uint8)) for height in (2, 3)]
    with pytest.raises(UsageError, match="images of one size"):
        write_images(tmp_path / "x.npz", images)
    assert not (tmp_path / "x.npz").exists()


def test_pieces_stay_until_they_are_discarded(tmp_path):
    path = tmp_path / "x.zip"
    write(path)
    assert len(list(pieces_directory(path).glob("*.tar"))) == 3
    path.unlink()
    assert write(path) == len(KEYS)
    discard_pieces(path)
    discard_pieces(path)
    assert list(tmp_path.iterdir()) == [path]
