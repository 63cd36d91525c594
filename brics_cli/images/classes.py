"""`--labels folder`: the folders of images as classes, numbered in sorted order."""

from __future__ import annotations

from collections.abc import Sequence

from brics_cli.images.collection import printable
from brics_cli.images.labels import Meta


class FolderClasses:
    """The classes of the images `names`: their top-level folders, or those below folders that all have in common.

    `depth` folders at the front (a split's) are no classes; `said`, for a description, is how many images have none.
    """

    def __init__(self, names: Sequence[str], *, depth: int = 0) -> None:
        folders = [name.split("/")[:-1] for name in names]
        first, last = min(folders), max(folders)
        common = next(
            (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
            min(len(first), len(last)),
        )
        self._depth = depth
        if common > depth and all(len(each) > common for each in folders):
            self._depth = common
        found = {each[self._depth] for each in folders if len(each) > self._depth}
        self._number = {name: number for number, name in enumerate(sorted(found))}
        num_without = sum(len(each) <= self._depth for each in folders)
        self.said = f", {num_without:,} of {len(names):,} images in none" if num_without else ""

    def __len__(self) -> int:
        return len(self._number)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(printable, self._number))

    def of(self, name: str, meta: Meta | None) -> tuple[int | None, Meta | None]:
        """(label, meta with its class) of the image `name`; no label for one in no class's folder."""
        folders = name.split("/")[:-1]
        if len(folders) <= self._depth:
            return None, meta
        folder = folders[self._depth]
        return self._number[folder], {**(meta or {}), "class": printable(folder)}
