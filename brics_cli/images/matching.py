"""Which image a listed name means. `dataset.json` and `metadata.csv` name files as they once stood.

A name matches as it is; failing that without its extension and in any case, without the folders in front that all
names share, and where one is the end of the other. What could mean two images means none. M names, N images.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from brics_cli.images.collection import split_extension

_TWO = -2
"""In place of a number: more than one has that name."""


def match_names(listed: Sequence[str], images: Sequence[str]) -> npt.NDArray[np.int64]:
    """The position in `images` of each of `listed` (M,), -1 for none."""
    found = np.full(len(listed), -1, np.int64)
    wanted, there = list(map(tidy_path, listed)), list(map(tidy_path, images))
    _match_equal(found, wanted, there)
    if (found < 0).any():
        wanted, there = list(map(_plain, wanted)), list(map(_plain, there))
        _match_equal(found, wanted, there)
    if (found < 0).any():
        wanted, there = _without_common_folder(wanted), _without_common_folder(there)
        _match_equal(found, wanted, there)
        _match_ends(found, wanted, there)
    return found


def _match_equal(found: npt.NDArray[np.int64], wanted: Sequence[str], there: Sequence[str]) -> None:
    """Fill in `found` where exactly one image has the name."""
    positions = _numbered(there)
    for place in np.flatnonzero(found < 0).tolist():
        found[place] = max(positions.get(wanted[place], -1), -1)


def _match_ends(found: npt.NDArray[np.int64], wanted: Sequence[str], there: Sequence[str]) -> None:
    """Fill in `found` where a listed name is the end of one image's name alone, or the other way round."""
    missing = np.flatnonzero(found < 0).tolist()
    names = {wanted[place] for place in missing}
    positions: dict[str, int] = {}
    for position, name in enumerate(there):
        for end in _ends(name):
            if end in names:
                positions[end] = _TWO if end in positions else position
    whole, claims = _numbered(there), dict[str, str | None]()
    for name in names:
        for end in _ends(name):
            if end in whole:
                claims[end] = None if end in claims else name  # two listed names cannot both be that image
    for end, claimed_by in claims.items():
        if claimed_by is not None:
            positions.setdefault(claimed_by, whole[end])
    for place in missing:
        found[place] = max(positions.get(wanted[place], -1), -1)


def _numbered(names: Sequence[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        numbers[name] = _TWO if name in numbers else number
    return numbers


def tidy_path(name: str) -> str:
    """With `/` between folders, without `.` or a root; accents as one character."""
    parts = unicodedata.normalize("NFC", name.strip().replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _plain(name: str) -> str:
    """Without the extension, in lower case."""
    split = split_extension(name)
    return (split[0] if split is not None else name).casefold()


def _without_common_folder(names: Sequence[str]) -> list[str]:
    """Without the folders in front that all of `names` stand in."""
    folders = [name.split("/")[:-1] for name in (min(names, default=""), max(names, default=""))]
    common = 0
    for one, other in zip(*folders, strict=False):  # what the first and the last in order share, all share
        if one != other:
            break
        common += 1
    return [name.split("/", common)[-1] for name in names]


def _ends(name: str) -> Iterator[str]:
    """The name, then without its first folder, and so on to the base name."""
    yield name
    while "/" in name:
        name = name.partition("/")[2]
        yield name
