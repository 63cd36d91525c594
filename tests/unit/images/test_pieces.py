"""One file written in pieces: the same bytes however often it was interrupted, and what a plain sink would write."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from brics_cli.errors import UsageError
from brics_cli.images.sinks import discard_pieces, open_sink, pieces, pieces_directory

KEYS = [f"s/my.photo.{number}" if number % 2 else f"s/{number}" for number in range(10)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_SIZE", 4)


def write(path: Path, *, resumable: bool, stop: int | None = None) -> int:
    """Write all images, or up to number `stop` and then fail; where it began."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (len(KEYS), 6, 6, 3), dtype=np.uint8)
    with open_sink(path, resumable=resumable, overwrite=True) as sink:
        first = sink.resume_point(KEYS)
        for number in range(first, len(KEYS)):
            if number == stop:
                sink._drain(0)
                raise KeyboardInterrupt
            sink.write(KEYS[number], images[number], label=number)
    return first


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.npz"])
@pytest.mark.parametrize("stop", [None, 3, 4, 9])
def test_an_interrupted_file_is_gone_on_with(tmp_path, name, stop):
    plain, path = tmp_path / "plain" / name, tmp_path / name
    plain.parent.mkdir()
    write(plain, resumable=False)
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            write(path, resumable=True, stop=stop)
        assert not path.exists()
    assert write(path, resumable=True) == (stop or 0) // 4 * 4
    discard_pieces(path)
    assert path.read_bytes() == plain.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["plain", name])


def test_an_npz_is_what_numpy_would_have_saved(tmp_path):
    path = tmp_path / "x.npz"
    write(path, resumable=True)
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
    write(path, resumable=True)
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
    with open_sink(path) as sink:
        for number in range(6):
            sink.write(str(number), np.zeros((2, 3, 3), np.uint8), label=number or None)
    with np.load(path) as saved:
        assert saved.files == ["arr_0", "keys"] and saved["arr_0"].shape == (6, 2, 3, 3)


def test_an_npz_holds_images_of_one_size(tmp_path):
    with pytest.raises(UsageError, match="images of one size"), open_sink(tmp_path / "x.npz") as sink:
        sink.write("a", np.zeros((2, 3, 3), np.uint8))
        sink.write("b", np.zeros((3, 3, 3), np.uint8))
    assert not (tmp_path / "x.npz").exists()


def test_pieces_stay_until_they_are_discarded(tmp_path):
    path = tmp_path / "x.zip"
    write(path, resumable=True)
    assert len(list(pieces_directory(path).glob("*.tar"))) == 3
    path.unlink()
    assert write(path, resumable=True) == len(KEYS)
    discard_pieces(path)
    discard_pieces(path)
    assert list(tmp_path.iterdir()) == [path]
