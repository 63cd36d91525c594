"""`open_collection`: from a path or a brace pattern to a collection, by looking at what is there.

Of several collections side by side the only one for training is taken and said so, anything else is listed and asked
for (`splits`). Which formats there are is the registry's to say (`sources.formats`).
"""

from __future__ import annotations

import glob
import math
import os
import re
import statistics
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from brics_cli.config.names import Labels
from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images.collection import (
    ANYTHING,
    OF_BRICS,
    Collection,
    PassedOver,
    Wanted,
    is_image,
    visible_path,
)
from brics_cli.images.fields import ALL as ALL_IMAGES
from brics_cli.images.packs import check_manifest
from brics_cli.images.pixels import ImageError, formats_of, is_image_file
from brics_cli.images.sources import tars
from brics_cli.images.sources.folder import FolderCollection, files_beside
from brics_cli.images.sources.format import Format, no_files
from brics_cli.images.sources.formats import FORMATS
from brics_cli.images.sources.members import MemberCollection, NoImagesError
from brics_cli.images.splits import ALL, group_files, is_part, same_split
from brics_cli.images.splits import choose as choose_part
from brics_cli.images.unpacking import said_before
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.wording import count
from brics_cli.workspace import read_provenance
from brics_cli.workspace.mirrors import as_urls, present
from brics_cli.workspace.remote import as_url, is_remote

READS = f"brics reads folders, {', '.join(each.reads for each in FORMATS[:-1])} and {FORMATS[-1].reads}."
MAX_FILES = 1_000_000
NUM_LOOKED_AT = 64
"""Entries of a folder that are looked at to see what is in it."""
NUM_FOLDERS_LOOKED_AT, MOST_DEPTH = 256, 4
"""Folders that are looked at for a part by its name, and how far down."""
_HF_SPLIT = re.compile(r"(?P<split>[\w.-]+?)-\d{5}-of-\d{5}")
"""Hugging Face's `train-00000-of-00004-<hash>.parquet`."""


def open_collection(
    path_or_pattern: str | Path,
    *,
    subset: str | None = None,
    labels: Labels | None = None,
    image_field: str | None = None,
    reporter: Reporter | None = None,
) -> Collection:
    """The collection at a path or URL, or at a brace pattern of tars or parquet files such as `x-{000..003}.tar`.

    A path is a folder of images, a WebDataset tar (compressed or not) or a folder of them, a zip, ADM's npz, an LMDB or
    `./lsun` with several, a parquet file or a folder of them; which is seen in the content, not in the name. A URL is
    of any place that fsspec knows (`s3://bucket/shards`): its files are fetched to a cache, whole, when they are read
    (`mirrors`). `subset` chooses where the path holds several (`church_outdoor_train`, `validation`), training and
    other images never being mixed, and `image_field` where samples have several images (`left.png`); both can also
    stand at the end of the path (`faces.zip/val`, `shards/*.left.png`). `labels="folder"` makes the top-level folders
    classes; "none": there are none. The `reporter` hears what is not read. Raises UsageError (missing path, no images,
    several and no choice, a format that is not read, labels that cannot be used), ArtefactError (a damaged file, a pack
    that has not finished), MachineError (a remote place that cannot be reached, or does not let us in).
    """
    text = os.fspath(path_or_pattern)
    if not text:
        raise UsageError("the path of the images is empty", next="Is a shell variable unset?")
    if is_remote(text):
        return _open_remote(as_url(text), Wanted(subset, labels, image_field), reporter)
    if text.startswith(("pipe:", "file:")):
        raise UsageError(f"{text!r} is not a path", next="Give a folder or files, or a URL.")
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
    if labels == "folder" and not isinstance(collection, MemberCollection):
        raise UsageError(
            f"--labels folder goes with folders, tars and zips of images, not with {collection.kind}: {collection.path}"
        )
    for told in (collection.passed_over.describe(), collection.remark):
        if reporter is not None and told:
            reporter.message(f"{collection.path}: {told}")
    return collection


