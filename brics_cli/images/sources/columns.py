"""Which columns of a table of images are read, and as what: the image, its label, metadata; and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brics_cli.errors import UsageError
from brics_cli.images.labels import FIELDS
from brics_cli.parsing import parse_json

if TYPE_CHECKING:
    import pyarrow

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Taken in this order where several columns hold images; bare bytes are an image file under these names alone."""


class Columns(NamedTuple):
    """`image` is struct<bytes, path> or bytes; `label` may be None; `metadata` are plain columns, `unread` the others,
    each with what it holds; `class_names` are those of Hugging Face's ClassLabel; `downloads` says that the table is
    img2dataset's, which also lists what it could not download."""

    image: str
    label: str | None
    metadata: tuple[str, ...]
    unread: dict[str, str]
    class_names: tuple[str, ...]
    downloads: bool


def choose_columns(schema: pyarrow.Schema, image_field: str | None, *, where: Path) -> Columns:
    """The columns of one table. Raises UsageError when none holds images, or it is not clear which is meant."""
    features = _features(schema)
    holds = {field.name: _holds(field, features) for field in schema}
    image = _image_column(schema, holds, image_field, where=where)
    may_label = [field.name for field in schema if field.name != image and _may_label(field.type)]
    label = next((name for name in FIELDS if name in may_label), None)
    names = features.get(label, {}).get("names") if label is not None else None
    return Columns(
        image,
        label,
        tuple(name for name, kind in holds.items() if kind == "" and name not in (image, label)),
        {name: kind for name, kind in holds.items() if kind and name != image},
        tuple(map(str, names)) if isinstance(names, list) else (),
        "url" in holds or {"status", "error_message"} <= holds.keys(),
    )


def _image_column(schema: pyarrow.Schema, holds: Mapping[str, str], asked: str | None, *, where: Path) -> str:
    import pyarrow as pa

    found = [name for name, kind in holds.items() if kind == "images" or (kind == "bytes" and name in IMAGE_COLUMNS)]
    listed = ", ".join(found)
    if asked is not None:
        bare = [
            name for name, kind in holds.items() if kind == "bytes" and not pa.types.is_nested(schema.field(name).type)
        ]
        may = [name for name, kind in holds.items() if kind == "images" or name in bare]
        named = [name for name in may if name == asked] or [name for name in may if name.lower() == asked.lower()]
        if len(named) == 1:
            return named[0]
        raise UsageError(f"--image-field {asked}: {where} has no such column of images; it has: {listed or 'none'}")
    if not found:
        raise UsageError(
            f"the table {where} has no column of image files; it has {', '.join(schema.names[:8])}",
            next="brics reads Hugging Face's column image: struct<bytes, path>. img2dataset's tables go with its tars.",
        )
    usual = next((name for name in IMAGE_COLUMNS if name in found), None)
    if usual is None and len(found) > 1:
        raise UsageError(
            f"the table {where} holds images in {len(found):,} columns: {listed}",
            next=f"Give one: --image-field {found[0]}",
        )
    return usual or found[0]


def _holds(field: pyarrow.Field, features: Mapping[str, Any]) -> str:
    """`images`, `bytes` (alone or somewhere within), another kind of file, or nothing of these."""
    import pyarrow as pa

    def has_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            return has_bytes(kind.value_type)
        return _is_bytes(kind) or any(has_bytes(kind.field(place).type) for place in range(kind.num_fields))

    if pa.types.is_null(field.type) and field.name in IMAGE_COLUMNS:
        return "bytes"  # of a shard that has none
    if not has_bytes(field.type):
        return ""
    is_file = pa.types.is_struct(field.type) and any(
        part.name == "bytes" and _is_bytes(part.type)
        for part in (field.type.field(place) for place in range(field.type.num_fields))
    )
    kind = features.get(field.name, {}).get("_type", "Image")
    if is_file:
        return "images" if kind == "Image" else str(kind)
    return "images" if kind == "Image" and field.name in features and _is_bytes(field.type) else "bytes"


def _may_label(kind: pyarrow.DataType) -> bool:
    """Whether values of this type can be labels: numbers, names, truth values, or vectors of numbers."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _may_label(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))
    plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(is_plain(kind) for is_plain in plain)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    views = getattr(pa.types, "is_binary_view", lambda kind: False)  # pyarrow 16
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or views(kind)
    )


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """Hugging Face's features by column, which stand in the schema as JSON; empty where they do not."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
