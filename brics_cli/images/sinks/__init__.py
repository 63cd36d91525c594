"""Where images go: a folder of PNGs, WebDataset shards, a zip in EDM's layout, or ADM's npz.

PNG, lossless, unless shards are asked for in another encoding. Encoding runs in a few threads, writing in order.
Nothing has its final name before it is whole: files, shards, zips and npz are written beside it and renamed. Keys are
kept. A format is one class here, and one line in `workspace.naming.IMAGE_FORMATS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from brics_cli.config.suggestions import check_known
from brics_cli.errors import UsageError
from brics_cli.images.sinks.base import PNG, ImageSink, OutputImage, check_key, encoding_of
from brics_cli.images.sinks.npz import NpzSink
from brics_cli.images.sinks.pieces import TarSink, begun_at, discard_pieces, file_of_pieces, pieces_directory
from brics_cli.images.sinks.png import PngSink
from brics_cli.images.sinks.webdataset import WebDatasetSink
from brics_cli.images.sinks.zip import ZipSink
from brics_cli.workspace.naming import FOLDER, IMAGE_FORMATS, Codec, ImageFormat, ending_of, form_of_output

SINKS: tuple[type[ImageSink], ...] = (PngSink, WebDatasetSink, TarSink, ZipSink, NpzSink)


def open_sink(
    path: Path,
    format: str | None = None,
    *,
    default: ImageFormat = "wds",
    codec: Codec | None = None,
    **settings: Any,
) -> ImageSink:
    """A sink at `path`, of images in `codec` (None: PNG; another one for shards alone), with `settings` as `ImageSink`
    has them; nothing is made yet.

    `format` None goes by the ending of the path, `default` for a folder. `ImageSink.claim` decides who may write there.
    Raises UsageError when path, format and codec disagree.
    """
    format = form_of_output(path, IMAGE_FORMATS, asked=format, default=default)
    kind = next(sink for sink in SINKS if (sink.format, sink.ending) == (format, ending_of(path)))
    check_codec(codec, format=format, path=path)
    return kind(path, **settings) if codec is None else kind(path, encoding=encoding_of(codec), **settings)


def check_codec(codec: Codec | None, *, format: str, path: Path | None) -> None:
    """Raise UsageError for a `codec` of images that `format`, or one tar at `path`, does not take."""
    check_known(codec, get_args(Codec), option="--codec", what="codec")
    if codec not in (None, "png") and (format != "wds" or (path is not None and ending_of(path) != FOLDER)):
        raise UsageError(
            f"--codec {codec} is for WebDataset shards in a folder, and the output is to be {path or format}",
            next="Add --format wds, or leave --codec out.",
        )
