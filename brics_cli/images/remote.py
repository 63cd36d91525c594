"""From a URL to the tree that stands for what is there (`mirrors`): which files belong to it, listed by fsspec."""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from brics_cli.errors import UsageError
from brics_cli.images.collection import is_image
from brics_cli.images.fingerprints import LONG_READ_BYTES
from brics_cli.images.listings import LISTINGS
from brics_cli.images.splits import ALL, is_part
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.wording import count, human_bytes
from brics_cli.workspace.files import PROVENANCE_FILE
from brics_cli.workspace.mirrors import CACHE_GIB, Mirror, limit_bytes, local_path, remove_others, root
from brics_cli.workspace.remote import (
    Listed,
    explained,
    is_absent,
    listed,
    open_place,
    patiently,
    protocol_of,
    shown,
)

ASKED_AT_ONCE = 16
SMALL_BYTES = 16 << 20
"""Of a file that is neither an image nor a shard and is fetched all the same."""
MOST_ABOVE = 4
"""Names at the end of a URL that may be of a split or a field, not of a file."""
IS_SHARD = Callable[[str], bool]


class Place:
    """What is at and around a URL, asked of its file system."""

    def __init__(self, url: str, *, told: Callable[[str], None]) -> None:
        self.url, self.told = url, told
        self.protocol = protocol_of(url)
        self.fs, self.name = open_place(url)
        self.fs.invalidate_cache()

    def info(self, name: str) -> dict[str, Any] | None:
        """What is said of one name; None where nothing is there."""
        try:
            found = patiently(lambda: self.fs.info(name), fs=self.fs, told=self.told)
        except FileNotFoundError as error:
            if not is_absent(error):
                raise
            return None
        return {**found, "name": name}

    def infos(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Of the names that are there."""
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return [found for found in pool.map(self.info, names) if found is not None and found["type"] == "file"]

    def files(self, found: Iterable[dict[str, Any]]) -> list[Listed]:
        """The files among what a folder was listed with; asked for one by one where the listing gives no sizes."""
        rows = [row for row in found if row["type"] == "file" and not str(row["name"]).endswith("/")]
        without = [str(row["name"]) for row in rows if row.get("size") is None and "?" not in str(row["name"])]
        return [listed(row) for row in [*(row for row in rows if row.get("size") is not None), *self.infos(without)]]

    def below(self, name: str) -> list[Listed]:
        """All files below a folder."""
        found = patiently(lambda: self.fs.find(name, detail=True), fs=self.fs, told=self.told)
        return self.files(found.values())

    def beside(self, folder: str) -> list[Listed] | None:
        """The files in a folder; None where it cannot be listed, as of most web servers."""
        found = self._ls(folder)
        return None if found is None else self.files(found)

    def _ls(self, folder: str) -> list[dict[str, Any]] | None:
        try:
            return list(self.fs.ls(folder, detail=True))
        except (OSError, NotImplementedError, ValueError):
            return None

    def is_folder(self, info: dict[str, Any]) -> bool:
        """Whether it is one; to a web server a folder is a page of links."""
        is_page = self.protocol in ("http", "https") and info.get("mimetype") == "text/html"
        return info["type"] == "directory" or (is_page and bool(self._ls(info["name"])))

    def local(self, name: str) -> str:
        """The local path that stands for a name."""
        return local_path(name, self.url)


def mirrored(
    url: str, expanded: Sequence[str] | None, *, is_shard: IS_SHARD, reporter: Reporter | None
) -> tuple[str, Mirror]:
    """The local path, or pattern, that stands for what is at `url`, and its mirror; `expanded` are the URLs that a
    pattern stands for, with `*` perhaps.

    Raises UsageError where nothing is there, or when a file of it is larger than the cache; what `explained` raises.
    """
    if reporter is not None:
        reporter.message(f"looking at {shown(url)}")
    place = Place(url, told=(lambda text: None) if reporter is None else reporter.warning)
    with explained(url):
        if expanded is not None:
            text = local_path(url, url)
            found, complete = _of_pattern(place, expanded, is_shard)
        else:
            found, complete, tail = _of_path(place)
            text = place.local(place.name.removesuffix(tail)) + tail
    files = {place.local(file.name): file for file in found}
    _check_room([file for path, file in files.items() if is_shard(path) or is_image(path)], url)
    mirror = Mirror(url, files, shards=filter(is_shard, files))
    if reporter is not None:
        mirror.told = reporter.warning
    for folder, known in complete.items():
        remove_others(place.local(folder), {place.local(name) for name in known} if known else files.keys())
    mirror.make_tree()
    mirror.fetch_small(_small(mirror, is_shard))
    return text, mirror


def _small(mirror: Mirror, is_shard: IS_SHARD) -> list[str]:
    """The files that are neither images nor shards, and may say something of the images."""
    return [
        path
        for path, file in mirror.files.items()
        if path.endswith(LISTINGS) or (file.size <= SMALL_BYTES and not is_image(path) and not is_shard(path))
    ]


def _of_path(place: Place) -> tuple[list[Listed], dict[str, list[str]], str]:
    """The files at the place, or at the nearest one above that is there; what of the name is left then."""
    name, parts = place.name.rstrip("/"), list[str]()
    while len(parts) < MOST_ABOVE:
        is_field = glob.has_magic(posixpath.basename(name.partition("?")[0]))  # shards/*.left.png
        info = None if is_field else place.info(name)
        if info is not None and place.is_folder(info):
            if not all(part == ALL or is_part(part) or "*" in part for part in parts):
                break  # misspelt, and not to be looked for in all that there is
            above = (
                [f"{posixpath.dirname(name)}/{each}" for each in LISTINGS] if is_part(posixpath.basename(name)) else []
            )
            return [*place.below(name), *place.files(place.infos(above))], {name: []}, place.name[len(name) :]
        if info is not None:
            stem = name.partition("?")[0]
            beside = [*LISTINGS, PROVENANCE_FILE, f"{posixpath.basename(stem)}.{PROVENANCE_FILE}"]
            beside.append(f"{posixpath.basename(stem).partition('.')[0]}_stats.json")
            also = place.infos(f"{posixpath.dirname(stem)}/{each}" for each in beside)
            return place.files([info, *also]), {}, place.name[len(name) :]
        name, part = posixpath.split(name)
        if "/" not in name.rpartition("://")[2].strip("/"):
            break  # a whole bucket or server is no collection
        parts.append(part)
    raise UsageError(f"nothing is at {shown(place.url)}", next="Check the address.")


def _of_pattern(place: Place, expanded: Sequence[str], is_shard: IS_SHARD) -> tuple[list[Listed], dict[str, list[str]]]:
    """The files that the pattern names, and what their folders say of their images."""
    wanted: list[str] = []
    for text in expanded:
        name = str(place.fs._strip_protocol(text))
        wanted += sorted(place.fs.glob(name)) if glob.has_magic(name) else [name]
    found: dict[str, Listed] = {}
    complete: dict[str, list[str]] = {}
    for folder in dict.fromkeys(posixpath.dirname(name) for name in wanted):
        beside = place.beside(folder)
        if beside is None:
            names = [*LISTINGS, PROVENANCE_FILE]
            found |= {file.name: file for file in place.files(place.infos(f"{folder}/{name}" for name in names))}
        else:
            complete[folder] = [file.name for file in beside]
            found |= {file.name: file for file in beside}
    missing = [name for name in wanted if name not in found]
    found |= {file.name: file for file in place.files(place.infos(missing))}
    asked = {*wanted}
    return [file for name, file in found.items() if name in asked or not is_shard(name)], complete


def _check_room(files: Sequence[Listed], url: str) -> None:
    largest = max(files, key=lambda file: file.size, default=None)
    if largest is not None and largest.size > (limit := limit_bytes()):
        raise UsageError(
            f"{shown(url)}: {posixpath.basename(largest.name)} has {human_bytes(largest.size)}, and the cache holds "
            f"{human_bytes(limit)}",
            next=f"Allow more: --cache-gib {-(-2 * largest.size // 2**30)}, or {CACHE_GIB}.",
        )


@contextmanager
def opening(mirror: Mirror, reporter: Reporter) -> Iterator[None]:
    """Let the block open the collection, for which an index is enough; say what is fetched for that, and what does not
    fit."""
    missing = mirror.missing()
    num_bytes, limit = sum(file.size for file in missing), limit_bytes()
    if missing:
        text = (
            f"{shown(mirror.url)}: {count(len(missing), 'file')}, {human_bytes(num_bytes)}, to be fetched to {root()}"
        )
        if mirror.num_bytes > limit:
            text += f"; of {human_bytes(mirror.num_bytes)} it holds {human_bytes(limit)} at a time (--cache-gib)"
        reporter.message(text)
    is_long = num_bytes > LONG_READ_BYTES
    with (reporter if is_long else SilentReporter()).task("fetch", total=num_bytes >> 20, unit="MiB") as task:
        mirror.fetched = lambda num: task.advance(num >> 20)
        mirror.opening = True
        try:
            yield
        finally:
            mirror.opening = False
            mirror.fetched = lambda num: None
