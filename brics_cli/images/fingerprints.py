"""What a shard is known by: a digest of its content, and a stat signature that spares reading it again.

The *digest* is a sha256 over every image of a shard in order, its key and the sha256 of its bytes, followed by another
over labels and metadata as they are read. It survives a copy, a move and a touch, and changes with any bit of any
image. It is taken while the images are read anyway (`load_shards` and `brics eval` do), or in a pass of its own that
decodes nothing. What the digests of all shards say of images makes the *fingerprint* of a collection, which is the same
whatever labels it is opened with.

The *signature* is a sha256 of what `stat` says of the shard's files (name, size, mtime, ctime, inode; a source without
files gives rows of its own: ETag or version) and of its layout, which has the CRCs of a zip. The digest of a signature
is remembered in the cache of brics: a shard whose signature is known is not read again. ctime tells of a rewrite whose
mtime was set back. What a signature cannot tell is a file rewritten within one tick of its clock, in place: so none is
remembered of files younger than `GRANULARITY_NS` when the collection was opened (git's racy index: the next run reads
them again), nor of files that changed between the first and the last look.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import brics_cli
from brics_cli.errors import ArtefactError
from brics_cli.images.pixels import ImageError
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.runtime.threads import free_cores
from brics_cli.workspace import mirrors
from brics_cli.workspace.files import GRANULARITY_NS, cache_folder

if TYPE_CHECKING:
    from brics_cli.images.collection import Collection, RawImage

VERSION = 1
"""Raised whenever digests are made in another way."""
UNREADABLE = b"\0" * 32
"""Stands for the sha256 of a file that could not be read."""
NOTHING_SAID = b"\0" * 32
"""Stands for the sha256 of a label and metadata where there are none."""
LONG_READ_BYTES = 2**28
"""Reading so much takes seconds, which is then shown."""
READ_AT_ONCE = 64
IMAGES = 64
"""Hexadecimal digits of a digest that are of keys and images; those after them are of labels and metadata."""
StatRow = tuple[tuple[Any, ...], int]
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{128})\n")


class Signature(NamedTuple):
    """What can be said of a shard without reading it. `newest_ns`: the last change of a file of it (ns since 1970)."""

    sha256: str
    newest_ns: int


class Content(NamedTuple):
    """What was read of a shard: its digest, and whether its files stayed as they were while it was read."""

    digest: str
    unchanged: bool


class ShardDigest:
    """The digest of the shard `name`, image by image in order."""

    def __init__(self, name: str) -> None:
        start = f"brics shard {VERSION}\0{name}\0".encode("utf-8", "surrogatepass")
        self._images, self._notes = hashlib.sha256(start), hashlib.sha256(start)

    def add(self, row: bytes) -> None:
        """Add the next image, as `image_digest` gives it."""
        self._images.update(row[:32])
        self._notes.update(row[32:])

    def hexdigest(self) -> str:
        return self._images.hexdigest() + self._notes.hexdigest()


def image_digest(key: str, raw: RawImage | None) -> bytes:
    """64 bytes that stand for the image `key`, as it was read (None: that failed): 32 for its key and its file, and 32
    for its label and metadata."""
    sha256 = UNREADABLE if raw is None else hashlib.sha256(raw.data).digest()
    image = hashlib.sha256(f"{key}\0".encode("utf-8", "surrogatepass") + sha256).digest()
    if raw is None or (raw.label is None and raw.meta is None):
        return image + NOTHING_SAID
    said = json.dumps([raw.label, raw.meta], sort_keys=True, ensure_ascii=False, default=str)
    return image + hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()


def signature(collection: Collection, shard_index: int) -> Signature:
    """The signature of a shard as its files are now."""
    shard = collection.shards[shard_index]
    read_as = [collection.options, collection.class_names]  # a label may be a name's number among those of all shards
    opened = json.dumps([VERSION, brics_cli.__version__, collection.kind, read_as], sort_keys=True)
    digest = hashlib.sha256(f"{opened}\0{shard.layout}\0{shard.num_images}\0".encode())
    newest_ns = 0
    for row, changed_ns in collection.stat_rows(shard_index):
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
        newest_ns = max(newest_ns, changed_ns)
    return Signature(digest.hexdigest(), newest_ns)


def stat_row(path: str) -> StatRow:
    """What `stat` says of a file that identifies what is in it, and when it last changed (ns since 1970); of a remote
    one its version."""
    if (version := mirrors.version_row(path)) is not None:
        return version, 0 if version[2] else time.time_ns()
    try:
        status = os.stat(path)  # noqa: PTH116 - a string, for speed
    except OSError as error:
        return (path, error.errno), 0
    row = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return row, max(status.st_mtime_ns, status.st_ctime_ns)


class Watch:
    """A shard that is about to be read: `content` says afterwards what was, and remembers it where it may."""

    def __init__(self, collection: Collection, shard_index: int) -> None:
        self._collection, self._shard_index = collection, shard_index
        self._before = signature(collection, shard_index)

    def content(self, digest: str) -> Content:
        """The shard's content, of this digest."""
        collection = self._collection
        mirrors.check_unchanged(collection.files(self._shard_index))
        now = signature(collection, self._shard_index)
        unchanged = now == self._before and now.newest_ns < collection.opened_ns
        if unchanged and now.newest_ns < collection.opened_ns - GRANULARITY_NS:
            remember(collection, {now.sha256: digest})
        return Content(digest, unchanged)


