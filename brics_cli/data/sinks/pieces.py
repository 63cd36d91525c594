"""One file, a zip or a tar, that an interrupted run can go on with: pieces first, then the file.

The pieces are WebDataset shards in `<path>.pieces`, each whole or absent. When all are there they are joined, without
encoding anything again, and removed. For the time of joining the images are on the disk twice.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from brics_cli.data.sinks.webdataset import WebDatasetSink
from brics_cli.data.sinks.zip import EdmZip
from brics_cli.workspace import atomic_path

PIECE_SIZE = 1000


def pieces_directory(path: Path) -> Path:
    """Where the pieces of the file `path` stand."""
    return path.with_name(path.name + ".pieces")


def file_of_pieces(path: Path) -> Path:
    """The file whose pieces stand at `path`; `path` itself when no pieces do."""
    return path.with_suffix("") if path.suffix == ".pieces" else path


def discard_pieces(path: Path) -> None:
    """Remove the pieces of `path`: what says whose they are goes last, should this be interrupted."""
    directory = pieces_directory(path)
    for piece in directory.glob("*.tar"):
        piece.unlink()
    if directory.exists():
        shutil.rmtree(directory)


class PiecewiseSink(WebDatasetSink):
    """Writes pieces; on leaving without an exception the file `path` as well. `discard_pieces` is left to the caller,
    who knows when the file is on record."""

    def __init__(self, path: Path) -> None:
        super().__init__(pieces_directory(path), PIECE_SIZE)
        self.final = path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            pieces = sorted(self.path.glob("*.tar"))
            with atomic_path(self.final) as temporary:
                if self.final.suffix == ".zip":
                    _join_zip(pieces, temporary)
                else:
                    _join_tar(pieces, temporary)


def _join_tar(pieces: Sequence[Path], path: Path) -> None:
    """The members of all pieces, then one end mark: two blocks of zeros, in a whole record."""
    with path.open("wb") as joined:
        for piece in pieces:
            with tarfile.open(piece, "r:") as opened:
                opened.getmembers()
                end = opened.offset
            with piece.open("rb") as file:
                _copy(file, joined, end)
        end = joined.tell() + 2 * tarfile.BLOCKSIZE
        joined.truncate(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    while num_bytes > 0:
        block = source.read(min(num_bytes, 2**20))
        target.write(block)
        num_bytes -= len(block)


def _join_zip(pieces: Sequence[Path], path: Path) -> None:
    with closing(EdmZip(path)) as joined:
        for piece in pieces:
            for sample in _samples(piece):
                meta = json.loads(sample.files.get("json", b"{}"))
                label = sample.files.get("cls")
                joined.add(
                    meta.get("original_key", sample.stem),
                    sample.files["png"],
                    int(label) if label is not None else None,
                )
        joined.finish()


class _Sample(NamedTuple):
    """The members of one image: its stem, and bytes by extension."""

    stem: str
    files: dict[str, bytes]


def _samples(piece: Path) -> Iterator[_Sample]:
    """The samples of a shard of ours, in order: the members of one stand together, and their stems have no dots."""
    sample: _Sample | None = None
    with tarfile.open(piece, "r:") as opened:
        for member in opened:
            stem, _, extension = member.name.rpartition(".")
            if sample is None or stem != sample.stem:
                if sample is not None:
                    yield sample
                sample = _Sample(stem, {})
            file = opened.extractfile(member)
            assert file is not None
            sample.files[extension] = file.read()
    if sample is not None:
        yield sample