def _open_remote(url: str, wanted: Wanted, reporter: Reporter | None) -> Collection:
    """As `open_collection`, of what is at a URL; messages and the collection's path name the URL."""
    from brics_cli.images.remote import mirrored, opening

    expanded = _expanded(url) if _is_pattern(url) else None
    text, mirror = mirrored(url, expanded, is_shard=_may_hold_many, reporter=reporter)
    try:
        with opening(mirror, reporter or SilentReporter()):
            collection = open_collection(
                text, subset=wanted.subset, labels=wanted.labels, image_field=wanted.image_field, reporter=reporter
            )
    except BricsError as error:
        error.reword(as_urls)
        raise
    collection.path, collection.mirror = as_urls(collection.path), mirror
    return collection


def _may_hold_many(name: str) -> bool:
    return any(each.is_named(name) for each in FORMATS)


def collection_exists(path: str | Path) -> bool:
    """Whether something is at a collection's path: a pattern and a split of parquet tables are no files. Of a URL it is
    seen when it is opened."""
    return is_remote(path) or _locate(os.fspath(path)) is not None


def subset_path(path: str | Path, subset: str | None, image_field: str | None = None) -> str:
    """A path that `open_collection` opens as it would open `path` with these. Raises UsageError where nothing is."""
    text = os.fspath(path)
    if is_remote(text):
        return Wanted(image_field=image_field).of(f"{as_url(text)}/{subset}" if subset is not None else as_url(text))
    located = _locate(text)
    if located is None:
        raise UsageError(f"no such file or folder: {path}", next=READS)
    if subset is not None:
        folder = Path(located[0])
        named = _named(choices_below(folder), subset) if folder.is_dir() else None
        text = f"{text}/{subset}" if named is None else named.path
        if _locate(text) is None:
            raise UsageError(f"no subset or folder {subset!r} in {path}", next=f"brics info {path} says what is there.")
    return Wanted(image_field=image_field).of(text)


def median_side(collection: Collection, *, num: int = 64) -> int:
    """Median over an evenly spread sample of `num` images of min(width, height), in pixels, from headers alone.

    Of a remote one those of the first shard are looked at: each of the others would have to be fetched. Raises
    UsageError when not one of them is an image.
    """
    total = len(collection) if collection.mirror is None else collection.shards[0].num_images
    num = min(num, total)
    looked_at = sorted({round(step * (total - 1) / max(num - 1, 1)) for step in range(num)})
    sides = []
    for shard_index, index in collection.places(looked_at):
        try:
            data = collection.read(shard_index, index).data
            with Image.open(BytesIO(data), formats=formats_of(data)) as image:
                sides.append(min(image.size))
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sides:
        raise UsageError(
            f"none of {count(len(looked_at), 'image')} looked at in {collection.path} can be read as an image"
        )
    return round(statistics.median(sides))


# From text to a path that is there, and what the end of the text asks of it.


def _locate(text: str) -> tuple[str, Wanted] | None:
    """A path or pattern that is there, and what the end of `text` asks of it; None when nothing is."""
    if _exists(Path(text)):
        return text, ANYTHING
    head, _, last = text.rpartition("/")
    if (last == "*" or last.startswith("*.")) and not _is_shard(last):
        located = _locate(head)
        return None if located is None else (located[0], located[1]._replace(image_field=last[2:] or ALL_IMAGES))
    if _is_pattern(text):
        is_subset = _is_pattern(head) and not _is_pattern(last) and _is_shard(head)
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


def _has_part(folder: Path, part: str) -> bool:
    """Whether what is in `folder` may have a part of that name, which is no folder in it: shards of several splits, or
    a folder further down (`ILSVRC/Data/CLS-LOC/val`). Few folders are looked at, and a whole disk is no collection."""
    if not is_part(part) or folder.absolute() == Path(folder.absolute().anchor):
        return False
    waiting = deque([(folder, 0)])
    for _ in range(NUM_FOLDERS_LOOKED_AT):
        if not waiting:
            return False
        looked_at, depth = waiting.popleft()
        with os.scandir(looked_at) as entries:
            for entry in islice(entries, NUM_LOOKED_AT):
                if _is_shard(entry.name) or (entry.name == part and entry.is_dir()):
                    return True
                if depth < MOST_DEPTH and entry.is_dir():
                    waiting.append((Path(entry.path), depth + 1))
    return False


