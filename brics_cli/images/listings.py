"""Files that list what is known of many images: StyleGAN's and EDM's `dataset.json`, Hugging Face's `metadata.csv` and
`metadata.jsonl`. Names in them are relative to the folder that holds them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import printable, split_extension
from brics_cli.images.labels import FIELDS, Meta, may_be_label
from brics_cli.images.matching import tidy_path
from brics_cli.images.sidecars import storable
from brics_cli.parsing import parse_json

DATASET_JSON = "dataset.json"
FILE_NAMES = (DATASET_JSON, "metadata.csv", "metadata.jsonl")
_NAME_FIELD = "file_name"
MOST_BYTES = 512 << 20
"""Of a listing: ten million images at 50 bytes. As Python objects it takes some ten times as much."""


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
        return self.source[: len(self.source) - len(self.source.rpartition("/")[2])]

    def of_folder(self, folder: str, *, source: str) -> Listing:
        """What it says of the images in `folder`, by their names in it; folders before that must all be the same."""
        split = [f"/{tidy_path(name)}".partition(f"/{folder}/") for name in self.names]
        before = {head for head, found, _ in split if found}
        kept = before if len(before) == 1 else {""}
        rows = [row for row, (head, found, _) in enumerate(split) if found and head in kept]
        return Listing(
            source,
            [split[row][2] for row in rows],
            [self.labels[row] for row in rows],
            [self.metas[row] for row in rows],
            class_names=self.class_names,
        )


def is_listing(name: str) -> bool:
    """Whether the file `name` is one, by its name."""
    return name.rpartition("/")[2] in FILE_NAMES


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
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        form = 'It must be {"labels": [[name, label], ...]}.' if base == DATASET_JSON else "Each row names a file_name."
        raise ArtefactError(
            f"{where}: its {printable(name)} is damaged ({error})", next=f"{form} Or move it away."
        ) from None


def _dataset_json(source: str, data: bytes) -> Listing:
    """`{"labels": [[name, label], ...]}`, null for none; also {name: label}, or without what is around it."""
    listing = _json(data)
    if not isinstance(listing, dict):
        listing = {"labels": listing}
    key = next((key for key in ("labels", "label") if key in listing), None)
    labels = _pairs(listing[key]) if key is not None else []
    if key is None and listing and all(split_extension(name) is not None for name in listing):
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
    return storable(value) if has_surrogates else value


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
