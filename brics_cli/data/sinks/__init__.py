"""Where images go: a folder of PNGs, WebDataset shards, or a zip in EDM's layout.

PNG, lossless, unless shards are asked for in another encoding.
Encoding runs in a few threads, writing in order. Nothing stands under its final name before it is whole: files,
shards and zips are written beside it and renamed. Keys are kept: `<key>.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from brics_cli.data.sinks.base import ImageSink, check_key
from brics_cli.data.sinks.encodings import PNG, WEBP, Encoding, jpeg
from brics_cli.data.sinks.pieces import PiecewiseSink, discard_pieces, pieces_directory
from brics_cli.data.sinks.png import PngSink
from brics_cli.data.sinks.webdataset import WebDatasetSink, webdataset_stem
from brics_cli.data.sinks.zip import ZipSink
from brics_cli.errors import UsageError
from brics_cli.workspace import check_output

__all__ = [
    "PNG",
    "WEBP",
    "Encoding",
    "Format",
    "ImageSink",
    "check_key",
    "discard_pieces",
    "format_of",
    "jpeg",
    "open_sink",
    "pieces_directory",
    "webdataset_stem",
]

Format = Literal["png", "wds", "zip"]
_OUTPUTS = "zip: x.zip; wds: DIR or x.tar; png: DIR."


def open_sink(
    path: Path | str,
    format: Format | None = None,
    *,
    shard_size: int = 1000,
    encoding: Encoding = PNG,
    overwrite: bool = False,
    resumable: bool = False,
) -> ImageSink:
    """A sink at `path`: `png` (a folder), `wds` (a folder of shards, or one `x.tar`) or `zip`.

    `format` None goes by the path: `.zip` is zip, anything else wds; `encoding` is of the images in wds. A folder
    may hold the beginning of the same output (see `ImageSink.resume_point`); who may write there is for
    `claim_output` to decide. One file begins again unless it is `resumable`: then it is written in pieces, in the
    folder `pieces_directory`, which is to be claimed and in the end discarded like any other. Raises
    WouldOverwriteError for an existing file, without `overwrite`; UsageError when path and format disagree.
    """
    path = Path(path)
    format = format or format_of(path)
    if path.suffix == ".h5":
        raise UsageError(f"--out {path} is named like a key-code store, and images go there", next=_OUTPUTS)
    if (format == "zip") != (path.suffix == ".zip") or (format == "png" and path.suffix == ".tar"):
        raise UsageError(f"--out {path} does not go with format {format}", next=_OUTPUTS)
    if path.is_file() and path.suffix in {".zip", ".tar"}:
        check_output(path, overwrite=overwrite, what="the output")
    elif path.suffix in {".zip", ".tar"} and path.is_dir():
        raise UsageError(f"--out {path} is a folder, not a file")
    if resumable and path.suffix in {".zip", ".tar"}:
        return PiecewiseSink(path)
    if format == "zip":
        return ZipSink(path)
    return PngSink(path) if format == "png" else WebDatasetSink(path, shard_size, encoding=encoding)


def format_of(path: Path, *, default: Format = "wds") -> Format:
    """The format a path asks for by its extension; `default` for a folder."""
    return cast("Format", {".zip": "zip", ".tar": "wds"}.get(path.suffix, default))
