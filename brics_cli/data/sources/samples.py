"""Which members of an archive or folder make one sample: an image, and the sidecars of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from brics_cli.data.collection import printable, split_extension
from brics_cli.data.names import Names
from brics_cli.data.sidecars import EXTENSIONS, LABELLING
from brics_cli.errors import ArtefactError


class Samples:
    """The samples among the members `names`, in the order of their images. N images, M members.

    A member is known by its place in `names`. Raises ArtefactError for two images of one name.
    """

    def __init__(self, names: Sequence[str], *, where: str) -> None:
        self.names = Names(names)
        images: list[int] = []
        sidecars: dict[str, list[int]] = {}
        stems: dict[str, int] = {}
        seen: set[str] = set()
        for member, name in enumerate(names):
            split = split_extension(name)
            if split is None:
                stem, _, extension = name.rpartition(".")
                if extension.lower() in EXTENSIONS:
                    sidecars.setdefault(stem, []).append(member)
                continue
            shown = printable(name)
            if shown in seen:
                raise ArtefactError(f"{where} holds {shown!r} twice", next="Pack it again with unique names.")
            seen.add(shown)
            images.append(member)
            stem = printable(split[0])
            stems[stem] = stems.get(stem, 0) + 1
        self.images = np.array(images, np.int64)  # (N,) members
        self._with_extension = frozenset(
            place for place, member in enumerate(images) if stems[printable(names[member].rpartition(".")[0])] > 1
        )
        beside = [
            sorted(sidecars.get(names[member].rpartition(".")[0], ()), key=lambda other: _extension(names[other]))
            for member in images
        ]
        self._sidecars = np.array([other for others in beside for other in others], np.int64)
        self._sidecar_ends = np.cumsum([0, *map(len, beside)], dtype=np.int64)  # (N + 1,)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> int:
        """The member that is image `index`."""
        return int(self.images[index])

    def image_name(self, index: int) -> str:
        """Its name as it stands."""
        return self.names[self.image(index)]

    def key(self, index: int) -> str:
        """Its key below the shard: the name without extension, but with it where two differ in nothing else."""
        name = self.image_name(index)
        return printable(name if index in self._with_extension else name.rpartition(".")[0])

    def keys(self) -> Iterator[str]:
        return (self.key(index) for index in range(len(self)))

    def sidecars(self, index: int) -> list[int]:
        """The members that are sidecars of image `index`."""
        return self._sidecars[self._sidecar_ends[index] : self._sidecar_ends[index + 1]].tolist()

    def texts(self, index: int, read: Callable[[int], bytes]) -> list[tuple[str, bytes]]:
        """The sidecars of image `index`, extension and bytes, which `read(member)` gives."""
        return [(_extension(self.names[member]), read(member)) for member in self.sidecars(index)]

    def labelled(self) -> list[int]:
        """The images with sidecars that may hold a label."""
        if not len(self._sidecars):
            return []
        may = [_extension(self.names[member]) in LABELLING for member in self._sidecars.tolist()]
        before = np.cumsum([0, *may])[self._sidecar_ends]  # (N + 1,)
        return np.flatnonzero(np.diff(before)).tolist()


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def tidy_name(name: str, *, where: str) -> str | None:
    """A member's name as a relative path; None for one that is hidden.

    Raises ArtefactError for one that leaves its folder or holds a NUL.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise ArtefactError(f"{where} holds {printable(name)!r}, a name that leaves its folder")
    if not parts or parts[-1].startswith(".") or "__MACOSX" in parts:
        return None
    return "/".join(parts)