def _is_shard(name: str) -> bool:
    """Whether a file of this name may be one of several that are one collection."""
    return any(each.several in ("splits", "shards") and each.is_named(name) for each in FORMATS)


def _is_pattern(text: str) -> bool:
    """Whether it stands for several shards or tables: `x-{000..003}.tar`, `data/*.parquet`."""
    return "{" in text or any(glob.has_magic(part) and _is_shard(part) for part in Path(text).parts[-2:])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a long pattern is no file name
        return False


# Opening what is at a path.


def _open(text: str, wanted: Wanted) -> Collection:
    path = Path(text)
    if _is_pattern(text) and not _exists(path):
        return _open_pattern(text, wanted)
    if not path.is_dir():
        format = format_of_file(path)
        if isinstance(format, str):
            raise UsageError(f"{path} is {format}", next=READS)
        return _open_as(format, str(visible_path(path)), [path], wanted)
    if wanted.subset is not None:
        named = _named(choices_below(path), wanted.subset)
        if named is not None:
            return _open_choice(named, wanted)
        below = path / wanted.subset
        if below.is_dir() and ".." not in Path(wanted.subset).parts:
            return _open_directory(below, wanted._replace(subset=None))
    return _open_directory(path, wanted)


def format_of_file(path: Path) -> Format | str:
    """The format of the file `path`; what it is instead, as words, where it is none that is read."""
    with present(path) as here, here.open("rb") as file:
        first = file.read(512)
    if first.startswith(b"\x89HDF\r\n\x1a\n"):
        return "a key-code store or another HDF5 file, not images"
    found = next((format for format in FORMATS if format.is_file(path, first)), None)
    if found is not None:
        return found
    if tars.compression_of(path) is not None:
        return "a compressed file, not a tar"
    if is_image_file(first) or is_image(path.name):
        return "one image, not a collection"
    named = next((format.name for format in FORMATS if format.is_named(path.name)), None)
    return f"named like {named}, and is not {named}" if named is not None else "not a collection"


def _open_as(format: Format, path: str, files: Sequence[Path], wanted: Wanted) -> Collection:
    if wanted.subset is not None and not format.has_subsets:
        raise UsageError(f"{path} holds one collection, so no subset {wanted.subset!r}")
    return format.open(path, files, wanted)


def _expanded(pattern: str) -> list[str]:
    """What the braces of a pattern stand for. Raises UsageError for too many, and for braces that do not match."""
    from braceexpand import braceexpand

    # braceexpand holds every range in memory before its first result: look at their lengths first
    lengths = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    if math.prod(lengths) > MAX_FILES:
        raise UsageError(f"the pattern {pattern!r} stands for more than {MAX_FILES:,} files")
    try:
        return list(braceexpand(pattern))
    except ValueError as error:  # UnbalancedBracesError
        raise UsageError(f"the pattern {pattern!r} is not balanced ({error})") from None


def _open_pattern(pattern: str, wanted: Wanted) -> Collection:
    texts = _expanded(pattern)
    paths = [Path(path) for text in texts for path in (sorted(glob.glob(text)) if glob.has_magic(text) else [text])]  # noqa: PTH207
    if not paths:
        raise UsageError(f"no file is named like {pattern!r}", next=READS)
    wrong = next((path for path in paths if not _is_shard(path.name)), paths[-1])
    format = next((each for each in FORMATS if all(each.is_named(path.name) for path in paths)), None)
    if format is None or not _is_shard(wrong.name):
        raise UsageError(f"the pattern {pattern!r} names {wrong}, which is not a .tar", next=READS)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing):,} of the {count(len(paths), 'file')} of {pattern!r} are missing, first {missing[0]}"
        )
    if len(set(paths)) != len(paths):
        raise UsageError(f"the pattern {pattern!r} names a file twice")
    absolute = os.path.abspath(pattern)  # noqa: PTH100 - a pattern, not a path
    return _open_files(format, absolute, paths, wanted)


