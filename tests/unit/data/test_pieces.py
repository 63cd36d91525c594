"""One file written in pieces: the same bytes however often it was interrupted, and what a plain sink would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brics_cli.data.sinks import discard_pieces, open_sink, pieces, pieces_directory

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


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
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


def test_pieces_stay_until_they_are_discarded(tmp_path):
    path = tmp_path / "x.zip"
    write(path, resumable=True)
    assert len(list(pieces_directory(path).glob("*.tar"))) == 3
    path.unlink()
    assert write(path, resumable=True) == len(KEYS)
    discard_pieces(path)
    discard_pieces(path)
    assert list(tmp_path.iterdir()) == [path]
