"""What a format of collections says of itself, for `open_collection` to recognise and open it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brics_cli.images.collection import Collection, Wanted


def no_files(folder: Path) -> list[Path]:
    """Of a format whose files alone make no folder a collection."""
    return []


@dataclass(frozen=True)
class Format:
    """One format. `name` is that of a file of it, in words, and `reads` for the list of what brics reads; `suffixes`
    are what such files' names end in.

    `open` takes the absolute path (or pattern) as text, the files at it, and what is asked of them; `is_file` a file
    and its first 512 bytes; `files_in` gives the files of a folder that as a whole is one collection of this format,
    empty where it is none, and `own_files` are the others in it that need no mention. `joins`: several files can be
    opened as one collection. `several`: files side by side in a folder are "choices", "splits" of one collection
    unless there are images too, or "shards" of one, and images beside them a mistake; "alone": each has to be given.
    `has_subsets`: there may be folders of splits within a file.
    """

    name: str
    reads: str
    suffixes: tuple[str, ...]
    open: Callable[[str, Sequence[Path], Wanted], Collection]
    is_file: Callable[[Path, bytes], bool]
    files_in: Callable[[Path], list[Path]] = no_files
    own_files: frozenset[str] = frozenset()
    joins: bool = False
    several: Literal["alone", "choices", "splits", "shards"] = "alone"
    has_subsets: bool = False

    @property
    def word(self) -> str:
        """Its name without an article: `tar`."""
        return self.name.partition(" ")[2]

    def is_named(self, name: str) -> bool:
        """Whether a file of this name may be one."""
        return name.lower().endswith(self.suffixes)