def _open_files(format: Format, path: str, files: Sequence[Path], wanted: Wanted) -> Collection:
    """Files side by side: those of one split."""
    base = Path(os.path.commonpath([file.parent for file in files]))
    groups = group_files([file.relative_to(base).as_posix() for file in files])
    note = ""
    if groups is not None:
        num_files = {name: len(places) for name, places in groups.items() if name}
        chosen = choose_part(num_files, wanted.subset, where=path, unit="file", num_rest=len(groups.get("", ())))
        if chosen.name is not None:
            files, note = [files[place] for place in groups[chosen.name]], chosen.note
            path = f"{path}/{chosen.name}"
        elif wanted.subset is not None:
            path = f"{path}/{ALL}"
        wanted = wanted._replace(subset=None)
    elif wanted.subset == ALL and not format.has_subsets:
        wanted = wanted._replace(subset=None)
    collection = _open_as(format, path, files, wanted)
    collection.note = note or collection.note
    return collection


def _open_directory(path: Path, wanted: Wanted) -> Collection:
    artefact = read_provenance(path)
    if artefact is not None and artefact.kind == "shards":
        if not artefact.complete:
            raise ArtefactError(f"brics pack has not finished {path}", next="Run the same brics pack command again.")
        check_manifest(path)
    for format in FORMATS:
        if files := format.files_in(path):
            collection = _open_as(format, str(visible_path(path)), files, wanted)
            own = {file.name for file in files} | format.own_files
            collection.passed_over += PassedOver(entry.name for entry in path.iterdir() if entry.name not in own)
            return collection
    names, _ = _entries(path)
    if "data.mdb" in names:
        raise UsageError(f"{path} is named like an LMDB, and its data.mdb is not an LMDB", next=READS)
    for format in FORMATS:
        if format.several == "shards" and (shards := list(filter(format.is_named, names))):
            if images := list(filter(is_image, names)):
                raise UsageError(
                    f"{path} holds {count(len(shards), format.word)} and {count(len(images), 'image')}: "
                    "which are meant?",
                    next="Move one kind to a folder of its own.",
                )
            collection = _open_files(format, str(path.resolve()), [path / name for name in shards], wanted)
            collection.passed_over += files_beside(
                path, suffixes=format.suffixes, read=[Path(file).name for file in collection.files(0)]
            )
            return collection
    choices = choices_below(path)
    if not any(choice.is_whole for choice in choices):
        try:
            return FolderCollection(path, wanted)
        except NoImagesError as error:
            if not choices:
                raise (_file_meant(path, error) or error) from None
    if wanted.subset == ALL and len(choices) > 1 and len({choice.format for choice in choices}) == 1:
        format = choices[0].format
        if format.joins:
            files = [file for choice in choices for file in choice.files()]
            return format.open(f"{path.resolve()}/{ALL}", files, wanted._replace(subset=None))
    choice, note = _choose(choices, wanted.subset, where=path)
    collection = _open_choice(choice, wanted)
    collection.note = note + collection.note
    if choice.is_folder or not choice.format.joins or choice.paths[0].parent != path:  # else counted with them
        kinds = [format for format in FORMATS if format.several in ("choices", "splits")]
        others = (name for name in names if not any(format.is_named(name) for format in kinds))
        collection.passed_over += PassedOver(name for name in others if name not in OF_BRICS)
    return collection


