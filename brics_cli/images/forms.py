"""Which form a file has, by its first bytes; and which of several collections below a folder is meant.

Of several the only one for training is taken and said so, anything else is listed and asked for (`splits`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from brics_cli.images.collection import split_extension
from brics_cli.images.pixels import is_image_file
from brics_cli.images.sources import arrow, parquet
from brics_cli.images.sources.lmdb import is_lmdb
from brics_cli.images.sources.npz import is_array_file
from brics_cli.images.sources.webdataset import TAR_SUFFIXES, is_compressed
from brics_cli.images.splits import choose as choose_part
from brics_cli.images.splits import group_files

Form = Literal["tar", "zip", "lmdb", "parquet", "arrow", "array"]

_TAR_MAGIC, _TAR_MAGIC_OFFSET = b"ustar", 257
_SPLIT = re.compile(r"(?P<split>[\w.-]+?)-\d{5}-of-\d{5}")
"""Hugging Face's `train-00000-of-00004-<hash>.parquet`."""
_NUM_LOOKED_AT = 64
"""Entries of a folder below that are looked at to see its form."""

_NAMED: dict[str, str] = {
    ".zip": "named like a zip file, and is not a zip file",
    ".parquet": "named like a parquet table, and is not a parquet table",
    ".arrow": "named like an Arrow file, and is not an Arrow file",
    ".mdb": "named like an LMDB, and is not an LMDB",
    ".lmdb": "named like an LMDB, and is not an LMDB",
    ".npz": "named like an .npz, and is not an .npz (no zip archive, which an .npz is)",
    ".npy": "named like an .npy, and is not an .npy",
    ".gz": "a compressed file, not a tar",
    ".h5": "a key-code store or another HDF5 file, not images",
}


def has_suffix(name: str, *suffixes: str) -> bool:
    """Whether `name` ends in one of `suffixes`, in any case."""
    return name.lower().endswith(suffixes)


def form_of_file(path: Path) -> Form | str:
    """The form of the file `path`; what it is instead, as words, where it is none that is read."""
    with path.open("rb") as file:
        first = file.read(512)
    if is_array_file(first):
        return "array"
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if first.startswith(parquet.MAGIC):
        return "parquet"
    if first.startswith(arrow.FILE_MAGIC) or (first.startswith(arrow.STREAM_MAGIC) and has_suffix(path.name, ".arrow")):
        return "arrow"
    if is_lmdb(path):
        return "lmdb"
    if first.startswith(b"\x89HDF\r\n\x1a\n"):
        return _NAMED[".h5"]
    if has_suffix(path.name, *TAR_SUFFIXES) or first[_TAR_MAGIC_OFFSET:].startswith(_TAR_MAGIC):
        return "tar"
    if is_compressed(path):
        return _NAMED[".gz"]
    if is_image_file(first) or split_extension(path.name) is not None:
        return "one image, not a collection"
    return _NAMED.get(path.suffix.lower(), "not a collection")


@dataclass(frozen=True)
class Choice:
    """One collection below a folder: `names` are what --subset calls it, the first the one that is shown."""

    form: Form
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    note: str = ""

    @property
    def name(self) -> str:
        return self.names[0]


def choices_below(folder: Path) -> list[Choice]:
    """The collections that stand side by side in `folder`: LMDBs, zips, splits of parquet files, folders of shards."""
    with os.scandir(folder) as listed:  # of 100,000 images none is looked at
        entries = sorted(
            Path(entry.path)
            for entry in listed
            if not entry.name.startswith(".") and (has_suffix(entry.name, ".zip", ".parquet") or _is_folder(entry))
        )
    choices = []
    for entry in entries:
        if entry.is_dir() and is_lmdb(entry):
            choices.append(Choice("lmdb", (entry.name.removesuffix("_lmdb"), entry.name), (entry,)))
    unzipped = {choice.names[-1] for choice in choices}
    for entry in entries:
        if entry.is_file() and has_suffix(entry.name, ".zip") and entry.stem not in unzipped:
            name = entry.stem.removesuffix("_lmdb")
            choices.append(Choice("zip", (name, entry.stem, entry.name), (entry,)))
    choices += _parquet_splits([entry for entry in entries if entry.is_file()])
    if choices:
        return choices
    for entry in entries:
        names = [child.name for child in islice(entry.iterdir(), _NUM_LOOKED_AT)] if entry.is_dir() else []
        if any(has_suffix(name, *TAR_SUFFIXES) for name in names):
            choices.append(Choice("tar", (entry.name,), (entry,)))
        elif arrow.STATE in names and arrow.arrow_files(entry):
            choices.append(Choice("arrow", (entry.name,), (entry,)))
        elif any(has_suffix(name, ".parquet") for name in names):
            choices += _parquet_splits(sorted(child for child in entry.iterdir() if child.is_file()))
    return choices


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in circles
        return False


def _parquet_splits(files: Sequence[Path]) -> list[Choice]:
    """Tables by the split in their names; those that name none are one collection, called like their folder."""
    tables = [file for file in files if has_suffix(file.name, ".parquet") and not file.name.startswith(".")]
    of_words = group_files([table.name for table in tables])
    splits: dict[str, list[Path]] = {}
    for place, table in enumerate(tables):
        found = _SPLIT.match(table.name)
        word = next((split for split, places in (of_words or {}).items() if place in places), "")
        splits.setdefault(found["split"] if found else word or table.parent.name, []).append(table)
    return [Choice("parquet", (name,), tuple(paths)) for name, paths in splits.items()]


def choose(choices: Sequence[Choice], subset: str | None, *, where: Path) -> Choice:
    """The only choice, or the only one for training; `note` then says what was passed over.

    Raises UsageError, listing them, when it is not clear which is meant.
    """
    if len(choices) == 1 and subset is None:
        return choices[0]
    can_join = not {"zip", "lmdb"} & {choice.form for choice in choices}
    chosen = choose_part({choice.name: None for choice in choices}, subset, where=where, can_join=can_join)
    choice = next(choice for choice in choices if choice.name == chosen.name)
    return replace(choice, note=chosen.note)
