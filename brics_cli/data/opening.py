"""`open_collection`: from a path or a brace pattern to a collection, by looking at what is there."""

from __future__ import annotations

import math
import os
import re
import statistics
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from brics_cli.data.collection import Collection, split_extension, visible_path
from brics_cli.data.forms import Choice, Form, choices_below, choose, form_of_file, has_suffix
from brics_cli.data.manifest import check_manifest
from brics_cli.data.pixels import PILLOW_FORMATS, ImageError
from brics_cli.data.sources.folder import FolderCollection
from brics_cli.data.sources.lmdb import LmdbCollection, is_lmdb
from brics_cli.data.sources.npz import ArrayCollection
from brics_cli.data.sources.parquet import ParquetCollection
from brics_cli.data.sources.webdataset import TAR_SUFFIXES, WebDatasetCollection
from brics_cli.data.sources.zip import ZipCollection
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.workspace import read_provenance

READS = (
    "brics reads folders, WebDataset tars (x.tar, a folder of tars, x-{000..003}.tar), zips, LMDBs, parquet and .npz."
)
MAX_FILES = 1_000_000
Labels = Literal["folder", "none"]


def open_collection(
    path_or_pattern: str | Path, *, subset: str | None = None, labels: Labels | None = None
) -> Collection:
    """The collection at a path, or at a brace pattern of tars or parquet files such as `x-{000..003}.tar`.

    A path is a folder of images, a WebDataset tar (compressed or not) or a folder of them, a zip, ADM's npz, an LMDB or
    `./lsun` with several, a parquet file or a folder of them; which is seen in the content, not in the name.
    `subset` chooses where the path holds several (`church_outdoor_train`, `validation`). `labels="folder"` makes
    the top-level folders of a folder of images classes; "none": there are none. Raises UsageError (missing path, no
    images, several and no `subset`, a format that is not read, a URL, labels that cannot be meant), ArtefactError (a
    damaged file, a pack that has not finished).
    """
    collection = _open(os.fspath(path_or_pattern), subset, labels)
    if labels == "folder" and not isinstance(collection, FolderCollection):
        raise UsageError(f"--labels folder goes with a folder of images, not with {collection.kind}: {collection.path}")
    return collection


def _open(text: str, subset: str | None, labels: Labels | None) -> Collection:
    if not text:
        raise UsageError("the path of the images is empty", next="Is a shell variable unset?")
    if text.startswith("pipe:") or "://" in text:
        raise UsageError(f"{text!r} is not a path", next="Give a folder or files on a local disk.")
    path = Path(text)
    if "{" in text and not _exists(path):
        if subset is not None:
            raise UsageError("--subset goes with a folder, not with a pattern")
        return _open_pattern(text)
    if not path.exists():
        if subset is None and path.parent.is_dir():
            named = [choice for choice in choices_below(path.parent) if path.name in choice.names]
            if named:
                return _open_choice(named[0])
        raise UsageError(f"no such file or folder: {path}", next=READS)
    if not path.is_dir():
        if subset is not None:
            raise UsageError(f"--subset goes with a folder, and {path} is a file")
        return _open_file(path)
    if subset is not None:
        found = _find_subset(path, subset)
        return _open_choice(found) if isinstance(found, Choice) else _open_directory(found, labels)
    return _open_directory(path, labels)


def subset_path(path: str | Path, subset: str) -> str:
    """A path that `open_collection` opens as it would open `path` with `subset`. Raises UsageError as it does."""
    if not Path(path).is_dir():
        what = "is a file" if Path(path).exists() else "is not there"
        raise UsageError(f"--subset goes with a folder, and {path} {what}")
    found = _find_subset(Path(path), subset)
    return _path_of(found) if isinstance(found, Choice) else str(found)


def collection_exists(path: str | Path) -> bool:
    """Whether something is at a collection's path: a pattern and a split of parquet tables are no files."""
    text = os.fspath(path)
    if "{" in text or _exists(Path(text)):
        return True
    parent = Path(text).parent
    return parent.is_dir() and any(Path(text).name in choice.names for choice in choices_below(parent))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a long pattern is no file name
        return False


def _open_file(path: Path) -> Collection:
    form = form_of_file(path)
    if form == "tar":
        return WebDatasetCollection(str(visible_path(path)), [path])
    if form == "zip":
        return ZipCollection(path)
    if form == "lmdb":
        # data.mdb is opened through its folder, whose name says what it is
        return LmdbCollection(path.parent if path.name == "data.mdb" else path)
    if form == "parquet":
        return ParquetCollection(str(visible_path(path)), [path])
    if form == "array":
        return ArrayCollection(path)
    raise UsageError(f"{path} is {form}", next=READS)


