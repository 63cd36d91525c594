"""Tables of images: a column of images, a label, and the rest as metadata. Parquet files, as Hugging Face's hub and
img2dataset write them, and the Arrow files of its `save_to_disk` (`dataset_info.json`, `state.json` and
`data-00000-of-0000N.arrow` in one folder, streams of record batches).

Needs pyarrow, the extra `parquet`. Footers and labels are read at once; of the images a group of rows, when the first
of them is asked for, and the last few are kept.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.collection import (
    ANYTHING,
    Collection,
    RawImage,
    Shard,
    Wanted,
    check_num_bytes,
    shard_layout,
    shard_names,
    visible_path,
)
from brics_cli.images.labels import Labelling, Meta, number_labels
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.columns import Columns, choose_columns
from brics_cli.images.sources.format import Format
from brics_cli.images.sources.memory import ProcessCache
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.wording import count
from brics_cli.workspace.mirrors import HOLES, present

if TYPE_CHECKING:
    import pyarrow

SUCCESS = "success"
"""What img2dataset writes in `status` of a row that it could download."""
STATE = "state.json"
"""What `save_to_disk` writes into its folder last: the names of its files."""
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"

Rows = tuple[Path, int | None, tuple[str, ...]]
"""A file, the group of rows in it (None: all), and the columns."""


class Layout(NamedTuple):
    """A file before any image is read: the rows of each group that can be read alone, and what else tells two files of
    one size apart."""

    schema: pyarrow.Schema
    rows_of_groups: list[int]
    rows: list[tuple[Any, ...]]


class _Table(NamedTuple):
    """A file: its columns, where its groups of rows begin, and which rows are images (None: all)."""

    path: Path
    columns: Columns
    starts: list[int]
    rows: npt.NDArray[np.int64] | None


class TableCollection(Collection):
    """The rows of the tables in `files`, one shard per file; `path` is what the user gave, made absolute.

    `wanted.image_field` names the column of images. Rows that img2dataset could not download are left out, counted.
    Raises UsageError when pyarrow is missing, a table has no column of images, or its labels cannot be meant;
    ArtefactError for a damaged file.
    """

    max_groups = 3
    """Of rows, kept in memory."""

    def __init__(self, path: str, files: Sequence[Path], wanted: Wanted = ANYTHING) -> None:
        super().__init__(wanted)
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UsageError(
                f"{files[0]} is a table of Arrow's, and pyarrow is not installed",
                next="pip install 'brics-cli[parquet]'",
            ) from None
        self.path = wanted.of(path)
        self._groups = ProcessCache(self.read_rows, limit=self.max_groups)
        self._tables: list[_Table] = []
        self._labelling: Labelling | None = None
        self.shards = []
        paths = [visible_path(file) for file in files]
        for file, name in zip(paths, shard_names(paths, [file.stem for file in paths]), strict=True):
            layout = self.read_layout(file)
            columns = choose_columns(layout.schema, wanted.image_field, where=file)
            starts = [0, *accumulate(layout.rows_of_groups)]
            rows = self._downloaded(file, columns, starts[-1]) if columns.downloads else None
            self._tables.append(_Table(file, columns, starts, rows))
            size_bytes = file.stat().st_size
            num_images = starts[-1] if rows is None else len(rows)
            self.shards.append(Shard(name, num_images, size_bytes, shard_layout(name, size_bytes, layout.rows)))
            for column, kind in columns.unread.items():
                hint = f" (--image-field {column})" if kind == "images" else f" ({kind})"
                what = "images" if kind == "images" else "values"
                self.passed_over.reasons[f"{what} in the column {column}{hint}"] += num_images
        if not len(self):
            left_out = f"; {self.passed_over.describe()}" if self.passed_over else ""
            raise UsageError(f"no rows in the {count(len(files), f'{self.kind} file')} of {path}{left_out}")
        if wanted.labels is None:
            self._number()

    @staticmethod
    @abstractmethod
    def read_layout(file: Path) -> Layout:
        """What is in `file`, without its images. Raises ArtefactError."""

    @staticmethod
    @abstractmethod
    def read_rows(rows: Rows) -> pyarrow.Table:
        """Some columns of one group of rows of a file, or of all. Raises ArtefactError."""

    def describe(self) -> str:
        column = self._tables[0].columns
        chosen = f", column {column.image}" if "images" in column.unread.values() else ""
        labels = f", labels from the column {column.label}: {self._labelling.said}" if self._labelling else ""
        files = count(len(self.shards), "file")
        return f"{count(len(self), 'image')}, {self.kind}, {files}{chosen}{labels}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        return f"{self.shards[shard_index].name}/{self._row(shard_index, index):08d}"

    def files(self, shard_index: int, indices: Sequence[int] | None = None) -> list[str]:
        """The one file that a shard is read from."""
        return [str(self._tables[shard_index].path)]

    def read(self, shard_index: int, index: int) -> RawImage:
        columns = self._tables[shard_index].columns
        label: int | None = None
        meta: Meta = {}
        names = (columns.image, *columns.metadata)
        if self._labelling is not None:
            label, meta = self._labelling.of(self.starts[shard_index] + index)
        elif columns.label is not None:
            names += (columns.label,)
        group, place = self._place(shard_index, self._row(shard_index, index), names)
        row = {name: group.column(name)[place].as_py() for name in names}
        image = row.pop(columns.image)
        data = image.get("bytes") if isinstance(image, dict) else image
        path = image.get("path") if isinstance(image, dict) else None
        if not data:
            raise ImageError("no bytes in its row" + (f", only the path {path!r}" if path else ""))
        check_num_bytes(len(data))
        meta = {**_as_json({**row, **({"path": path} if path else {})}), **meta}
        return RawImage(self.key(shard_index, index), data, label, meta or None, shard_index, index)

    def _row(self, shard_index: int, index: int) -> int:
        rows = self._tables[shard_index].rows
        return index if rows is None else int(rows[index])

    def _place(self, shard_index: int, row: int, names: tuple[str, ...]) -> tuple[pyarrow.Table, int]:
        """The group of rows that `row` is in, and where in it."""
        table = self._tables[shard_index]
        group = bisect_right(table.starts, row) - 1
        rows = self._groups[table.path, group, names]
        if rows.num_rows != table.starts[group + 1] - table.starts[group]:
            raise _damaged(table.path, _OTHER_NUMBER)
        return rows, row - table.starts[group]

    def _column(self, file: Path, num_rows: int, name: str) -> pyarrow.ChunkedArray:
        column = self.read_rows((file, None, (name,))).column(name)
        if len(column) != num_rows:
            raise _damaged(file, _OTHER_NUMBER)
        return column

    def _downloaded(self, file: Path, columns: Columns, num_rows: int) -> npt.NDArray[np.int64] | None:
        """The rows of a table of img2dataset's that have an image; None: all of them."""
        if "status" in columns.metadata:
            texts = [str(status).lower() for status in self._column(file, num_rows, "status").to_pylist()]
            if not any(text == SUCCESS or text.startswith("failed") for text in texts):
                return None  # another's
            failed = Counter(text for text in texts if text != SUCCESS)
            kept = np.array([text == SUCCESS for text in texts], bool)
        else:
            without_url = self._column(file, num_rows, "url").is_null().to_numpy()
            if not without_url.any():
                return None
            kept = ~(without_url & _has_no_bytes(self._column(file, num_rows, columns.image)))
            failed = Counter({"no url": int((~kept).sum())})
        if kept.all():
            return None
        for reason, num in failed.items():
            self.passed_over.reasons[f"rows that were not downloaded ({reason})"] += num
        return np.flatnonzero(kept)

    def _number(self) -> None:
        """Number the labels of all files together."""
        import pyarrow as pa

        labels = {table.columns.label for table in self._tables}
        names = {table.columns.class_names for table in self._tables}
        if labels == {None}:
            return
        if len(names) > 1:
            one, other = sorted(names)[:2]
            raise UsageError(
                f"{self.path}: its tables name their classes differently: {', '.join(one[:5])}; {', '.join(other[:5])}",
                next="Open them one by one, or use --labels none.",
            )
        columns = []
        for table, shard in zip(self._tables, self.shards, strict=True):
            label = table.columns.label
            column = pa.nulls(shard.num_images) if label is None else self._column(table.path, table.starts[-1], label)
            columns.append(column if label is None or table.rows is None else column.take(pa.array(table.rows)))
        values: Any = [value for column in columns for value in column.to_pylist()]
        if all(pa.types.is_signed_integer(column.type) for column in columns):
            numbers = [column.fill_null(-1).to_numpy(zero_copy_only=False) for column in columns]
            values = np.concatenate(numbers).astype(np.int64)
        self._labelling = number_labels(
            values,
            source=f"the column {next(label for label in labels if label is not None)} of {self.path}",
            shown=lambda image: self.key(*self.places([image])[0]),
            names=names.pop(),
        )
        self.class_names = self._labelling.names


