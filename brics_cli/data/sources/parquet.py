"""Hugging Face's parquet tables of images: a column `image` of type struct<bytes, path>, `label`, anything else.

Needs pyarrow, the extra `parquet`. The footers say how many rows there are; a row group is read when the first of its
rows is asked for, and the last few are kept. Other columns than the image and the label become metadata.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brics_cli.data.collection import (
    Collection,
    RawImage,
    Shard,
    check_num_bytes,
    shard_fingerprint,
    shard_names,
    visible_path,
)
from brics_cli.data.pixels import ImageError
from brics_cli.data.sources.process_cache import ProcessCache
from brics_cli.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Looked for in this order; failing these, the first column of type struct<bytes, ...>."""
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
MAX_ROW_GROUPS = 3


class ParquetCollection(Collection):
    """The rows of the parquet `files`, one shard per file; `path` is what the user gave, made absolute.

    Raises UsageError when pyarrow is missing or a table has no column of images, ArtefactError for a damaged file.
    """

    kind = "parquet"

    def __init__(self, path: str, files: Sequence[Path]) -> None:
        self.path = path
        self._files = [visible_path(file) for file in files]
        self._row_groups = ProcessCache(_read_row_group, limit=MAX_ROW_GROUPS)
        self._image_columns: list[str] = []
        self._starts: list[list[int]] = []
        self.shards = []
        names = shard_names(self._files, [file.stem for file in self._files])
        for file, name in zip(self._files, names, strict=True):
            metadata, schema = _read_footer(file)
            self._image_columns.append(_image_column(schema, file))
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            self._starts.append([0, *accumulate(group.num_rows for group in groups)])
            rows = [(group.num_rows, group.total_byte_size) for group in groups]
            size_bytes = file.stat().st_size
            fingerprint = shard_fingerprint(name, size_bytes, rows)
            self.shards.append(Shard(name, metadata.num_rows, size_bytes, fingerprint))
        if not len(self):
            raise UsageError(f"no rows in the {len(self._files)} parquet files of {path}")

    def describe(self) -> str:
        num_files = f"{len(self.shards):,} file" + ("s" if len(self.shards) != 1 else "")
        return f"{len(self):,} images, parquet, {num_files}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return f"{self.shards[shard_index].name}/{index:08d}"

    def read(self, shard_index: int, index: int) -> RawImage:
        starts = self._starts[shard_index]
        group = bisect_right(starts, index) - 1
        table = self._row_groups[self._files[shard_index], group]
        row = {name: table.column(name)[index - starts[group]].as_py() for name in table.column_names}
        image = row.pop(self._image_columns[shard_index])
        data = image.get("bytes") if isinstance(image, dict) else image
        path = image.get("path") if isinstance(image, dict) else None
        if not data:
            raise ImageError("no bytes in its row" + (f", only the path {path!r}" if path else ""))
        check_num_bytes(len(data))
        name = next((name for name in LABEL_COLUMNS if isinstance(row.get(name), int)), None)
        label = row.pop(name) if name is not None else None
        meta = _as_json({**row, **({"path": path} if path else {})})
        return RawImage(self.key(shard_index, index), data, label, meta or None, shard_index, index)


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row can be metadata: bytes and nulls are left out, dates become text."""
    kept = {name: value for name, value in row.items() if value is not None and not isinstance(value, bytes)}
    return json.loads(json.dumps(kept, default=str, ensure_ascii=False))  # type: ignore[no-any-return]


def _image_column(schema: pyarrow.Schema, file: Path) -> str:
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = []
    for field in schema:
        is_struct = pa.types.is_struct(field.type)
        of_bytes = is_struct and any(part.name == "bytes" and is_bytes(part.type) for part in field.type)
        if of_bytes or (field.name in IMAGE_COLUMNS and is_bytes(field.type)):
            found.append(field.name)
    if not found:
        listed = ", ".join(schema.names[:8])
        raise UsageError(
            f"the parquet table {file} has no column of image files; it has {listed}",
            next="brics reads Hugging Face's column image: struct<bytes, path>. img2dataset's tables go with its tars.",
        )
    return next((name for name in IMAGE_COLUMNS if name in found), found[0])


def _read_footer(file: Path) -> tuple[Any, pyarrow.Schema]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"{file} is a parquet table, and pyarrow is not installed", next="pip install 'brics-cli[parquet]'"
        ) from None
    try:
        with ParquetFile(file) as opened:
            return opened.metadata, opened.schema_arrow
    except (ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _read_row_group(key: tuple[Path, int]) -> pyarrow.Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    file, group = key
    try:
        with ParquetFile(file) as opened:
            return opened.read_row_group(group, use_threads=False)
    except (ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the machine's, not the file's
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ArtefactError(f"the parquet file {file} is truncated or damaged ({first_line})", next="Download it again.")