def _open_pattern(pattern: str) -> Collection:
    from braceexpand import braceexpand

    # braceexpand holds every range in memory before its first result: look at their lengths first
    lengths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    if math.prod(lengths) > MAX_FILES:
        raise UsageError(f"the pattern {pattern!r} stands for more than {MAX_FILES:,} files")
    try:
        paths = [Path(text) for text in braceexpand(pattern)]
    except ValueError as error:  # UnbalancedBracesError
        raise UsageError(f"the pattern {pattern!r} is not balanced ({error})") from None
    if all(has_suffix(path.name, ".parquet") for path in paths):
        form: Form = "parquet"
    else:
        form = "tar"
        wrong = next((path for path in paths if not has_suffix(path.name, *TAR_SUFFIXES)), None)
        if wrong is not None:
            raise UsageError(f"the pattern {pattern!r} names {wrong}, which is not a .tar", next=READS)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{len(missing):,} of the {len(paths):,} tars of {pattern!r} are missing, first {missing[0]}")
    if len(set(paths)) != len(paths):
        raise UsageError(f"the pattern {pattern!r} names a file twice")
    absolute = os.path.abspath(pattern)  # noqa: PTH100 - a pattern, not a path
    return ParquetCollection(absolute, paths) if form == "parquet" else WebDatasetCollection(absolute, paths)


def _open_directory(path: Path, labels: Labels | None) -> Collection:
    artefact = read_provenance(path)
    if artefact is not None and artefact.kind == "shards" and not artefact.complete:
        raise ArtefactError(f"brics pack has not finished {path}", next="Run the same brics pack command again.")
    if artefact is not None and artefact.kind == "shards":
        check_manifest(path)
    if is_lmdb(path):
        return LmdbCollection(path)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if "data.mdb" in names:
        raise UsageError(f"{path} is named like an LMDB, and its data.mdb is not an LMDB", next=READS)
    tars = [name for name in names if has_suffix(name, *TAR_SUFFIXES)]
    images = [name for name in names if split_extension(name) is not None]
    if tars and images:
        raise UsageError(
            f"{path} holds {len(tars):,} tars and {len(images):,} images: which are meant?",
            next="Move one kind to a folder of its own.",
        )
    if tars:
        return WebDatasetCollection(str(path.resolve()), [path / name for name in tars])
    choices = choices_below(path)
    if any(choice.form == "lmdb" for choice in choices):
        return _open_choice(choose(choices, where=path))
    try:
        return FolderCollection(path, labels=labels)
    except UsageError:
        if not choices:
            raise
    return _open_choice(choose(choices, where=path))


def _find_subset(path: Path, subset: str) -> Choice | Path:
    """The collection or the folder `subset` of `path`. Raises UsageError, listing what is there, when there is none."""
    choices = choices_below(path)
    for choice in choices:
        if subset in choice.names:
            return choice
    if (path / subset).is_dir() and ".." not in Path(subset).parts:
        return path / subset
    names = [choice.name for choice in choices] or sorted(
        child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    there_are = f"; there are: {', '.join(names[:20])}" if names else ""
    raise UsageError(f"no subset or folder {subset!r} in {path}{there_are}")


def _open_choice(choice: Choice) -> Collection:
    collection: Collection
    if choice.form == "parquet":
        collection = ParquetCollection(_path_of(choice), choice.paths)
    elif choice.form == "tar":
        collection = _open_directory(choice.paths[0], None)
    elif choice.form == "lmdb":
        collection = LmdbCollection(choice.paths[0])
    else:
        collection = ZipCollection(choice.paths[0])
    collection.note = choice.note
    return collection


def _path_of(choice: Choice) -> str:
    """The path that opens `choice` again without --subset; a split of parquet tables is named like a folder."""
    if choice.form != "parquet":
        return str(choice.paths[0])
    folder = choice.paths[0].parent.resolve()
    return str(folder if choice.name == folder.name else folder / choice.name)


def median_side(collection: Collection, *, num: int = 64) -> int:
    """Median over an evenly spread sample of `num` images of min(width, height), in pixels, from headers alone.

    Raises UsageError when not one of them is an image.
    """
    total = len(collection)
    num = min(num, total)
    wanted = sorted({round(step * (total - 1) / max(num - 1, 1)) for step in range(num)})
    sides = []
    for shard_index, index in collection.places(wanted):
        try:
            with Image.open(BytesIO(collection.read(shard_index, index).data), formats=PILLOW_FORMATS) as image:
                sides.append(min(image.size))
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sides:
        raise UsageError(f"none of {len(wanted)} images looked at in {collection.path} can be read as an image")
    return round(statistics.median(sides))
