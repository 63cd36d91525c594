"""What stands beside an image: its label and metadata, from `.cls`, `.json` and `.txt` files of its name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from brics_cli.images.labels import FIELDS, Meta, may_be_label
from brics_cli.parsing import parse_json

EXTENSIONS = ("cls", "json", "txt")
LABELLING = ("cls", "json")
"""Those that may hold a label."""


class Sidecars(NamedTuple):
    """`label`, as it is written, of a `.cls`, else of a field of `FIELDS` in a `.json`; `meta`: all but the `.cls`."""

    label: Any
    from_cls: bool
    meta: Meta


def read_sidecars(texts: Iterable[tuple[str, bytes]]) -> Sidecars:
    """The sidecars (extension, bytes) of one image. Never raises for what one holds.

    A `.json` that is an object is merged into the metadata; other text is kept under its extension.
    """
    cls: str | None = None
    meta: Meta = {}
    fields: Meta = {}
    for extension, data in texts:
        text = data.decode("utf-8", "replace").strip()
        if extension == "cls":
            cls = text
            continue
        value = _json_or_text(text) if extension == "json" else text
        if extension == "json" and isinstance(value, dict):
            fields = value
            meta = {**value, **meta}
        else:
            meta[extension] = value
    if cls:
        return Sidecars(cls, True, meta)
    said = (fields[name] for name in FIELDS if fields.get(name) is not None and may_be_label(fields[name]))
    return Sidecars(next(said, None), False, meta)


def _json_or_text(text: str) -> Any:
    """The JSON value of `text`, or `text` itself."""
    try:
        return storable(parse_json(text))
    except (ValueError, RecursionError):
        return text


def storable(value: Any) -> Any:
    """A JSON value in which lone surrogates, which no file can hold, are `?`."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
