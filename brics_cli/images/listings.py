"""What files say of images: listings of many (StyleGAN's and EDM's `dataset.json`, Hugging Face's `metadata.csv` and
`metadata.jsonl`), and sidecars, which have an image's own name (`.cls`, `.json`, `.txt`).
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import is_image, printable, split_extension
from brics_cli.images.labels import FIELDS, Meta, may_be_label
from brics_cli.parsing import parse_json

DATASET_JSON = "dataset.json"
LISTINGS = (DATASET_JSON, "metadata.csv", "metadata.jsonl")
SIDECARS = ("cls", "json", "txt")
_NAME_FIELD = "file_name"
MOST_BYTES = 512 << 20
"""Of a listing: ten million images at 50 bytes. As Python objects it takes some ten times as much."""

Texts = list[tuple[str, bytes]]
"""The sidecars of one image, extension and bytes; `label.txt` for one that has a field's name before it."""


class Sidecars(NamedTuple):
    """`label`, as written: of a `.cls` (`is_alone`), else of one of `FIELDS` in a `.json`; `meta`: all but the label's
    own file."""

    label: Any
    is_alone: bool
    meta: Meta


def may_hold_label(extension: str) -> bool:
    """Whether a sidecar of this extension may hold a label."""
    return extension != "txt"


def read_sidecars(texts: Iterable[tuple[str, bytes]]) -> Sidecars:
    """The sidecars (extension, bytes) of one image. Never raises for what one holds.

    A `.json` that is an object is merged into the metadata; other text is kept under its extension.
    """
    alone: Any = None
    meta: Meta = {}
    fields: Meta = {}
    for extension, data in texts:
        text = data.decode("utf-8", "replace").strip()
        word, _, kind = extension.rpartition(".")
        value = _json_or_text(text) if kind == "json" else text
        if kind == "json" and isinstance(value, dict):
            fields = value
            meta = {**value, **meta}
        elif extension == "cls" or word:
            alone = value if alone in (None, "") else alone
        else:
            meta[extension] = value
    if alone not in (None, ""):
        return Sidecars(alone, True, meta)
    said = (fields[name] for name in FIELDS if fields.get(name) is not None and may_be_label(fields[name]))
    return Sidecars(next(said, None), False, meta)


def _json_or_text(text: str) -> Any:
    """The JSON value of `text`, or `text` itself."""
    try:
        return _storable(parse_json(text))
    except ValueError:
        return text


def _storable(value: Any) -> Any:
    """A JSON value in which lone surrogates, which no file can hold, are `?`."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


@dataclass(frozen=True)
class Listing:
    """What `source` says of images by name: `labels` and `metas`, as long as `names`, hold None where it says nothing.

    `keys`, which `brics decode --out x.zip` adds to `dataset.json`, gives images their keys back; `class_names` names
    the classes 0, 1, ...; `note` is why it cannot be used.
    """

    source: str
    names: Sequence[str] = ()
    labels: Sequence[Any] = ()
    metas: Sequence[Meta | None] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    note: str = ""

    @property
    def folder(self) -> str:
        """The folder that its names are relative to, with a `/` at its end; empty for the collection's own."""
        return self.source[: self.source.rfind("/") + 1]

    @property
    def has_labels(self) -> bool:
        return any(label is not None for label in self.labels)

    def of_folder(self, folder: str, *, source: str) -> Listing:
        """What it says of the images in `folder`, by their names in it; folders before that must all be the same."""
        split = [f"/{tidy_path(name)}".partition(f"/{folder}/") for name in self.names]
        before = {head for head, found, _ in split if found}
        kept = before if len(before) == 1 else {""}
        rows = [row for row, (head, found, _) in enumerate(split) if found and head in kept]
        labels, metas = [self.labels[row] for row in rows], [self.metas[row] for row in rows]
        return Listing(source, [split[row][2] for row in rows], labels, metas, class_names=self.class_names)


def is_listing(name: str) -> bool:
    """Whether the file `name` is one, by its name."""
    return name.endswith(LISTINGS) and name.rpartition("/")[2] in LISTINGS


