"""A format is a file, a line in the registry and a test: here is one, made in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from image_files import keys_of, noise, read_all

from brics_cli.cli.app import run
from brics_cli.errors import UsageError
from brics_cli.images import open_collection, opening
from brics_cli.images.collection import ANYTHING, Collection, RawImage, Wanted, virtual_shards
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.formats import FORMATS

MAGIC = b"LENGTHS\0"


class LengthsCollection(Collection):
    """Image files one after another, each after its length in 4 bytes."""

    kind = "lengths"

    def __init__(self, path: str, files: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        self.path = path
        self._places: list[tuple[Path, int, int]] = []
        for file in files:
            data, place = file.read_bytes(), len(MAGIC)
            while place < len(data):
                length = int.from_bytes(data[place : place + 4], "little")
                self._places.append((file, place + 4, length))
                place += 4 + length
        self.shards = virtual_shards([length for _, _, length in self._places])

    def describe(self) -> str:
        return f"{len(self)} images, {self.kind}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        file, place, _ = self._places[self.starts[shard_index] + index]
        return f"{file.stem}/{place}"

    def read(self, shard_index: int, index: int) -> RawImage:
        file, place, length = self._places[self.starts[shard_index] + index]
        data = file.read_bytes()[place : place + length]
        return RawImage(self.key(shard_index, index), data, None, None, shard_index, index)

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        return sorted({str(file) for file, _, _ in self._places})


@pytest.fixture(params=["alone", "choices", "splits", "shards"])
def format(request, monkeypatch) -> Format:
    made = Format(
        "a file of lengths",
        reads="files of lengths",
        suffixes=(".lengths",),
        open=LengthsCollection,
        is_file=lambda path, first: first.startswith(MAGIC),
        joins=request.param in ("splits", "shards"),
        several=request.param,
    )
    monkeypatch.setattr(opening, "FORMATS", (made, *FORMATS))
    return made


def write(path: Path, seeds: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [noise(seed) for seed in seeds]
    path.write_bytes(MAGIC + b"".join(len(file).to_bytes(4, "little") + file for file in files))
    return path


def test_a_new_format_goes_through_a_command(tmp_path, format, capsys):
    path = write(tmp_path / "x" / "a.lengths", range(3))
    collection = open_collection(path)
    assert [raw.data for raw in read_all(collection)] == [noise(seed) for seed in range(3)]
    assert len(keys_of(collection)) == 3
    assert run(["pack", str(path), "--out", str(tmp_path / "s"), "--size", "8"]) == 0
    assert open_collection(tmp_path / "s").describe().startswith("3 images, WebDataset")
    (tmp_path / "not.lengths").write_bytes(b"text")
    with pytest.raises(UsageError, match="named like a file of lengths, and is not a file of lengths"):
        open_collection(tmp_path / "not.lengths")


def test_files_of_a_new_format_side_by_side(tmp_path, format):
    for split, seeds in (("train", range(3)), ("val", range(3, 5))):
        write(tmp_path / "x" / f"{split}.lengths", seeds)
    if format.several == "alone":
        with pytest.raises(UsageError, match=r"no images in the folder .*2 \.lengths"):
            open_collection(tmp_path / "x")
        return
    assert [raw.data for raw in read_all(open_collection(tmp_path / "x"))] == [noise(seed) for seed in range(3)]
    assert "also there: val" in open_collection(tmp_path / "x").describe()
    assert len(open_collection(tmp_path / "x", subset="val")) == 2
    if format.joins:
        assert len(open_collection(tmp_path / "x", subset="all")) == 5
        assert len(open_collection(f"{tmp_path}/x/*.lengths/all")) == 5
        assert len(open_collection(f"{tmp_path}/x/{{train,val}}.lengths", subset="all")) == 5
    else:
        with pytest.raises(UsageError, match="no subset or folder 'all'"):
            open_collection(tmp_path / "x", subset="all")
