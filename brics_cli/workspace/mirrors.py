"""Remote files. A `Mirror` is a local tree that looks like what is at a URL: every file is there by its name and with
its size, and is sparse until it is read. Then it is fetched, whole, so that all that reads local files reads it
(`open_file`). No torch.

The trees of all collections are one bounded cache: what was not used for longest goes first, what any process has open
never does (a shared lock says so, and the kernel releases it). The modification time of a file says what is in it, in
seconds: 0 nothing; else a digest of the size and version that its store gives, with `_INDEX` added where all of a tar
or a table is there but the images. That much is left of one that has to go, and is enough to open it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import resource
import shutil
import threading
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from brics_cli.errors import MachineError, UsageError
from brics_cli.wording import human_bytes
from brics_cli.workspace import remote
from brics_cli.workspace.files import cache_folder
from brics_cli.workspace.remote import Listed

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter

CACHE_GIB = "BRICS_CACHE_GIB"
"""The environment variable that bounds the cache."""
DEFAULT_CACHE_GIB = 32.0
"""At most, and at most half of the disk that is free or the cache's."""
AT_ONCE = 8
"""Files that are fetched ahead at the same time."""
KEPT = 0.9
"""What is left of the bound when something had to go, so that not every file of many makes room for itself."""
AHEAD = 3
"""Shards that are fetched ahead while a collection is opened."""
MOST_TRIES = 10
"""To open a file that other processes let go of again and again."""
_INDEX = 2**30
_OLD_S = 3600
"""A file that is being fetched and has not grown for so long is one of a process that was killed."""


HOLES: dict[str, Callable[[Path], list[tuple[int, int]] | None]] = {}
"""By the ending of a name: where in such a file the images are, (offset, size) in order; all else is its index. None of
a file that cannot be opened without them."""


class _Kept(NamedTuple):
    """A file of the cache: when it was last used (ns), its bytes on disk, and whether it is more than an index."""

    used_ns: int
    num_bytes: int
    is_whole: bool
    path: str


def root() -> Path:
    """The folder of the cache; not necessarily there."""
    return cache_folder("remote").resolve()


def cached_bytes() -> int:
    """What the cache takes on the disk."""
    return sum(kept.num_bytes for kept in _all_kept())


