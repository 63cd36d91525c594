"""One file, a zip, an npz or a tar, that an interrupted run can go on with: pieces first, then the file.

The pieces are WebDataset shards in `<path>.pieces`, each whole or absent. When all are there they are joined, without
encoding anything again, and removed. For the time of joining the images are on the disk twice.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from brics_cli.errors import UsageError
from brics_cli.images.sinks.encodings import PIXELS, PNG, Encoding, pixels_of
from brics_cli.images.sinks.npz import write_npz
from brics_cli.images.sinks.webdataset import WebDatasetSink
from brics_cli.images.sinks.zip import EdmZip
from brics_cli.parsing import parse_json
from brics_cli.workspace import atomic_path
from brics_cli.workspace.naming import ending_of

PIECE_SIZE = 1000


def pieces_directory(path: Path) -> Path:
    """Where the pieces of the file `path` stand."""
    return path.with_name(path.name + ".pieces")


def piece_encoding(path: Path) -> Encoding:
    """How images stand in the pieces of the file `path`."""
    return PIXELS if ending_of(path) == ".npz" else PNG


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
        super().__init__(pieces_directory(path), PIECE_SIZE, encoding=piece_encoding(path))
        self.final = path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            pieces = sorted(self.path.glob("*.tar"))
            with atomic_path(self.final) as temporary:
                joins: dict[str, Callable[[Sequence[Path], Path], None]] = {
                    ".zip": partial(_join_zip, class_names=self.class_names),
                    ".npz": _join_npz,
                }
                joins.get(ending_of(self.final), _join_tar)(pieces, temporary)


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


def _join_zip(pieces: Sequence[Path], path: Path, *, class_names: Sequence[str]) -> None:
    with closing(EdmZip(path)) as joined:
        for sample in _samples(pieces, {"png", "cls", "json"}):
            joined.add(sample.key, sample.files["png"], sample.label)
        joined.finish(class_names)


def _join_npz(pieces: Sequence[Path], path: Path) -> None:
    """Keys and labels are read first, since the number of images stands before them in the file."""
    known = [(sample.key, sample.label) for sample in _samples(pieces, {"cls", "json"})]
    images = (pixels_of(sample.files["ppm"]) for sample in _samples(pieces, {"ppm"}))
    first = next(images, ((0, 0), b""))
    labels = [label for _, label in known if label is not None]
    write_npz(
        path,
        _of_one_size(chain([first], images), first[0]),
        size=first[0],
        keys=[key for key, _ in known],
        labels=labels if known and len(labels) == len(known) else None,
    )


def _of_one_size(images: Iterable[tuple[tuple[int, int], bytes]], size: tuple[int, int]) -> Iterator[bytes]:
    for other, pixels in images:
        if other != size:
            raise UsageError(f"an .npz holds images of one size, and there are {size} and {other}")
        yield pixels


class _Sample(NamedTuple):
    """The members of one image: its stem, and bytes by extension."""

    stem: str
    files: dict[str, bytes]

    @property
    def key(self) -> str:
        key: str = parse_json(self.files.get("json", b"{}")).get("original_key", self.stem)
        return key

    @property
    def label(self) -> int | None:
        label = self.files.get("cls")
        return int(label) if label is not None else None


def _samples(pieces: Sequence[Path], extensions: Set[str]) -> Iterator[_Sample]:
    """The samples of shards of ours, in order, with the members of `extensions` alone."""
    for piece in pieces:
        yield from _samples_of(piece, extensions)


def _samples_of(piece: Path, extensions: Set[str]) -> Iterator[_Sample]:
    """The members of one stand together, and their stems have no dots."""
    sample: _Sample | None = None
    with tarfile.open(piece, "r:") as opened:
        for member in opened:
            stem, _, extension = member.name.rpartition(".")
            if sample is None or stem != sample.stem:
                if sample is not None:
                    yield sample
                sample = _Sample(stem, {})
            if extension not in extensions:
                continue
            file = opened.extractfile(member)
            assert file is not None
            sample.files[extension] = file.read()
    if sample is not None:
        yield sample
