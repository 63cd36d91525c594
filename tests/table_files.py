"""Tables of images as Hugging Face's `datasets` writes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from image_files import noise

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image_table(num_rows: int = 5, *, first: int = 0, **columns: object) -> pa.Table:
    """`num_rows` images and their labels 0, 1, ...; `columns` come after them, or in their place."""
    rows = [{"bytes": noise(first + number), "path": f"{first + number}.png"} for number in range(num_rows)]
    there = {"image": pa.array(rows, IMAGE), "label": pa.array(range(num_rows), pa.int64())}
    return pa.table({**there, **columns})


def write_parquet(path: Path, num_rows: int = 5, *, first: int = 0, **columns: object) -> Path:
    """The table, in row groups of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(image_table(num_rows, first=first, **columns), path, row_group_size=2)
    return path
