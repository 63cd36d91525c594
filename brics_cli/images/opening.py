"""`open_collection`: from a path or a brace pattern to a collection, by looking at what is there."""

from __future__ import annotations

import glob
import math
import os
import re
import statistics
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.collection import Collection, split_extension, visible_path
from brics_cli.images.fields import ALL as ALL_IMAGES
from brics_cli.images.forms import Choice, Form, choices_below, choose, form_of_file, has_suffix
from brics_cli.images.manifest import check_manifest
from brics_cli.images.passed_over import OF_BRICS, PassedOver
from brics_cli.images.pixels import PILLOW_FORMATS, ImageError
from brics_cli.images.sources.arrow import NOT_IMAGES, ArrowCollection, arrow_files
from brics_cli.images.sources.folder import FolderCollection, NoImagesError, files_beside
from brics_cli.images.sources.lmdb import LmdbCollection, is_lmdb
from brics_cli.images.sources.npz import ArrayCollection
from brics_cli.images.sources.parquet import ParquetCollection
from brics_cli.images.sources.webdataset import TAR_SUFFIXES, WebDatasetCollection
from brics_cli.images.sources.zip import ZipCollection
from brics_cli.images.splits import ALL, group_files, is_part, same_split
from brics_cli.images.splits import choose as choose_part
from brics_cli.images.unpacking import said_before
from brics_cli.images.wanted import ANYTHING, Labels, Wanted
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import read_provenance

READS = (
    "brics reads folders, WebDataset tars (x.tar, a folder of tars, x-{000..003}.tar), zips, LMDBs, "
    "parquet, Arrow (save_to_disk) and .npz."
)
MAX_FILES = 1_000_000
NUM_LOOKED_AT = 64
"""Entries of a folder that are looked at to see whether a part of that name may be in it."""
SHARD_SUFFIXES = (*TAR_SUFFIXES, ".parquet")


def open_collection(
    path_or_pattern: str | Path,
    *,
    subset: str | None = None,
    labels: Labels | None = None,
    image_field: str | None = None,
    reporter: Reporter | None = None,
) -> Collection:
    """The collection at a path, or at a brace pattern of tars or parquet files such as `x-{000..003}.tar`.

    A path is a folder of images, a WebDataset tar (compressed or not) or a folder of them, a zip, ADM's npz, an LMDB or
    `./lsun` with several, a parquet file or a folder of them; which is seen in the content, not in the name.
    `subset` chooses where the path holds several (`church_outdoor_train`, `validation`), training and other images
    never being mixed, and `image_field` where samples have several images (`left.png`); both can also stand at the end
    of the path (`faces.zip/val`, `shards/*.left.png`). `labels="folder"` makes the top-level folders classes; "none":
    there are none. The `reporter` hears what is not read. Raises UsageError (missing path, no images, several and no
    choice, a format that is not read, a URL, labels that cannot be meant), ArtefactError (a damaged file, a pack that
    has not finished).
    """
    text = os.fspath(path_or_pattern)
    if not text:
        raise UsageError("the path of the images is empty", next="Is a shell variable unset?")
    if text.startswith("pipe:") or "://" in text:
        raise UsageError(f"{text!r} is not a path", next="Give a folder or files on a local disk.")
    located = _locate(text)
    if located is None:
        raise UsageError(f"no such file or folder: {text}", next=READS)
    path, said = located
    if said.subset is not None and subset is not None:  # ./photos/train, and a folder in it
        raise UsageError(f"{text} names the subset {said.subset!r} already, so --subset {subset} cannot be given")
    wanted = Wanted(subset or said.subset, labels, image_field or said.image_field)
    if reporter is not None and (unpacked := said_before(path)) is not None:
        reporter.message(unpacked)
    collection = _open(path, wanted)
    if labels == "folder" and not isinstance(collection, (FolderCollection, WebDatasetCollection, ZipCollection)):
        raise UsageError(
            f"--labels folder goes with folders, tars and zips of images, not with {collection.kind}: {collection.path}"
        )
    if reporter is not None and collection.passed_over:
        reporter.message(f"{collection.path}: {collection.passed_over.describe()}")
    if reporter is not None and collection.remark:
        reporter.message(f"{collection.path}: {collection.remark}")
    return collection


def _locate(text: str) -> tuple[str, Wanted] | None:
    """A path or pattern that is there, and what the end of `text` asks of it; None when nothing is."""
    if _exists(Path(text)):
        return text, ANYTHING
    head, _, last = text.rpartition("/")
    if (last == "*" or last.startswith("*.")) and not has_suffix(last, *SHARD_SUFFIXES):
        located = _locate(head)
        return None if located is None else (located[0], located[1]._replace(image_field=last[2:] or ALL_IMAGES))
    if _is_pattern(text):
        is_subset = _is_pattern(head) and not _is_pattern(last) and has_suffix(head, *SHARD_SUFFIXES)
        return (head, Wanted(subset=last)) if is_subset else (text, ANYTHING)
    parent = Path(text).parent
    named = parent.is_file()
    if parent.is_dir():
        named = last == ALL or _has_part(parent, last) or any(last in choice.names for choice in choices_below(parent))
    if named:
        return str(parent), Wanted(subset=last)
    above = _locate(str(parent)) if head and not parent.exists() else None
    if above is None or above[1].subset in (None, ALL):
        return None
    return above[0], Wanted(subset=f"{above[1].subset}/{last}")