def _file_meant(folder: Path, error: UsageError) -> UsageError | None:
    """`error`, naming the files below `folder` that are each a collection (npz); None where there are none."""
    alone = [format for format in FORMATS if format.several == "alone" and format.files_in is no_files]
    files = sorted(
        file for file in folder.rglob("*") if any(each.is_named(file.name) for each in alone) and file.is_file()
    )
    first = next((file for file in files if format_of_file(file) in alone), None)
    if first is None:
        return None
    kinds = " and ".join(suffix for each in alone for suffix in each.suffixes)
    which = "the file" if len(files) == 1 else f"one of its {len(files):,} {kinds} files"
    return UsageError(error.what, next=f"Give {which}: {first}")


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders in `folder`, sorted, without hidden ones; none is looked at."""
    files, folders = [], []
    with os.scandir(folder) as listed:
        for entry in (entry for entry in listed if not entry.name.startswith(".")):
            with suppress(OSError):  # a link in circles
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
    return sorted(files), sorted(folders)


# Several collections below a folder.


@dataclass(frozen=True)
class Choice:
    """One collection below a folder: `names` are what --subset calls it, the first the one that is shown.

    `paths` are its files, or its folder where `is_folder`; `is_whole` says that the folder as a whole is one.
    """

    format: Format
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    is_folder: bool = False
    is_whole: bool = False

    @property
    def path(self) -> str:
        """The path that opens it again without --subset; a split of parquet tables is named like a folder."""
        if self.is_folder or not self.format.joins:
            return str(self.paths[0])
        folder = visible_path(self.paths[0].parent)
        return str(folder if self.names[0] == folder.name else folder / self.names[0])

    def files(self) -> list[Path]:
        """All its files."""
        if not self.is_folder:
            return list(self.paths)
        (folder,) = self.paths
        return self.format.files_in(folder) or sorted(
            file for file in folder.iterdir() if self.format.is_named(file.name)
        )


def choices_below(folder: Path) -> list[Choice]:
    """The collections that stand side by side in `folder`: LMDBs, zips, splits of parquet files, folders of shards."""
    names, below_it = _entries(folder)
    kinds = [format for format in FORMATS if format.several in ("choices", "splits")]
    files = [folder / name for name in names if any(format.is_named(name) for format in kinds)]
    folders, choices = [folder / name for name in below_it], []
    for below in folders:
        format = next((format for format in FORMATS if format.files_in(below)), None)
        if format is not None:
            called = (below.name.removesuffix("_lmdb"), below.name)
            choices.append(Choice(format, called, (below,), is_folder=True, is_whole=True))
    unpacked = {choice.names[-1] for choice in choices}
    for file in files:
        format = next((each for each in FORMATS if each.several == "choices" and each.is_named(file.name)), None)
        if format is not None and file.stem not in unpacked:
            choices.append(Choice(format, (file.stem.removesuffix("_lmdb"), file.stem, file.name), (file,)))
    choices += _splits(files)
    if choices:
        return choices
    for below in folders:
        children = [child.name for child in islice(below.iterdir(), NUM_LOOKED_AT)]
        shards = [each for each in FORMATS if each.several == "shards" and any(map(each.is_named, children))]
        if shards:
            choices.append(Choice(shards[0], (below.name,), (below,), is_folder=True))
        elif any(each.several == "splits" and any(map(each.is_named, children)) for each in FORMATS):
            choices += _splits([below / name for name in _entries(below)[0]])
    return choices


def _splits(files: Sequence[Path]) -> list[Choice]:
    """Tables by the split in their names; those that name none are one collection, called like their folder."""
    choices = []
    for format in FORMATS:
        tables = [file for file in files if format.several == "splits" and format.is_named(file.name)]
        of_words = group_files([table.name for table in tables]) or {}
        splits: dict[str, list[Path]] = {}
        for place, table in enumerate(tables):
            found = _HF_SPLIT.match(table.name)
            word = next((split for split, places in of_words.items() if place in places), "")
            splits.setdefault(found["split"] if found else word or table.parent.name, []).append(table)
        choices += [Choice(format, (name,), tuple(paths)) for name, paths in splits.items()]
    return choices


def _named(choices: Sequence[Choice], subset: str) -> Choice | None:
    """The choice that is called `subset`."""
    named = [choice for choice in choices if subset in choice.names]
    named = named or [choice for choice in choices if same_split(choice.names[0], subset)]
    return named[0] if len(named) == 1 else None


def _choose(choices: Sequence[Choice], subset: str | None, *, where: Path) -> tuple[Choice, str]:
    """The only choice, or the only one for training, and what was passed over for it in words.

    Raises UsageError, listing them, when it is not clear which is meant.
    """
    if len(choices) == 1 and subset is None:
        return choices[0], ""
    can_join = all(choice.format.joins for choice in choices)
    chosen = choose_part({choice.names[0]: None for choice in choices}, subset, where=where, can_join=can_join)
    return next(choice for choice in choices if choice.names[0] == chosen.name), chosen.note


def _open_choice(choice: Choice, wanted: Wanted) -> Collection:
    wanted = wanted._replace(subset=None)
    if choice.is_folder:
        return _open_directory(choice.paths[0], wanted)
    collection = _open_as(choice.format, choice.path, choice.paths, wanted)
    if choice.format.joins:
        collection.passed_over += files_beside(choice.paths[0].parent, suffixes=choice.format.suffixes)
    return collection
