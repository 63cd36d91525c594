"""Which members of an archive or folder make one sample: an image, and the sidecars of its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import printable
from brics_cli.images.fields import Fields
from brics_cli.images.names import Names
from brics_cli.images.passed_over import PassedOver
from brics_cli.images.sidecars import EXTENSIONS, LABELLING


class Samples:
    """The samples among the members `names`, in the order of their images. N images, M members.

    A member is known by its place in `names`; `fields` says what is a sample's key and which of its images is taken.
    Raises ArtefactError for two images of one name.
    """

    def __init__(self, names: Sequence[str], *, where: str, fields: Fields = Fields()) -> None:
        self.names = names if isinstance(names, Names) else Names(names)
        names = list(names)
        self._fields = fields
        images: list[int] = []
        keys: list[str] = []
        sidecars: dict[str, list[int]] = {}
        num_of_key: dict[str, int] = {}
        seen: set[str] = set()
        other_fields: dict[str, list[int]] = {}
        for member, name in enumerate(names):
            split = fields.split(name)
            if split is None:
                stem, _, extension = name.rpartition(".")
                if extension.lower() in EXTENSIONS:
                    sidecars.setdefault(stem, []).append(member)
                continue
            if fields.images is not None and split[1] not in fields.images:
                other_fields.setdefault(split[1], []).append(member)
                continue
            shown = printable(name)
            if shown in seen:
                raise ArtefactError(f"{where} holds {shown!r} twice", next="Pack it again with unique names.")
            seen.add(shown)
            images.append(member)
            keys.append(split[0])
            key = printable(split[0])
            num_of_key[key] = num_of_key.get(key, 0) + 1
        self.images = np.array(images, np.int64)  # (N,) members
        self._with_extension = frozenset(place for place, key in enumerate(keys) if num_of_key[printable(key)] > 1)
        beside = [
            sorted(_of_sample(sidecars, key, names[member]), key=lambda other: _extension(names[other]))
            for key, member in zip(keys, images, strict=True)
        ]
        self._sidecars = np.array([other for others in beside for other in others], np.int64)
        self._sidecar_ends = np.cumsum([0, *map(len, beside)], dtype=np.int64)  # (N + 1,)
        self._other_fields = {field: np.array(members, np.int64) for field, members in other_fields.items()}

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
        split = self._fields.split(name)
        return printable(name if index in self._with_extension or split is None else split[0])

    def passed_over(self, *, used: Collection[str] = ()) -> PassedOver:
        """The members that are neither images nor sidecars of one, nor `used` otherwise."""
        read = np.concatenate([self.images, self._sidecars, *self._other_fields.values()])
        unused = np.setdiff1d(np.arange(len(self.names)), read)
        names = [name for member in unused.tolist() if (name := self.names[member]) not in used]
        passed = PassedOver(names, num_read=len(self.names) - len(names) - sum(map(len, self._other_fields.values())))
        for field, members in self._other_fields.items():
            passed.reasons[f"images {printable(field)} (--image-field)"] = len(members)
        return passed

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


def _of_sample(sidecars: Mapping[str, list[int]], key: str, name: str) -> list[int]:
    """The sidecars of the sample `key`, and those of its image `name` where that is called otherwise."""
    stem = name.rpartition(".")[0]
    return [*sidecars.get(key, ()), *(sidecars.get(stem, ()) if stem != key else ())]


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def tidy_name(name: str, *, where: str) -> str | None:
    """A member's name as a relative path; None for one that is hidden.

    Raises ArtefactError for one that leaves its folder or holds a NUL.
    """
    if "/" not in name and "\0" not in name and not name.startswith((".", "__MACOSX")):
        return name or None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise ArtefactError(f"{where} holds {printable(name)!r}, a name that leaves its folder")
    if not parts or parts[-1].startswith(".") or "__MACOSX" in parts:
        return None
    return "/".join(parts)
