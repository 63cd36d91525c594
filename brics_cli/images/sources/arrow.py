"""Arrow files of images: the folder that Hugging Face's `save_to_disk` writes, or such a file alone.

`dataset_info.json`, `state.json` and `data-00000-of-0000N.arrow` in one folder, streams of record batches; a
`DatasetDict` is one such folder per split. Files are mapped: nothing is read before it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.errors import ArtefactError
from brics_cli.images.sources.tables import Layout, TableCollection, damaged, need_pyarrow
from brics_cli.parsing import parse_json, read_bytes

if TYPE_CHECKING:
    import pyarrow

FILE_MAGIC, STREAM_MAGIC = b"ARROW1\0\0", b"\xff\xff\xff\xff"
SUFFIX = ".arrow"
STATE = "state.json"
NOT_IMAGES = frozenset({STATE, "dataset_info.json"})
"""What stands beside the tables."""


class ArrowCollection(TableCollection):
    """Arrow files, or streams in files."""

    kind = "Arrow"
    max_groups = 64  # of files that are mapped

    @staticmethod
    def read_layout(file: Path) -> Layout:
        need_pyarrow(file)
        table = _mapped(file)
        return Layout(table.schema, [table.num_rows], [(table.num_rows,)])

    @staticmethod
    def read_group(key: tuple[Path, int, tuple[str, ...]]) -> pyarrow.Table:
        file, _, names = key
        return _mapped(file).select(list(names))


def _mapped(file: Path) -> pyarrow.Table:
    import pyarrow as pa

    try:
        source = pa.memory_map(str(file))
        with file.open("rb") as opened:
            is_file = opened.read(len(FILE_MAGIC)) == FILE_MAGIC
        return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from None


def arrow_files(folder: Path) -> list[Path]:
    """The files of the data set that was saved to `folder`, in their order; none where it is no such folder.

    Raises ArtefactError when one of them is missing.
    """
    if not (folder / STATE).is_file():
        return []
    try:
        listed = parse_json(read_bytes(folder / STATE))["_data_files"]
        files = [folder / Path(row["filename"]).name for row in listed]
    except (KeyError, TypeError, ValueError, RecursionError):
        return sorted(folder.glob(f"*{SUFFIX}"))
    if missing := [file for file in files if not file.is_file()]:
        raise ArtefactError(
            f"{len(missing):,} of the {len(files):,} files of {folder} are missing, first {missing[0].name}",
            next="Copy or download it again.",
        )
    return files
