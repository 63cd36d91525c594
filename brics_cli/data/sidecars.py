"""What stands beside an image: its label and metadata, from `.cls`, `.json` and `.txt` files of its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from brics_cli.errors import ArtefactError

EXTENSIONS = ("cls", "json", "txt")
LARGEST_LABEL = 2**63 - 1
"""Labels are stored as int64; a number beyond it is kept as metadata."""

Meta = dict[str, Any]


def read_sidecars(texts: Iterable[tuple[str, bytes]]) -> tuple[int | None, Meta | None]:
    """(label, meta) of one image from its sidecars (extension, bytes).

    A `.cls` that is an integer is the label, anything else in it metadata; a `.json` that is an object is merged
    into the metadata; other text is kept under its extension. Never raises for what a sidecar holds.
    """
    label: int | None = None
    meta: Meta = {}
    for extension, data in texts:
        text = data.decode("utf-8", "replace").strip()
        if extension == "cls" and (number := _as_label(text)) is not None:
            label = number
            continue
        value = _json_or_text(text) if extension == "json" else text
        if extension == "json" and isinstance(value, dict):
            meta = {**value, **meta}
        else:
            meta[extension] = value
    return label, meta or None


def _as_label(text: str) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        return None
    number = int(text)
    return number if abs(number) <= LARGEST_LABEL else None


def _json_or_text(text: str) -> Any:
    """The JSON value of `text`, or `text` itself; lone surrogates, which no file can hold, become `?`."""
    try:
        value = json.loads(text)
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return text


class DatasetJson:
    """StyleGAN's and EDM's `dataset.json`: `{"labels": [[name, label], ...]}` or null.

    An integer is the label; a vector of floats (StyleGAN's conditioning) is metadata, `label_vector`. `keys`, which
    `brics decode --out x.zip` adds, gives images their keys back.
    """

    def __init__(self, data: bytes, *, where: str) -> None:
        try:
            listing = json.loads(data)
            labels = listing.get("labels") if isinstance(listing, dict) else None
            keys = listing.get("keys") if isinstance(listing, dict) else None
            self.labels = _by_name(labels)
            self.keys = {name: key for name, key in _by_name(keys).items() if isinstance(key, str)}
        except (ValueError, TypeError, RecursionError) as error:
            raise ArtefactError(
                f"{where}: its dataset.json is damaged ({error})", next='It must be {"labels": [[name, label], ...]}.'
            ) from None

    def label(self, name: str) -> tuple[int | None, Meta | None]:
        """(label, meta) of the image `name`."""
        value = self.labels.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_LABEL:
            return value, None
        return None, None if value is None else {"label_vector": value}


def _by_name(pairs: Any) -> dict[str, Any]:
    if pairs is None:
        return {}
    if isinstance(pairs, Mapping):
        return {str(name): value for name, value in pairs.items()}
    return {str(name): value for name, value in pairs}


def merged(
    first: tuple[int | None, Meta | None], second: tuple[int | None, Meta | None]
) -> tuple[int | None, Meta | None]:
    """(label, meta) of two sources; `first` wins where both say something."""
    label = first[0] if first[0] is not None else second[0]
    meta = {**(second[1] or {}), **(first[1] or {})}
    return label, meta or None