def read_listing(name: str, data: bytes, *, where: str) -> Listing:
    """The listing in the file `name` of `where`. Raises ArtefactError when it is damaged."""
    base = name.rpartition("/")[2]
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        if base == DATASET_JSON:
            return _dataset_json(name, data)
        text = data.decode("utf-8-sig")
        rows = _csv_rows(text) if base.endswith(".csv") else map(_json_row, filter(str.strip, text.splitlines()))
        return _metadata(name, rows)
    except (ValueError, TypeError, csv.Error) as error:
        form = 'It must be {"labels": [[name, label], ...]}.' if base == DATASET_JSON else "Each row names a file_name."
        raise ArtefactError(
            f"{where}: its {printable(name)} is damaged ({error})", next=f"{form} Or move it away."
        ) from None


def _dataset_json(source: str, data: bytes) -> Listing:
    listing = _json(data)
    if not isinstance(listing, dict):
        listing = {"labels": listing}
    labels = _pairs(listing.get("labels", listing.get("label")))
    if not {"labels", "label"} & listing.keys() and listing and all(map(is_image, listing)):
        labels = _pairs(listing)
    keys = {name: key for name, key in _pairs(listing.get("keys")) if isinstance(key, str)}
    known = listing.get("class_names")
    class_names = tuple(map(str, known)) if isinstance(known, list) else ()
    note = "" if labels or keys else f"{printable(source)} holds no labels"
    names = [name for name, _ in labels]
    return Listing(source, names, [label for _, label in labels], [None] * len(names), keys, class_names, note)


def _pairs(listed: Any) -> list[tuple[str, Any]]:
    if listed is None:
        return []
    if isinstance(listed, Mapping):
        return list(listed.items())
    if not isinstance(listed, list):
        raise ValueError(f"{str(listed)[:40]!r} is no list of pairs")
    return [(str(name), value) for name, value in listed]


def _json(text: str | bytes) -> Any:
    value = parse_json(text, pairs=_without_contradiction)
    has_surrogates = b"\\ud" in text.lower() if isinstance(text, bytes) else "\\ud" in text.lower()
    return _storable(value) if has_surrogates else value


def _without_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (two := next((name for name, value in pairs if found[name] != value), None)):
        raise ValueError(f"{two!r} appears twice, with different values")
    return found


def _csv_rows(text: str) -> Iterable[Meta]:
    for row in csv.DictReader(StringIO(text, newline=""), restkey="", restval=""):
        yield {name.strip(): value for name, value in row.items() if name}


def _json_row(line: str) -> Meta:
    row = _json(line)
    if not isinstance(row, dict):
        raise ValueError(f"the line {line[:40]!r} is no object")
    return row


def _metadata(source: str, rows: Iterable[Meta]) -> Listing:
    """The first of `FIELDS` that any row has is the label, and everything else metadata."""
    names: list[str] = []
    kept: list[Meta] = []
    for row in rows:
        if not isinstance(row.get(_NAME_FIELD), str):
            if names:
                raise ValueError(f"row {len(names) + 1:,} has no {_NAME_FIELD}")
            return Listing(source, note=f"{printable(source)} has no column {_NAME_FIELD}, and is not read")
        names.append(row.pop(_NAME_FIELD))
        kept.append({name: value for name, value in row.items() if value not in (None, "")})
    fields = {name for row in kept for name in row}
    fields -= {name for row in kept for name, value in row.items() if not may_be_label(value)}
    label = next((name for name in FIELDS if name in fields), None)
    labels = [row.pop(label, None) if label is not None else None for row in kept]
    return Listing(source, names, labels, [row or None for row in kept])


_TWO = -2
"""In place of a number: more than one has that name."""


def match_names(listed: Sequence[str], images: Sequence[str]) -> npt.NDArray[np.int64]:
    """The position in `images` (N) of each of `listed` (M,), -1 for none: listings name files as they once stood.

    A name matches as it is; failing that without its extension and in any case, without the folders in front that all
    names share, and where one is the end of the other. What could mean two images means none.
    """
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
