"""`open_collection`: from a path or a brace pattern to a collection, by looking at what is there."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from brics_cli.data.collection import Collection, split_extension
from brics_cli.data.pixels import PILLOW_FORMATS, ImageError
from brics_cli.data.sources.folder import FolderCollection
from brics_cli.data.sources.webdataset import WebDatasetCollection
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace import read_provenance

READS = "brics reads folders of images and WebDataset tars (one tar, a folder of tars, x-{000..003}.tar)."
MAX_TARS = 1_000_000
_NOT_READ = {
    ".zip": "a zip file",
    ".tgz": "a compressed tar",
    ".gz": "a compressed file",
    ".parquet": "a parquet table",
    ".mdb": "an LMDB",
    ".lmdb": "an LMDB",
    ".h5": "a key-code store or another HDF5 file, not images",
}


def open_collection(path_or_pattern: str | Path, *, subset: str | None = None) -> Collection:
    """The collection at a folder, a tar, a folder of tars, or a brace pattern of tars such as `x-{000..003}.tar`.

    `subset` names one folder below the path, where it holds several collections (`train`, `val`).
    Raises UsageError (missing path, no images, a format that is not read, a URL), ArtefactError (a damaged tar, a
    pack that has not finished).
    """
    if not str(path_or_pattern):
        raise UsageError("the path of the images is empty", next="Is a shell variable unset?")
    text = os.fspath(path_or_pattern)
    if text.startswith("pipe:") or "://" in text:
        raise UsageError(f"{text!r} is not a path", next="Give a folder or tars on a local disk.")
    if "{" in text and not Path(text).exists():
        if subset is not None:
            raise UsageError("--subset goes with a folder, not with a pattern")
        return _open_pattern(text)
    path = Path(text)
    if subset is not None:
        if not (path / subset).is_dir():
            raise UsageError(f"no folder {subset!r} in {path}{_subfolders(path)}")
        path = path / subset
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", next=READS)
    if path.is_dir():
        return _open_directory(path)
    if path.suffix.lower() == ".tar":
        return WebDatasetCollection(str(path.resolve()), [path])
    named = _NOT_READ.get(path.suffix.lower())
    if named is None:
        named = "one image, not a collection" if split_extension(path.name) is not None else "not a collection"
    raise UsageError(f"{path} is {named}", next=READS)


def _open_pattern(pattern: str) -> Collection:
    from braceexpand import braceexpand

    # braceexpand holds every range in memory before its first result: look at their lengths first
    lengths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    if math.prod(lengths) > MAX_TARS:
        raise UsageError(f"the pattern {pattern!r} stands for more than {MAX_TARS:,} tars")
    try:
        paths = [Path(text) for text in braceexpand(pattern)]
    except ValueError as error:  # UnbalancedBracesError
        raise UsageError(f"the pattern {pattern!r} is not balanced ({error})") from None
    wrong = next((path for path in paths if path.suffix.lower() != ".tar"), None)
    if wrong is not None:
        raise UsageError(f"the pattern {pattern!r} names {wrong}, which is not a .tar", next=READS)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{len(missing):,} of the {len(paths):,} tars of {pattern!r} are missing, first {missing[0]}")
    return WebDatasetCollection(os.path.abspath(pattern), paths)  # noqa: PTH100 - a pattern, not a path


def _open_directory(path: Path) -> Collection:
    artefact = read_provenance(path)
    if artefact is not None and artefact.kind == "shards" and not artefact.complete:
        raise ArtefactError(f"brics pack has not finished {path}", next="Run the same brics pack command again.")
    names = [entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    tars = sorted(name for name in names if name.lower().endswith(".tar"))
    images = [name for name in names if split_extension(name) is not None]
    if tars and images:
        raise UsageError(
            f"{path} holds {len(tars):,} tars and {len(images):,} images: which are meant?",
            next="Move one kind to a folder of its own.",
        )
    if tars:
        return WebDatasetCollection(str(path.resolve()), [path / name for name in tars])
    if "data.mdb" in names:
        raise UsageError(f"{path} is an LMDB", next=READS)
    return FolderCollection(path)


def _subfolders(path: Path) -> str:
    if not path.is_dir():
        return ""
    names = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    return f"; there are: {', '.join(names[:8])}" if names else ""


def median_side(collection: Collection, *, num: int = 64) -> int:
    """Median over an evenly spread sample of `num` images of min(width, height), in pixels, from headers alone.

    Raises UsageError when not one of them is an image.
    """
    total = len(collection)
    num = min(num, total)
    wanted = sorted({round(step * (total - 1) / max(num - 1, 1)) for step in range(num)})
    sides = []
    for shard_index, index in _positions(collection, wanted):
        try:
            with Image.open(BytesIO(collection.read(shard_index, index).data), formats=PILLOW_FORMATS) as image:
                sides.append(min(image.size))
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sides:
        raise UsageError(f"none of {len(wanted)} images looked at in {collection.path} can be read as an image")
    return round(statistics.median(sides))


def _positions(collection: Collection, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """(shard_index, index) of positions in the whole collection, `wanted` in rising order."""
    positions, start, shard_index = [], 0, 0
    for position in wanted:
        while position >= start + collection.shards[shard_index].num_images:
            start += collection.shards[shard_index].num_images
            shard_index += 1
        positions.append((shard_index, position - start))
    return positions