def known_digests(collection: Collection, shard_indices: Sequence[int] | None = None) -> dict[int, str]:
    """The digests of those shards whose signatures are known, by shard; nothing is read."""
    known = _remembered(collection)
    indices = range(len(collection.shards)) if shard_indices is None else shard_indices
    found = {index: known.get(signature(collection, index).sha256) for index in indices} if known else {}
    return {index: digest for index, digest in found.items() if digest is not None}


def read_digest(collection: Collection, shard_index: int, *, pool: ThreadPoolExecutor | None = None) -> str:
    """The digest of a shard, read for it and not decoded. Raises ArtefactError when the shard cannot be read."""
    watch = Watch(collection, shard_index)
    shard = collection.shards[shard_index]
    digest = ShardDigest(shard.name)

    def row(index: int) -> bytes:
        try:
            raw = collection.read(shard_index, index)
        except ImageError:
            return image_digest(collection.key(shard_index, index), None)
        return image_digest(raw.key, raw)

    def rows(start: int) -> list[bytes]:
        return [row(index) for index in range(start, min(start + READ_AT_ONCE, shard.num_images))]

    starts = range(0, shard.num_images, READ_AT_ONCE)
    for taken in map(rows, starts) if pool is None else pool.map(rows, starts):
        for each in taken:
            digest.add(each)
    return watch.content(digest.hexdigest()).digest


def settled_digest(collection: Collection, shard_index: int, content: Content) -> str:
    """The digest of what was read of a shard. Where its files changed meanwhile it is read again: a touch is none.

    Raises ArtefactError when something else is there now than what was read.
    """
    if not content.unchanged and read_digest(collection, shard_index) != content.digest:
        raise ArtefactError(
            f"{collection.path} changed while it was read: shard {collection.shards[shard_index].name}, from "
            f"{collection.key(shard_index, 0)!r} on, no longer holds the images that were read",
            next="Wait until nobody writes there, and run the same command again.",
        )
    return content.digest


def digests(
    collection: Collection, shard_indices: Sequence[int] | None = None, *, reporter: Reporter | None = None
) -> dict[int, str]:
    """The digests of shards (None: all): of those whose signatures are known at once, of the others by reading."""
    indices = range(len(collection.shards)) if shard_indices is None else shard_indices
    found = known_digests(collection, indices)
    unknown = [index for index in indices if index not in found]
    found |= _read_digests(collection, unknown, reporter=reporter)
    return {index: found[index] for index in indices}


def _read_digests(collection: Collection, shard_indices: Sequence[int], *, reporter: Reporter | None) -> dict[int, str]:
    if not shard_indices:
        return {}
    shards = [collection.shards[index] for index in shard_indices]
    is_long = sum(shard.size_bytes for shard in shards) > LONG_READ_BYTES
    shown = reporter if reporter is not None and is_long else SilentReporter()
    found = {}
    with (
        ThreadPoolExecutor(min(free_cores(), 16), thread_name_prefix="brics-digest") as pool,
        shown.task("fingerprint", total=sum(shard.num_images for shard in shards), unit="img") as task,
    ):
        for index in shard_indices:
            found[index] = read_digest(collection, index, pool=pool)
            task.advance(collection.shards[index].num_images)
    return found


