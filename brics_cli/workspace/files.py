"""Writing files so that a reader never sees half of one: temporary name, fsync, rename. And where caches are."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from brics_cli.errors import ArtefactError
from brics_cli.parsing import parse_json, read_bytes

PROVENANCE_FILE = "brics.json"
GRANULARITY_NS = 2 * 10**9
"""The coarsest clock of a file system in use: FAT's."""


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success it is fsynced and renamed to `final`, else removed.

    Works for a file and for a directory (an existing directory `final` is replaced).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        fsync_tree(temporary)
        if temporary.is_dir() and final.is_dir():
            doomed = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
            final.rename(doomed)
            temporary.rename(final)
            shutil.rmtree(doomed)
        else:
            temporary.replace(final)
        fsync(final.parent)
    except OSError as error:
        if error.filename is None:  # a write to an open file does not know its name, and a user wants to
            error.filename = str(final)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush `path`, a file or a directory, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Flush a file, or a directory and everything in it."""
    if path.is_dir():
        for child in path.iterdir():
            fsync_tree(child)
    fsync(path)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`: all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escape of a byte of a name


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`: all of it or nothing."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, what: str) -> Any:
    """The JSON in `path`. Raises ArtefactError naming `what` when it is missing or damaged."""
    try:
        return parse_json(read_bytes(path))
    except FileNotFoundError:
        raise ArtefactError(f"{what}: {path} is missing") from None
    except ValueError as error:
        raise ArtefactError(f"{what}: {path} is damaged ({error})") from None


def check_writable(path: Path) -> None:
    """Make the directory that the file `path` goes to, and raise OSError now when nothing can be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=path.parent).close()  # of no name, where the file system can: a kill leaves nothing


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the temporary files that a killed process left of outputs called `name` (a glob pattern)."""
    for leftover in [*folder.glob(f".{name}.tmp"), *folder.glob(f".{name}.*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def cache_folder(kind: str) -> Path:
    """The folder of one kind of things that can be made again; not necessarily there yet.

    Below `$BRICS_CACHE`, else `$XDG_CACHE_HOME/brics`, else `~/.cache/brics`; `$BRICS_CACHE` is itself the folder of
    `features`, as it was when there was nothing else.
    """
    if named := os.environ.get("BRICS_CACHE"):
        root = Path(named).expanduser()
        return root if kind == "features" else root / kind
    return cache_home() / "brics" / kind


def cache_home() -> Path:
    """Where programs of this user keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()


def forget(kind: str) -> None:
    """Remove all cached things of a kind, as far as they are ours."""
    shutil.rmtree(cache_folder(kind), ignore_errors=True)