class ParquetCollection(TableCollection):
    """Parquet files."""

    kind = "parquet"

    @staticmethod
    def read_layout(file: Path) -> Layout:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with present(file) as here, ParquetFile(here) as opened:
                groups = [opened.metadata.row_group(group) for group in range(opened.metadata.num_row_groups)]
                index = [(group.num_rows, group.total_byte_size) for group in groups]
                return Layout(opened.schema_arrow, [num_rows for num_rows, _ in index], index)
        except (ArrowException, OSError) as error:
            raise _damaged(file, error) from None

    @staticmethod
    def read_rows(rows: Rows) -> pyarrow.Table:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        file, group, names = rows
        try:
            with present(file) as here, ParquetFile(here) as opened:
                if group is None:
                    return opened.read(columns=list(names), use_threads=False)
                return opened.read_row_group(group, columns=list(names), use_threads=False)
        except (ArrowException, OSError) as error:
            raise _damaged(file, error) from None


def image_chunks(file: Path) -> list[tuple[int, int]] | None:
    """Where the columns of a parquet table are that take more than half of it, (offset, size) in order; None where none
    does, or it is damaged."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        groups = read_metadata(file)
        chunks = [
            groups.row_group(row).column(each)
            for row in range(groups.num_row_groups)
            for each in range(groups.num_columns)
        ]
    except (ArrowException, OSError):
        return None
    of_column: dict[str, list[tuple[int, int]]] = {}
    for chunk in chunks:
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        of_column.setdefault(chunk.path_in_schema, []).append((start, chunk.total_compressed_size))
    return next(
        (sorted(rows) for rows in of_column.values() if 2 * sum(size for _, size in rows) > file.stat().st_size), None
    )


class ArrowCollection(TableCollection):
    """Arrow files, or streams in files. They are mapped: nothing is read before it is asked for."""

    kind = "Arrow"
    max_groups = 64

    @staticmethod
    def read_layout(file: Path) -> Layout:
        table = _mapped(file)
        return Layout(table.schema, [table.num_rows], [(table.num_rows,)])

    @staticmethod
    def read_rows(rows: Rows) -> pyarrow.Table:
        file, _, names = rows
        return _mapped(file).select(list(names))


def _mapped(file: Path) -> pyarrow.Table:
    import pyarrow as pa

    try:
        with present(file) as here, here.open("rb") as opened:  # then it is mapped, whatever becomes of its name
            source = pa.memory_map(str(here))
            is_file = opened.read(len(_ARROW_FILE)) == _ARROW_FILE
        return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def saved_files(folder: Path) -> list[Path]:
    """The files of the data set that was saved to `folder`, in their order; none where it is no such folder.

    Raises ArtefactError when one of them is missing.
    """
    if not (folder / STATE).is_file():
        return []
    try:
        listed = parse_json(read_bytes(folder / STATE))["_data_files"]
        files = [folder / Path(row["filename"]).name for row in listed]
    except (KeyError, TypeError, ValueError):
        return sorted(folder.glob("*.arrow"))
    if missing := [file for file in files if not file.is_file()]:
        raise ArtefactError(
            f"{len(missing):,} of the {len(files):,} files of {folder} are missing, first {missing[0].name}",
            next="Copy or download it again.",
        )
    return files


def _has_no_bytes(images: pyarrow.ChunkedArray) -> npt.NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(images.type):
        images = pc.struct_field(images, "bytes")
    return images.is_null().to_numpy()  # type: ignore[no-any-return]


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row can be metadata: nulls are left out, dates become text."""
    kept = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(kept, default=str, ensure_ascii=False).encode("utf-8", "replace")
    return json.loads(text)  # type: ignore[no-any-return]


_OTHER_NUMBER = ValueError("it holds another number of rows than it says")


def _damaged(file: Path, error: Exception) -> Exception:
    """What to raise for an error of pyarrow's: the machine's as it is, anything else as a damaged file."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ArtefactError(f"the table {file} is truncated or damaged ({first_line})", next="Download it again.")


HOLES[".parquet"] = image_chunks
PARQUET = Format(
    "a parquet table",
    reads="parquet",
    suffixes=(".parquet",),
    open=ParquetCollection,
    is_file=lambda path, first: first.startswith(_PARQUET),
    joins=True,
    several="splits",
)
ARROW = Format(
    "an Arrow file",
    reads="Arrow (save_to_disk)",
    suffixes=(".arrow",),
    open=ArrowCollection,
    is_file=lambda path, first: (
        first.startswith(_ARROW_FILE) or (first.startswith(_ARROW_STREAM) and path.name.lower().endswith(".arrow"))
    ),
    files_in=saved_files,
    own_files=frozenset({STATE, "dataset_info.json"}),
    joins=True,
)
