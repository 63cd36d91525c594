"""One file, a tar, a zip or an npz, that an interrupted run can go on with: pieces first, then the file.

The pieces are WebDataset shards in `<path>.pieces`, each whole or absent. When all are there they are joined, without
encoding anything again, and removed. For the time of joining the images are on the disk twice.
"""

from __future__ import annotations

import shutil
import tarfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from brics_cli.images.sinks.base import PNG, Encoding
from brics_cli.images.sinks.webdataset import WebDatasetSink
from brics_cli.parsing import parse_json
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, atomic_path, read_provenance
from brics_cli.workspace.outputs import Claim, claim, made_by_brics

PIECE_SIZE = 1000


def pieces_directory(path: Path) -> Path:
    """Where the pieces of the file `path` are."""
    return path.with_name(path.name + ".pieces")


def file_of_pieces(path: Path) -> Path:
    """The file whose pieces are at `path`; `path` itself when that is no folder of pieces."""
    return path.with_suffix("") if path.suffix == ".pieces" else path


def begun_at(path: Path) -> Path:
    """Where it is said whose the output at `path` is: of a file that is not there, or was joined by a process that was
    killed before it said so, at its pieces; else at `path` itself."""
    pieces = pieces_directory(path)
    if not pieces.exists() or (path.exists() and (read_provenance(path) is not None or not _is_of(pieces, path))):
        return path
    return pieces


def _is_of(pieces: Path, path: Path) -> bool:
    """Whether the file at `path` was joined from `pieces`: it has our mark, or, a tar has none, begins as the first."""
    first = pieces / "00000.tar"
    return made_by_brics(path) or (first.exists() and _first_block(path) == _first_block(first))


def _first_block(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def discard_pieces(path: Path) -> None:
    """Remove the pieces of `path`, if there are any: what says whose they are goes last, should this be interrupted."""
    directory = pieces_directory(path)
    for piece in directory.glob("*.tar"):
        piece.unlink()
    if directory.exists():
        shutil.rmtree(directory)


class PiecewiseSink(WebDatasetSink):
    """Writes pieces; `finish` joins them. `discard_pieces` is for the caller, who knows when the file is on record."""

    piece_encoding: Encoding = PNG

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path, **{**settings, "shard_size": PIECE_SIZE, "encoding": self.piece_encoding})

    @property
    def settings(self) -> dict[str, Any]:
        """Without the number of images per piece, which the file does not show."""
        return {"format": self.format, "shard_size": None}

    @property
    def folder(self) -> Path:
        return pieces_directory(self.path)

    def claim(self, artefact: Artefact, *, overwrite: bool) -> Claim:
        """Claim the folder of pieces: that is what is gone on with."""
        goes_on = begun_at(self.path) == self.folder and not overwrite
        if not goes_on and claim(artefact, overwrite=overwrite, is_file=True) == "complete":
            discard_pieces(self.path)  # killed while they were removed
            return "complete"
        return claim(replace(artefact, path=self.folder), overwrite=overwrite)

    def finish(self, reporter: Reporter) -> None:
        """Write the file."""
        with atomic_path(self.path) as temporary:
            self._join(sorted(self.folder.glob("*.tar")), temporary)

    @abstractmethod
    def _join(self, pieces: Sequence[Path], path: Path) -> None:
        """Write what is in `pieces` to `path`."""


class TarSink(PiecewiseSink):
    """One WebDataset shard: the members of all pieces, then one end mark, two blocks of zeros in a whole record."""

    ending = ".tar"

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "shard_size": self.shard_size}

    def _join(self, pieces: Sequence[Path], path: Path) -> None:
        with path.open("wb") as joined:
            for piece in pieces:
                with tarfile.open(piece, "r:") as opened:
                    opened.getmembers()
                    end = opened.offset
                with piece.open("rb") as file:
                    shutil.copyfileobj(file, joined)
                joined.seek(joined.tell() - piece.stat().st_size + end)
            joined.truncate(-(-(joined.tell() + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)


class Sample(NamedTuple):
    """One image of a piece, and its members by extension."""

    key: str
    label: int | None
    files: dict[str, bytes]


def samples(pieces: Sequence[Path], extensions: Set[str]) -> Iterator[Sample]:
    """The samples of pieces in order, with the members of `extensions` alone."""
    for piece in pieces:
        with tarfile.open(piece, "r:") as opened:
            # the members of a sample follow each other, and their stems have no dots
            for stem, members in groupby(opened, lambda member: member.name.rpartition(".")[0]):
                files = {}
                for member in members:
                    extension = member.name.rpartition(".")[2]
                    if extension in extensions:
                        file = opened.extractfile(member)
                        assert file is not None
                        files[extension] = file.read()
                key = parse_json(files.get("json", b"{}")).get("original_key", stem)
                yield Sample(key, int(files["cls"]) if "cls" in files else None, files)