def _has_part(folder: Path, part: str, *, depth: int = 4) -> bool:
    """Whether what is in `folder` may have a part of that name, which is no folder in it: shards of several splits, or
    a folder further down (`ILSVRC/Data/CLS-LOC/val`)."""
    if not is_part(part):
        return False
    with os.scandir(folder) as entries:
        below = []
        for entry in islice(entries, NUM_LOOKED_AT):
            if has_suffix(entry.name, *SHARD_SUFFIXES) or (entry.name == part and entry.is_dir()):
                return True
            below += [Path(entry.path)] if entry.is_dir() else []
    return depth > 0 and any(_has_part(path, part, depth=depth - 1) for path in below)


def _open(text: str, wanted: Wanted) -> Collection:
    path = Path(text)
    if _is_pattern(text) and not _exists(path):
        return _open_pattern(text, wanted)
    if not path.is_dir():
        return _open_file(path, wanted)
    if wanted.subset is not None:
        named = _named(choices_below(path), wanted.subset)
        if named is not None:
            return _open_choice(named, wanted)
        below = path / wanted.subset
        if below.is_dir() and ".." not in Path(wanted.subset).parts:
            return _open_directory(below, wanted._replace(subset=None))
    return _open_directory(path, wanted)


def subset_path(path: str | Path, subset: str | None, image_field: str | None = None) -> str:
    """A path that `open_collection` opens as it would open `path` with these. Raises UsageError where nothing is."""
    text = os.fspath(path)
    located = _locate(text)
    if located is None:
        raise UsageError(f"no such file or folder: {path}", next=READS)
    if subset is not None:
        folder = Path(located[0])
        named = _named(choices_below(folder), subset) if folder.is_dir() else None
        text = f"{text}/{subset}" if named is None else _path_of(named)
        if _locate(text) is None:
            raise UsageError(f"no subset or folder {subset!r} in {path}", next=f"brics info {path} says what is there.")
    return Wanted(image_field=image_field).of(text)


def _named(choices: Sequence[Choice], subset: str) -> Choice | None:
    """The choice that is called `subset`."""
    named = [choice for choice in choices if subset in choice.names]
    named = named or [choice for choice in choices if same_split(choice.name, subset)]
    return named[0] if len(named) == 1 else None


def collection_exists(path: str | Path) -> bool:
    """Whether something is at a collection's path: a pattern and a split of parquet tables are no files."""
    return _locate(os.fspath(path)) is not None