def fingerprint_of_shards(shards: Iterable[tuple[str, str, int]]) -> str:
    """sha256 over (name, digest, number of images) of each shard in order: of digests what is said of images."""
    digest = hashlib.sha256()
    for name, content, num_images in shards:
        digest.update(f"{name}\0{content[:IMAGES]}\0{num_images}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint_of(collection: Collection, found: Mapping[int, str]) -> str:
    """The fingerprint of a collection from the digests of all its shards."""
    return fingerprint_of_shards(
        (shard.name, found[index], shard.num_images) for index, shard in enumerate(collection.shards)
    )


def fingerprint(collection: Collection, *, reporter: Reporter | None = None) -> str:
    """The identity of all that is in a collection. What is not known is read, once."""
    return fingerprint_of(collection, digests(collection, reporter=reporter))


def known_fingerprint(collection: Collection) -> str | None:
    """The fingerprint of a collection when nothing must be read for it, else None."""
    known = known_digests(collection)
    return fingerprint_of(collection, known) if len(known) == len(collection.shards) else None


def changed_shards(collection: Collection, recorded: Mapping[int, str], *, reporter: Reporter) -> dict[int, str]:
    """The shards whose content is no longer of the digest `recorded`, and what of them changed, in words.

    Those whose signatures are known are not read; of the others the reporter hears that they were only touched or
    copied, or which have changed.
    """
    known = known_digests(collection, list(recorded))
    unknown = [index for index in recorded if index not in known]
    found = known | _read_digests(collection, unknown, reporter=reporter)
    changed = {
        index: "labels or metadata" if found[index][:IMAGES] == recorded[index][:IMAGES] else "images"
        for index in recorded
        if found[index] != recorded[index]
    }
    num_same = len(set(unknown) - set(changed))
    if num_same:
        reporter.message(
            f"{collection.path}: {num_same:,} of {len(recorded):,} shards were read, since the times of their files do "
            "not tell (touched, copied or new): they hold the same images"
        )
    return changed


def check_unchanged(
    collection: Collection, recorded: Mapping[int, str], *, output: Path, reporter: Reporter, next: str
) -> None:
    """Raise ArtefactError, saying which, unless every shard still has the digest `recorded` in `output`."""
    changed = changed_shards(collection, recorded, reporter=reporter)
    if changed:
        first = min(changed)
        raise ArtefactError(
            f"{collection.path} has changed since {output} was made from it: of {len(recorded):,} shards "
            f"{len(changed):,} hold other {' and other '.join(sorted({*changed.values()}))}, though names and sizes "
            f"are the same; the first is {collection.shards[first].name}, from {collection.key(first, 0)!r} on",
            next=next,
        )


def shards_to_redo(
    collection: Collection,
    recorded: Mapping[int, str],
    *,
    output: Path,
    complete: bool,
    overwrite: bool,
    reporter: Reporter,
) -> list[int]:
    """Hold `output`, finished or not, against its source: the shards of other content, which `overwrite` makes again.

    `recorded` are the digests of what its shards were made from; empty where an older brics did not look at images'
    content. Shards are recognised by signature, or read and not decoded. Without `overwrite` ArtefactError says which
    have changed, or, of an unfinished output, that an older brics began it; of a finished one of its the reporter
    hears that it cannot be told.
    """
    untold = [index for index, digest in recorded.items() if not digest]
    told = {index: digest for index, digest in recorded.items() if digest}
    if overwrite:
        redone = [*untold, *changed_shards(collection, told, reporter=reporter)]
        for index in redone:
            reporter.message(f"made again: shard {collection.shards[index].name}, since its images may have changed")
        return redone
    if untold and not complete:
        raise ArtefactError(
            f"{output} was begun by an older brics, which knew images by names and sizes alone: whether those of its "
            f"{len(untold):,} finished shards are still the same cannot be told",
            next="Finish it with that brics, give another --out, or --overwrite to make those shards again.",
        )
    next = "Give another --out, or --overwrite to take what is there now."
    check_unchanged(collection, told, output=output, reporter=reporter, next=next)
    if untold:
        reporter.warning(
            f"{output} has the names and sizes of {collection.path}, but {len(untold):,} of its {len(recorded):,} "
            "shards were written by an older brics, which recorded nothing of their images: whether these have "
            "changed since cannot be told; --overwrite makes them again"
        )
    return []


def remember(collection: Collection, found: Mapping[str, str]) -> None:
    """Keep the digests of signatures for later runs; where nothing can be written they are taken again.

    One line each, appended in one call: writers at the same time add to each other's, and a line that a crash cut
    short is none.
    """
    lines = "".join(f"{known} {digest}\n" for known, digest in found.items())
    path = _memory(collection)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)


def _remembered(collection: Collection) -> dict[str, str]:
    try:
        with _memory(collection).open(encoding="ascii", errors="replace", newline="\n") as file:
            lines: Iterator[re.Match[str] | None] = map(_LINE.fullmatch, file)
            return {line[1]: line[2] for line in lines if line is not None}
    except OSError:
        return {}


def _memory(collection: Collection) -> Path:
    """Where the digests of the collection at this path are remembered."""
    return cache_folder("digests") / hashlib.sha256(collection.path.encode("utf-8", "surrogatepass")).hexdigest()[:32]
