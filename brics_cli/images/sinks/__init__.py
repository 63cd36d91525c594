"""Where images go: a folder of PNGs, WebDataset shards, a zip in EDM's layout, or ADM's npz.

PNG, lossless, unless shards are asked for in another encoding. Encoding runs in a few threads, writing in order.
Nothing has its final name before it is whole: files, shards, zips and npz are written beside it and renamed. Keys are
kept. A format is one class here, and one line in `workspace.naming.IMAGE_FORMATS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brics_cli.images.sinks.base import PNG, ImageSink, OutputImage, check_key, encoded, encoding_of
from brics_cli.images.sinks.npz import NpzSink
from brics_cli.images.sinks.pieces import TarSink, discard_pieces, file_of_pieces
from brics_cli.images.sinks.png import PngSink
from brics_cli.images.sinks.webdataset import WebDatasetSink
from brics_cli.images.sinks.zip import ZipSink
from brics_cli.workspace.naming import IMAGE_FORMATS, ImageFormat, ending_of, form_of_output

SINKS: tuple[type[ImageSink], ...] = (PngSink, WebDatasetSink, TarSink, ZipSink, NpzSink)


def open_sink(path: Path, format: str | None = None, *, default: ImageFormat = "wds", **settings: Any) -> ImageSink:
    """A sink at `path`, with `settings` as `ImageSink` has them; nothing is made yet.

    `format` None goes by the ending of the path, `default` for a folder. `ImageSink.claim` decides who may
    write there. Raises UsageError when path and format disagree.
    """
    format = form_of_output(path, IMAGE_FORMATS, asked=format, default=default)
    return next(sink for sink in SINKS if (sink.format, sink.ending) == (format, ending_of(path)))(path, **settings)
