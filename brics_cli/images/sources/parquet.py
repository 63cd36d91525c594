"""Parquet tables of images, as Hugging Face's hub and img2dataset write them. A group of rows is read at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.images.sources.tables import Layout, TableCollection, damaged, need_pyarrow

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"


class ParquetCollection(TableCollection):
    """Parquet files."""

    kind = "parquet"

    @staticmethod
    def read_layout(file: Path) -> Layout:
        need_pyarrow(file)
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(file) as opened:
                groups = [opened.metadata.row_group(group) for group in range(opened.metadata.num_row_groups)]
                index = [(group.num_rows, group.total_byte_size) for group in groups]
                return Layout(opened.schema_arrow, [num_rows for num_rows, _ in index], index)
        except (ArrowException, OSError) as error:
            raise damaged(file, error) from None

    @staticmethod
    def read_group(key: tuple[Path, int, tuple[str, ...]]) -> pyarrow.Table:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        file, group, names = key
        try:
            with ParquetFile(file) as opened:
                return opened.read_row_group(group, columns=list(names), use_threads=False)
        except (ArrowException, OSError) as error:
            raise damaged(file, error) from None