def _is_pattern(text: str) -> bool:
    """Whether it stands for several shards or tables: `x-{000..003}.tar`, `data/*.parquet`."""
    return "{" in text or any(
        glob.has_magic(part) and has_suffix(part, *SHARD_SUFFIXES) for part in Path(text).parts[-2:]
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a long pattern is no file name
        return False


def _open_file(path: Path, wanted: Wanted) -> Collection:
    form = form_of_file(path)
    if form == "tar":
        return WebDatasetCollection(str(visible_path(path)), [path], wanted)
    if form == "zip":
        return ZipCollection(path, wanted)
    if form in ("lmdb", "parquet", "arrow", "array") and wanted.subset is not None:
        raise UsageError(f"{path} holds one collection, so no subset {wanted.subset!r}")
    if form == "lmdb":
        # data.mdb is opened through its folder, whose name says what it is
        return LmdbCollection(path.parent if path.name == "data.mdb" else path)
    if form == "parquet":
        return ParquetCollection(str(visible_path(path)), [path], wanted)
    if form == "arrow":
        return ArrowCollection(str(visible_path(path)), [path], wanted)
    if form == "array":
        return ArrayCollection(path, wanted)
    raise UsageError(f"{path} is {form}", next=READS)


def _open_pattern(pattern: str, wanted: Wanted) -> Collection:
    from braceexpand import braceexpand

    # braceexpand holds every range in memory before its first result: look at their lengths first
    lengths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    if math.prod(lengths) > MAX_FILES:
        raise UsageError(f"the pattern {pattern!r} stands for more than {MAX_FILES:,} files")
    try:
        texts = list(braceexpand(pattern))
    except ValueError as error:  # UnbalancedBracesError
        raise UsageError(f"the pattern {pattern!r} is not balanced ({error})") from None
    paths = [Path(path) for text in texts for path in (sorted(glob.glob(text)) if glob.has_magic(text) else [text])]  # noqa: PTH207
    if not paths:
        raise UsageError(f"no file is named like {pattern!r}", next=READS)
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
    return _open_files(form, absolute, paths, wanted)


def _open_files(form: Form, path: str, files: Sequence[Path], wanted: Wanted) -> Collection:
    """Shards or tables side by side: those of one split."""
    base = Path(os.path.commonpath([file.parent for file in files]))
    groups = group_files([file.relative_to(base).as_posix() for file in files])
    note = ""
    if groups is not None:
        num_files = {name: len(places) for name, places in groups.items() if name}
        chosen = choose_part(num_files, wanted.subset, where=path, unit="files", num_rest=len(groups.get("", ())))
        if chosen.name is not None:
            files, note = [files[place] for place in groups[chosen.name]], chosen.note
            path = f"{path}/{chosen.name}"
        elif wanted.subset is not None:
            path = f"{path}/{ALL}"
        wanted = wanted._replace(subset=None)
    elif form == "parquet" and wanted.subset not in (None, ALL):
        raise UsageError(f"{path} holds one collection, so no subset {wanted.subset!r}")
    source = ParquetCollection if form == "parquet" else WebDatasetCollection
    collection = source(path, files, wanted)
    collection.note = note or collection.note
    return collection


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in circles
        return False


def _open_directory(path: Path, wanted: Wanted) -> Collection:
    artefact = read_provenance(path)
    if artefact is not None and artefact.kind == "shards" and not artefact.complete:
        raise ArtefactError(f"brics pack has not finished {path}", next="Run the same brics pack command again.")
    if artefact is not None and artefact.kind == "shards":
        check_manifest(path)
    if is_lmdb(path):
        return LmdbCollection(path)
    if tables := arrow_files(path):
        arrow = ArrowCollection(str(path.resolve()), tables, wanted)
        read = {table.name for table in tables} | NOT_IMAGES
        arrow.passed_over += PassedOver(entry.name for entry in path.iterdir() if entry.name not in read)
        return arrow
    with os.scandir(path) as listed:
        names = sorted(entry.name for entry in listed if not entry.name.startswith(".") and _is_file(entry))
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
        collection = _open_files("tar", str(path.resolve()), [path / name for name in tars], wanted)
        collection.passed_over += files_beside(path, suffixes=TAR_SUFFIXES)
        return collection
    choices = choices_below(path)
    if not any(choice.form == "lmdb" for choice in choices):
        try:
            return FolderCollection(path, wanted)
        except NoImagesError as error:
            if not choices:
                raise (_arrays_meant(path, error) or error) from None
    if wanted.subset == ALL and len(choices) > 1:
        return _open_all(path, choices, wanted)
    choice = choose(choices, wanted.subset, where=path)
    collection = _open_choice(choice, wanted)
    if choice.form != "parquet" or choice.paths[0].parent != path:  # those beside tables are counted with them
        others = [name for name in names if not has_suffix(name, ".zip", ".parquet") and name not in OF_BRICS]
        collection.passed_over += PassedOver(others)
    return collection


def _arrays_meant(folder: Path, error: NoImagesError) -> UsageError | None:
    """`error`, naming the .npz or .npy files below `folder`, each a collection; None where there are none."""
    files = sorted(file for file in folder.rglob("*") if has_suffix(file.name, ".npz", ".npy") and file.is_file())
    first = next((file for file in files if form_of_file(file) == "array"), None)
    if first is None:
        return None
    which = "the file" if len(files) == 1 else f"one of its {len(files):,} .npz and .npy files"
    return UsageError(error.what, next=f"Give {which}: {first}")


def _open_all(path: Path, choices: Sequence[Choice], wanted: Wanted) -> Collection:
    forms = {choice.form for choice in choices}
    where = f"{path.resolve()}/{ALL}"
    if forms == {"parquet"}:
        tables = [table for choice in choices for table in choice.paths]
        return ParquetCollection(where, tables, wanted._replace(subset=None))
    if forms == {"arrow"}:
        tables = [table for choice in choices for table in arrow_files(choice.paths[0])]
        return ArrowCollection(where, tables, wanted._replace(subset=None))
    if forms == {"tar"}:
        tars = [
            tar
            for choice in choices
            for tar in sorted(choice.paths[0].iterdir())
            if has_suffix(tar.name, *TAR_SUFFIXES)
        ]
        return WebDatasetCollection(where, tars, wanted._replace(subset=None))
    return _open_choice(choose(choices, ALL, where=path), wanted)


def _open_choice(choice: Choice, wanted: Wanted) -> Collection:
    collection: Collection
    wanted = wanted._replace(subset=None)
    if choice.form == "parquet":
        collection = ParquetCollection(_path_of(choice), choice.paths, wanted)
        collection.passed_over += files_beside(choice.paths[0].parent, suffixes=(".parquet",))
    elif choice.form in ("tar", "arrow"):
        collection = _open_directory(choice.paths[0], wanted)
    elif choice.form == "lmdb":
        collection = LmdbCollection(choice.paths[0])
    else:
        collection = ZipCollection(choice.paths[0], wanted)
    collection.note = choice.note + collection.note
    return collection


def _path_of(choice: Choice) -> str:
    """The path that opens `choice` again without --subset; a split of parquet tables is named like a folder."""
    if choice.form != "parquet":
        return str(choice.paths[0])
    folder = visible_path(choice.paths[0].parent)
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