def limit_bytes() -> int:
    """The bound of the cache: `BRICS_CACHE_GIB`, else the default. Raises UsageError for what is no number."""
    given = os.environ.get(CACHE_GIB)
    if given is None:
        existing = next(folder for folder in (root(), *root().parents) if folder.exists())
        free = shutil.disk_usage(existing).free + cached_bytes()
        return min(int(DEFAULT_CACHE_GIB * 2**30), free // 2)
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise UsageError(f"{CACHE_GIB}={given} is no size in GiB", next=f"{CACHE_GIB}={DEFAULT_CACHE_GIB:g}")
    return int(gib * 2**30)


def bound_cache(gib: float | None) -> float | None:
    """Bound the cache, in this process and those that it starts; None: as it was."""
    if gib is not None:
        os.environ[CACHE_GIB] = f"{gib:g}"
    return gib


class Mirror:
    """The files at a URL, as they were listed, and their tree. It can be pickled, also for another machine: what is
    missing there is fetched there."""

    def __init__(self, url: str, files: dict[str, Listed], *, shards: Iterable[str] = ()) -> None:
        self.url = url
        self.files = files
        """By local path."""
        self.shards = sorted(shards)
        """Those of them that hold many images each."""
        self.opening = False
        """The collection is being opened: an index is enough."""
        self._start()

    def _start(self) -> None:
        self.told: Callable[[str], None] = lambda text: None
        self.fetched: Callable[[int], None] = lambda num_bytes: None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._flying: dict[str, tuple[Future[None], bool]] = {}
        self._ahead: deque[str] = deque()
        self._num_threads = 0
        self._indexed: set[str] = set()
        self._small: set[str] = set()
        self._underway: dict[str, int] = {}
        self._limit, self._room = limit_bytes(), 0
        _MIRRORS.update(dict.fromkeys(self.files, self))

    def __getstate__(self) -> tuple[str, str, dict[str, Listed], list[str]]:
        return self.url, str(root()), self.files, self.shards

    def __setstate__(self, state: tuple[str, str, dict[str, Listed], list[str]]) -> None:
        self.url, was, self.files, self.shards = state
        if was != str(root()):
            raise UsageError(f"the cache is at {was} and at {root()}", next="Set BRICS_CACHE alike everywhere.")
        self.opening = False
        self._start()

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def url_of(self, path: str) -> str:
        """The URL of a file, as it may be printed."""
        return as_urls(path)

    def make_tree(self) -> None:
        """Put the files in their places, sparse where they are not there in this version."""
        for path, file in self.files.items():
            state, stamp = _stamp_of(path), _stamp(file)
            if state is None or state[0] not in (0, stamp, stamp + _INDEX) or not _is_size(state[1], file):
                _put(path, file.size, stamp=0)

    def missing(self) -> list[Listed]:
        """The files that are not in the cache, but for what opens them."""
        return [file for path, file in self.files.items() if not self._is_there(path)]

    def fetch_small(self, paths: Sequence[str]) -> None:
        """Fetch files that are read as the local ones they look like, and let none of them go."""
        self._small.update(paths)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda path: os.close(self.open(path)), paths))

    def check(self, paths: Iterable[str]) -> None:
        """Raise ArtefactError unless these files are still there in the version that was listed."""
        own = [path for path in paths if path in self.files]
        names = [self.files[path].name for path in own]
        fs, _ = remote.open_place(self.url)
        now: dict[str, Listed | None] = {}
        with remote.explained(self.url):
            if len(own) > AT_ONCE and not self.url.startswith("http"):  # whose folders say nothing of their files
                fs.invalidate_cache()
                for folder in {name.rpartition("/")[0] for name in names}:
                    now |= {row.name: row for row in map(remote.listed, fs.ls(folder, detail=True))}
            else:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    now = dict(zip(names, pool.map(partial(remote.version_if_there, fs), names), strict=True))
        for path, name in zip(own, names, strict=True):
            remote.check_version(self.files[path], now.get(name), url=self.url_of(path))

    def open(self, path: str) -> int:
        """A descriptor of one of its files, whole, which stays as long as that is open."""
        file, stamp = self.files[path], _stamp(self.files[path])
        if self._process != os.getpid():  # forked: locks and threads are the parent's
            self._start()
        if self.opening:
            self._look_ahead(path)
        for _ in range(MOST_TRIES):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for one who makes room, no longer
                status = os.fstat(descriptor)
                found = int(status.st_mtime)
                if _is_size(status.st_size, file) and (found == stamp or (self.opening and found == stamp + _INDEX)):
                    with suppress(PermissionError):  # of another user's cache
                        os.utime(descriptor, (time.time(), found))
                    if self.opening:
                        self._indexed.add(path)
                    return descriptor
                os.close(descriptor)
            self._fetch(path)
        raise MachineError(
            f"{as_urls(path)} went from the cache {MOST_TRIES} times before it could be read", next="Raise --cache-gib."
        )

    def ahead(self, paths: Iterable[str]) -> None:
        """Fetch files in the background; what goes wrong is heard when they are read."""
        wanted = [path for path in paths if path in self.files and not self._is_there(path)]
        with self._lock:
            self._ahead.extend(path for path in wanted if path not in self._flying and path not in self._ahead)
            num_new = min(len(self._ahead), AT_ONCE - self._num_threads)
            self._num_threads += num_new
        for _ in range(num_new):
            threading.Thread(target=self._fetch_ahead, name="brics-fetch", daemon=True).start()

    def _fetch_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._ahead:
                    self._num_threads -= 1
                    return
                path = self._ahead.popleft()
            with suppress(Exception):
                self._fetch(path, ahead=True)

    def _look_ahead(self, path: str) -> None:
        """While the collection is opened, its files are asked for in their order."""
        if path not in self._indexed:
            at = bisect_right(self.shards, path)
            self.ahead(self.shards[at : at + AHEAD])

    def _is_there(self, path: str) -> bool:
        state, stamp = _stamp_of(path), _stamp(self.files[path])
        return state is not None and (state[0] == stamp or (self.opening and state[0] == stamp + _INDEX))

    def _fetch(self, path: str, *, ahead: bool = False) -> None:
        """Fetch a file, or wait until another thread has; `ahead` of its use only where there is room."""
        with self._lock:
            flying = self._flying.get(path)
            mine = Future[None]()
            if flying is None:
                self._flying[path] = mine, ahead
        if flying is not None:
            flying[0].result()
            return
        failure: BaseException | None = None
        try:
            if not self._is_there(path):
                self._transfer(path, ahead=ahead)
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._lock:
                del self._flying[path]  # first, so that who waited for it and finds nothing fetches it
            if failure is None or ahead:
                mine.set_result(None)
            else:
                mine.set_exception(failure)

    def _transfer(self, path: str, *, ahead: bool) -> None:
        incoming = root() / ".incoming" / uuid.uuid4().hex
        incoming.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(incoming.with_name(hashlib.sha256(path.encode()).hexdigest())):
            if self._is_there(path):  # another process has fetched it
                return
            file = self.files[path]
            try:
                if self._make_room(file.size, incoming.name, ahead=ahead):
                    self._receive(file, path, incoming, ahead=ahead)
            finally:
                self._underway.pop(incoming.name, None)
                incoming.unlink(missing_ok=True)
        self.fetched(file.size)

    def _receive(self, file: Listed, path: str, incoming: Path, *, ahead: bool) -> None:
        fs, _ = remote.open_place(self.url)
        place = self.url_of(path)
        for may_make_room in (not ahead, not ahead, False):
            try:
                remote.fetch(fs, file, incoming, url=place, told=lambda text: self.told(f"{place}: {text}"))
                break
            except OSError as error:  # the disk is full: perhaps of other files of the cache
                error.filename = str(incoming)
                if not may_make_room:
                    raise
                incoming.unlink(missing_ok=True)
                wait([future for future, is_ahead in list(self._flying.values()) if is_ahead])
                self._evict(file.size)
        os.utime(incoming, (time.time(), _stamp(file)))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        incoming.replace(path)

    def _make_room(self, num_bytes: int, name: str, *, ahead: bool) -> bool:
        """Let go of other files until there is room for so many bytes more, which come by this `name`. What is being
        read stays, so that there may be none: then what is fetched `ahead` has to wait, and the answer is False."""
        with self._lock:
            self._room -= num_bytes
            if self._room < 0:  # others may have taken it: a share of the bound is looked after at once
                kept, coming = _all_kept(), sum(self._underway.values()) + num_bytes
                coming += num_bytes if ahead else 0  # some is left for what cannot wait
                excess = sum(each.num_bytes for each in kept) + coming - self._limit
                if excess > 0:
                    self._evict(excess + int((1 - KEPT) * self._limit), kept, ahead=ahead)
                    excess = cached_bytes() + coming - self._limit
                self._room = min(max(-excess, 0), self._limit // 20)
                if excess > 0 and ahead:
                    self._ahead.clear()
                    return False
            self._underway[name] = num_bytes
            return True

    def _evict(self, num_bytes: int, kept: Sequence[_Kept] = (), *, ahead: bool = False) -> None:
        """Let go of files of the cache, of so many bytes.

        Those used longest ago go first; of a collection that is being opened, after those of others, what was looked at
        last: when it is read, it is from the front; and nothing of it for what is fetched `ahead`.
        """

        def order(each: _Kept) -> tuple[bool, int, int]:
            if not self.opening or each.path not in self.files:
                return not each.is_whole, 0, each.used_ns
            return not each.is_whole, 2 if each.path in self._indexed else 1, -each.used_ns

        for each in sorted(kept or _all_kept(), key=order):
            if num_bytes <= 0:
                break
            if each.path not in self._small and not (ahead and order(each)[1]):
                num_bytes -= _let_go(each)


_MIRRORS: dict[str, Mirror] = {}
"""By the local paths of their files."""


_HELD: list[int] = []
"""Descriptors of what has to stay as long as the process."""


def fetch_and_hold(url: str, *, reporter: Reporter | None = None) -> Path:
    """The local path of the file, or folder, at `url`, fetched whole as far as it is not cached, to stay there while
    this process lives. Raises what `remote.explained` raises, UsageError for more than the cache holds."""
    told: Callable[[str], None] = (lambda text: None) if reporter is None else reporter.warning
    fs, name = remote.open_place(url)
    with remote.explained(url):
        fs.invalidate_cache()
        info = remote.patiently(lambda: fs.info(name), fs=fs, told=told)
        files = {local_path(file.name, url): file for file in remote.files_at(fs, name, info)}
    mirror = Mirror(url, files)
    mirror.told = told
    if mirror.num_bytes > limit_bytes():
        raise UsageError(
            f"{remote.shown(url)} has {human_bytes(mirror.num_bytes)}, and the cache holds "
            f"{human_bytes(limit_bytes())}",
            next=f"Allow more: --cache-gib {-(-2 * mirror.num_bytes // 2**30)}",
        )
    path = local_path(name, url)
    if info["type"] == "directory":
        remove_others(path, files.keys())
    mirror.make_tree()
    if reporter is not None and (missing := mirror.missing()):
        num_bytes = sum(file.size for file in missing)
        reporter.message(f"fetching {remote.shown(url)}, {human_bytes(num_bytes)}")
    mirror.ahead(files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * len(files) + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _HELD.extend(map(mirror.open, files))
    return Path(path)


def cached_copy(url: str) -> Path | None:
    """The local path of the file, or the folder, at `url`, should it be in the cache, whole; nothing is asked for."""
    path = Path(local_path(url, url))
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    is_whole = path.exists() and all(0 < file.stat().st_mtime < _INDEX for file in files)
    return path if is_whole else None


def local_path(name: str, url: str) -> str:
    """The path in the cache that stands for what the file system of `url` calls `name`."""
    protocol = remote.protocol_of(url)
    return f"{root()}/{protocol}/{remote.name_in_folder(name, protocol)}"


def open_file(path: str | Path) -> int:
    """A descriptor of the file `path` for reading; of a mirrored one when it is whole. Raises OSError; of a mirrored
    one what `remote.fetch` raises."""
    mirror = _MIRRORS.get(str(path)) if _MIRRORS else None
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if mirror is None else mirror.open(str(path))


@contextmanager
def present(path: Path) -> Iterator[Path]:
    """Let the file `path` be there, whole, while the block runs, for what opens paths."""
    if str(path) not in _MIRRORS:
        yield path
        return
    descriptor = open_file(path)
    try:
        yield path
    finally:
        os.close(descriptor)


def version_row(path: str) -> tuple[str, int, str] | None:
    """What identifies the remote file that `path` stands for: URL, size and version; None where it is a local one."""
    mirror = _MIRRORS.get(path) if _MIRRORS else None
    return None if mirror is None else (as_urls(path), *mirror.files[path][1:])


def check_unchanged(paths: Iterable[str]) -> None:
    """Raise ArtefactError unless those of `paths` that are mirrored are what they were when they were listed."""
    for mirror, own in _by_mirror(paths).items():
        mirror.check(own)


def is_mirrored(path: str | Path) -> bool:
    """Whether the file `path` stands for a remote one."""
    return str(path) in _MIRRORS


def remove_others(folder: str, known: Container[str]) -> None:
    """Remove from the tree what is in `folder`, and is not `known` to be at its URL any more."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if (path := f"{parent}/{name}") not in known:
                os.unlink(path)  # noqa: PTH108 - a string, for speed


def fetch_ahead(paths: Iterable[str]) -> None:
    """Fetch those of `paths` that are mirrored, in the background, in their order."""
    for mirror, own in _by_mirror(paths).items():
        mirror.ahead(own)


def _by_mirror(paths: Iterable[str]) -> dict[Mirror, list[str]]:
    own: dict[Mirror, list[str]] = {}
    for path in paths if _MIRRORS else ():
        if (mirror := _MIRRORS.get(path)) is not None:
            own.setdefault(mirror, []).append(path)
    return own


def as_urls(text: str) -> str:
    """`text` with the URLs of mirrored files and folders in place of their local paths, as they may be printed."""
    return re.sub(re.escape(f"{root()}/") + r"([a-z][a-z0-9+.]*)/", lambda found: f"{found[1]}://", text)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process fetch a file while the others that want it wait."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _is_size(num_bytes: int, file: Listed) -> bool:
    return file.size in (-1, num_bytes)  # a server may not say


def _stamp(file: Listed) -> int:
    digest = hashlib.sha256(f"{file.name}\0{file.size}\0{file.version}".encode()).digest()
    return 1 + int.from_bytes(digest[:4], "big") % (_INDEX - 1)


def _stamp_of(path: str) -> tuple[int, int] | None:
    """The stamp and the size of a file; None where there is none."""
    with suppress(OSError):
        status = os.stat(path)  # noqa: PTH116 - a string, for speed
        return int(status.st_mtime), status.st_size
    return None


def _put(path: str, num_bytes: int, *, stamp: int, fill: Callable[[int], None] = lambda descriptor: None) -> None:
    """Put a sparse file at `path` in place of what is there; `fill` writes what is to be in it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = root() / ".incoming" / uuid.uuid4().hex
    temporary.parent.mkdir(exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.truncate(max(num_bytes, 0))
            fill(file.fileno())
        os.utime(temporary, (time.time(), stamp))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _all_kept() -> list[_Kept]:
    """The files of the cache that hold something."""
    kept = []
    for parent, _, names in os.walk(root()):
        for name in names:
            path = f"{parent}/{name}"
            with suppress(OSError):
                status = os.stat(path)  # noqa: PTH116 - a string, for speed
                if parent.endswith("/.incoming"):
                    if time.time() - status.st_mtime > _OLD_S:
                        os.unlink(path)  # noqa: PTH108
                elif status.st_mtime:
                    is_whole = status.st_mtime < _INDEX
                    kept.append(_Kept(status.st_atime_ns, status.st_blocks * 512, is_whole, path))
    return kept


def _let_go(kept: _Kept) -> int:
    """Leave of a file its index alone, or nothing of an index; the bytes that became free, 0 where it is being read."""
    with suppress(OSError):
        descriptor = os.open(kept.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            stamp = int(status.st_mtime)
            find = next((find for ending, find in HOLES.items() if kept.path.lower().endswith(ending)), None)
            holes = find(Path(kept.path)) if find is not None and kept.is_whole else None
            if holes is not None:
                with suppress(OSError):  # a full disk has no room for an index
                    index = partial(_copy_around, descriptor, holes=holes)
                    _put(kept.path, status.st_size, stamp=stamp + _INDEX, fill=index)
                    return kept.num_bytes - os.stat(kept.path).st_blocks * 512  # noqa: PTH116
            _put(kept.path, status.st_size, stamp=0)
            return kept.num_bytes
        finally:
            os.close(descriptor)
    return 0


def _copy_around(source: int, target: int, *, holes: Iterable[tuple[int, int]]) -> None:
    """Copy all of a file that is not in `holes` (offset, size), which are in order."""
    at, end = 0, os.fstat(source).st_size
    for start, size in [*holes, (end, 0)]:
        while at < start and (block := os.pread(source, min(start - at, 2**20), at)):
            at += os.pwrite(target, block, at)
        at = max(at, start + size)
