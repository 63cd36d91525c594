"""Outputs at URLs. What is written is built in a folder of this machine, as for a local path, and what is whole is put
in its place: a store or an archive in one upload when it is finished, shards and images while the next ones are made,
what says that all is complete last. So "whole or absent" holds there too: an object is visible when it has arrived.

One writer at a time: a lock object beside the output, made by a conditional write (`If-None-Match`) where the store
has that, else said. What an interrupted run has put there is gone on with by the same command, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brics_cli.errors import BricsError, MachineError
from brics_cli.parsing import parse_json
from brics_cli.wording import count, human_bytes
from brics_cli.workspace import remote
from brics_cli.workspace.files import PROVENANCE_FILE, cache_folder, read_json, write_json_atomically
from brics_cli.workspace.locks import hold_lock
from brics_cli.workspace.naming import IDENTITY_NAME, INDEX_NAME, PARTS_FOLDER

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter

Result = TypeVar("Result", bound=Any)

EVERY_S = 2.0
"""Seconds between looks for what is whole and not there yet."""
AT_ONCE = 8
SHARD = ".tar"
WHOLE = (SHARD, ".png", ".h5")
"""What files of a folder end in that never change once they have their names."""
LAST = ("manifest.json", PROVENANCE_FILE, INDEX_NAME)
"""Files that say that an output is complete."""
MARKS = (PROVENANCE_FILE, f"{PARTS_FOLDER}/{IDENTITY_NAME}")
"""Files that say whose an unfinished folder is."""
ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory"}
"""Stores where an object is there when it is whole."""


class Staged:
    """Where an output is written: `path` is `out` itself (None: not given), or what is put at the URL `out`. What its
    `reporter` hears, it hears of the URL."""

    def __init__(self, out: Path | str | None, reporter: Reporter, upload: _Upload | None = None) -> None:
        self.path = upload.path if upload is not None else None if out is None else Path(out)
        self.reporter = reporter if upload is None else _Reworded(reporter, upload)
        self._upload = upload

    def named(self, result: Result) -> Result:
        """A result, a dataclass, with URLs in place of the paths that were put there."""
        if self._upload is None:
            return result
        paths = {name: value for name, value in vars(result).items() if isinstance(value, Path)}
        return replace(result, **{name: self._upload.said(str(path)) for name, path in paths.items()})


@contextmanager
def staged(out: Path | str | None, *, reporter: Reporter) -> Iterator[Staged]:
    """Where to write an output; where `out` is a URL, it is put there when the block ends.

    Raises MachineError when another process writes there, and what `remote.explained` raises: nothing can be written
    there, or a file not be fetched or put. What the block raises is raised when what is whole has been put.
    """
    if out is None or not remote.is_remote(out):
        yield Staged(out, reporter)
        return
    upload = _Upload(remote.as_url(out).rstrip("/"), reporter)
    reporter.message(f"{remote.shown(upload.url)} is built in {upload.folder}, and put there when it is whole")
    with upload.lock():
        upload.fetch()
        with upload.in_background():
            try:
                yield Staged(out, reporter, upload)
            except BricsError as error:
                error.reword(upload.said)
                raise
        upload.put(everything=True)
        shutil.rmtree(upload.folder)


class _Reworded:
    """A reporter that names the URL of an output, and not where it is built."""

    def __init__(self, reporter: Reporter, upload: _Upload) -> None:
        self.task = reporter.task
        self._reporter, self._upload = reporter, upload

    def message(self, text: str) -> None:
        self._reporter.message(self._upload.said(text))

    def warning(self, text: str) -> None:
        self._reporter.warning(self._upload.said(text))


class _Upload:
    """One output: `path` in `folder` is what is built; all that stands beside it belongs to it."""

    def __init__(self, url: str, reporter: Reporter) -> None:
        self.url, self.reporter = url, reporter
        self.fs, self.name = remote.open_place(url)
        self.folder = cache_folder("outputs") / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.path = self.folder / posixpath.basename(self.name)
        self.record = self.folder / ".uploaded.json"
        self._done: dict[str, Any] = {}
        """By name in the folder: size and time of the file that was put, the version that it has there, and whether it
        is but a place holder here."""

    def said(self, text: str) -> str:
        """`text` with the URL in place of the local path."""
        return text.replace(f"{self.folder}/", f"{remote.shown(posixpath.dirname(self.url))}/")

    def _told(self, text: str) -> None:
        self.reporter.warning(f"{remote.shown(self.url)}: {text}")

    def _there(self, name: str) -> str:
        return f"{posixpath.dirname(self.name)}/{name}"

    # One writer.

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer while the block runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name, shown = f"{self.name}.lock", remote.shown(self.url)
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}).encode()
        with hold_lock(self.folder / ".lock", what=shown):  # of this machine: the kernel knows who is alive
            with remote.explained(self.url, doing="write"):
                self._acquire(name, mine, shown)
            try:
                yield
            finally:
                with suppress(Exception):
                    if self.fs.cat_file(name) == mine:
                        self.fs.rm_file(name)

    def _acquire(self, name: str, mine: bytes, shown: str) -> None:
        self.fs.invalidate_cache()
        if self.fs.exists(name):
            with suppress(FileNotFoundError):
                theirs = parse_json(self.fs.cat_file(name))
                if theirs.get("host") != socket.gethostname():
                    raise MachineError(
                        f"another brics process, {theirs.get('pid')} on {theirs.get('host')}, is writing {shown}",
                        next=f"Wait for it, or if it has ended, remove {shown}.lock.",
                    )
                self.fs.rm_file(name)  # of a process of this machine that was killed: we hold its lock here
        for is_again in (False, True):
            try:
                self.fs.pipe_file(name, mine, mode="create")
            except FileExistsError:
                if is_again:
                    return
                raise MachineError(f"another brics process is writing {shown}", next="Wait for it.") from None
            except (TypeError, NotImplementedError):
                self.fs.pipe_file(name, mine)
                break
        self.reporter.warning(
            f"{remote.protocol_of(self.url)}:// has no conditional writes here: {shown}.lock is a note, which two "
            "processes that start in the same moment do not see; see to it that one alone writes there"
        )

    # What is there already.

    def fetch(self) -> None:
        """Take what an earlier run has put there; of a complete folder its shards are not needed, and stay there."""
        there = self._list()
        if self.record.is_file():
            self._done = read_json(self.record, what="the record of an upload")
        versions = {name: row[2] for name, row in self._done.items()}
        is_hollow = any(row[3] for row in self._done.values())
        if is_hollow or (there and versions != {name: file.version for name, file in there.items()}):
            for child in self.folder.iterdir():  # another machine went on, or it was never here
                if child.name != ".lock":
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
            self._done = {}
            self._fetch(there)
        elif not there:
            self._done = {}
        self._write_record()

    def _list(self) -> dict[str, remote.Listed]:
        """The files of the output that are at the URL, by their names in the folder."""
        with remote.explained(self.url):
            self.fs.invalidate_cache()
            above = posixpath.dirname(self.name)
            names = [self.name, *(f"{self.name}.{beside}" for beside in (PROVENANCE_FILE, "sheet.png"))]
            found = []
            for name in names:
                with suppress(FileNotFoundError):
                    found += remote.files_at(self.fs, name, self.fs.info(name))
        return {posixpath.relpath(file.name, above): file for file in found}

    def _fetch(self, there: dict[str, remote.Listed]) -> None:
        shards = {name: file for name, file in there.items() if name.endswith(SHARD)}
        self._get({name: file for name, file in there.items() if name not in shards})
        inside = self.path / PROVENANCE_FILE
        is_complete = inside.is_file() and bool(read_json(inside, what="artefact").get("complete"))
        if not is_complete:
            self._get(shards)
        for name, file in shards.items() if is_complete else ():  # their sizes are all that is asked of them
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as empty:
                empty.truncate(file.size)
            self._note(name, file.version, is_hollow=True)
        for name in [name for name in there if name.endswith(PROVENANCE_FILE)]:
            os.utime(self.folder / name)  # it is younger than the file that it is of
            self._note(name, there[name].version)
        if there:
            self.reporter.message(
                f"{remote.shown(self.url)} holds {count(len(there), 'file')} already"
                + (
                    ""
                    if is_complete
                    else f", {human_bytes(sum(file.size for file in there.values()))}, fetched to go on"
                )
            )

    def _get(self, files: dict[str, remote.Listed]) -> None:
        def get(name: str) -> None:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            url = f"{posixpath.dirname(self.url)}/{name}"
            remote.fetch(self.fs, files[name], target, url=url, told=self._told)
            self._note(name, files[name].version)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(get, files))

    def _note(self, name: str, version: str, *, is_hollow: bool = False) -> None:
        status = (self.folder / name).stat()
        self._done[name] = [status.st_size, status.st_mtime_ns, version, is_hollow]

    def _write_record(self) -> None:
        write_json_atomically(self.record, self._done)

    # What is whole.

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Put shards and images there as they become whole, while the block runs, and when it fails."""
        stop = threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            while not stop.wait(EVERY_S) and not failed:
                try:
                    self.put()
                except BaseException as error:
                    failed.append(error)

        thread = threading.Thread(target=work, name="brics-upload", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            stop.set()
            thread.join()
            with suppress(Exception):  # the first error counts
                self.put(unfinished=True)
            raise
        stop.set()
        thread.join()

    def put(self, *, everything: bool = False, unfinished: bool = False) -> None:
        """Put what is whole and not there; `everything`: the output is complete."""
        mine = [path for path in self.folder.rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.folder)) for path in mine]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/")[:-1])]
        inside = f"{self.path.name}/"
        marks = [f"{inside}{mark}" for mark in MARKS]
        if everything:
            names = [name for name in names if name.startswith(self.path.name)]
        elif any(mark in names for mark in marks):
            names = [name for name in names if name.startswith(inside)]
        else:
            return
        if not (everything or unfinished):
            names = [name for name in names if name in marks or name.endswith(WHOLE)]
        if not everything:
            names = [name for name in names if not name.endswith(LAST) or name in marks]
        wanted = [name for name in names if self._is_new(name) and not _is_passing(name)]
        first = [name for name in wanted if not name.endswith(LAST)]
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._put, first))
            for last in LAST:
                for name in wanted:
                    if name.endswith(last):
                        self._put(name)
            for name in [name for name in self._done if not (self.folder / name).is_file()]:
                with remote.explained(self.url, doing="write"), suppress(FileNotFoundError):
                    self.fs.rm_file(self._there(name))
                del self._done[name]
        finally:
            self._write_record()

    def _is_new(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            status = (self.folder / name).stat()
            return self._done.get(name, [])[:2] != [status.st_size, status.st_mtime_ns]
        return False

    def _put(self, name: str) -> None:
        """Put one file in its place."""
        there, path = self._there(name), self.folder / name
        with suppress(FileNotFoundError), remote.explained(self.url, doing="write"):
            is_atomic = remote.protocol_of(self.url) in ATOMIC
            target = there if is_atomic else f"{there}.{uuid.uuid4().hex[:8]}.tmp"
            remote.patiently(lambda: self.fs.put_file(str(path), target), fs=self.fs, told=self._told)
            if not is_atomic:
                self.fs.mv(target, there)
            self._note(name, remote.version(self.fs, there).version)


def _is_passing(name: str) -> bool:
    """Whether a file is none of the finished output."""
    return any(part.endswith((".parts", ".pieces", ".lock", ".tmp", ".uploaded.json")) for part in name.split("/"))
