"""Where images go: a folder of PNGs, WebDataset shards, a zip in EDM's layout, or ADM's npz.

PNG, lossless, unless shards are asked for in another encoding.
Encoding runs in a few threads, writing in order. Nothing stands under its final name before it is whole: files,
shards, zips and npz are written beside it and renamed. Keys are kept: `flat_name(key).png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from brics_cli.images.sinks.base import ImageSink, check_key
from brics_cli.images.sinks.encodings import PNG, WEBP, Encoding, jpeg
from brics_cli.images.sinks.pieces import PiecewiseSink, discard_pieces, pieces_directory
from brics_cli.images.sinks.png import PngSink
from brics_cli.images.sinks.webdataset import WebDatasetSink, webdataset_stem
from brics_cli.images.sinks.zip import ZipSink
from brics_cli.workspace import check_output
from brics_cli.workspace.naming import FOLDER, ending_of, form_of_output

__all__ = [
    "FORMS",
    "PNG",
    "WEBP",
    "Encoding",
    "Format",
    "ImageSink",
    "check_key",
    "discard_pieces",
    "format_of",
    "is_one_file",
    "jpeg",
    "open_sink",
    "pieces_directory",
    "webdataset_stem",
]

Format = Literal["png", "wds", "zip", "npz"]
FORMS: dict[Format, tuple[str, ...]] = {"png": (FOLDER,), "wds": (FOLDER, ".tar"), "zip": (".zip",), "npz": (".npz",)}
"""Format -> what its --out ends in."""


def open_sink(
    path: Path | str,
    format: Format | None = None,
    *,
    shard_size: int = 1000,
    encoding: Encoding = PNG,
    nested: bool = False,
    overwrite: bool = False,
    resumable: bool = False,
) -> ImageSink:
    """A sink at `path`: `png` (a folder), `wds` (a folder of shards, or one `x.tar`), `zip` or `npz`.

    `format` None goes by the path: by its ending, wds for a folder; `encoding` is of the images in wds, `nested` of
    the files in png: keys with slashes stand in folders. A folder
    may hold the beginning of the same output (see `ImageSink.resume_point`); who may write there is for
    `claim_output` to decide. One file begins again unless it is `resumable`, which an npz always is: then it is
    written in pieces, in the folder `pieces_directory`, which is to be claimed and in the end discarded like any other.
    Raises WouldOverwriteError for an existing file, without `overwrite`; UsageError when path and format disagree.
    """
    path = Path(path)
    format = format_of(path, asked=format)
    is_file = is_one_file(path)
    if is_file and path.is_file():
        check_output(path, overwrite=overwrite, what="the output")
    if format == "npz" or (is_file and resumable):
        return PiecewiseSink(path)
    if format == "zip":
        return ZipSink(path)
    return PngSink(path, nested=nested) if format == "png" else WebDatasetSink(path, shard_size, encoding=encoding)


def format_of(path: Path, *, asked: str | None = None, default: Format = "wds") -> Format:
    """The format that was `asked` for or that a path asks for by its ending; `default` for a folder.

    Raises UsageError as `form_of_output`.
    """
    return form_of_output(path, FORMS, asked=asked, default=default)


def is_one_file(path: Path) -> bool:
    """Whether images go to one file at `path`."""
    return ending_of(path) != FOLDER
