"""Writing files so that a reader never sees half of one: temporary name, fsync, rename."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from brics_cli.errors import ArtefactError, WouldOverwriteError


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
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`: all of it or nothing."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, what: str) -> Any:
    """The JSON in `path`. Raises ArtefactError naming `what` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{what}: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{what}: {path} is damaged ({error})") from None


def check_output(
    path: Path,
    *,
    overwrite: bool,
    what: str,
    kind: str | None = None,
    inputs: Sequence[str] = (),
    flag: str = "--out",
) -> None:
    """Raise WouldOverwriteError when the output `path` is a file or a non-empty directory.

    With `overwrite` a file is left for the writer to replace. A directory is emptied only when brics made it as an
    artefact of this `kind`, no other artefact stands in it, and none of `inputs` (paths or patterns the command
    reads) lies in it: a mistyped --out never deletes somebody's data. `flag` is the option that names `path`.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise WouldOverwriteError(f"{what} {path} is already there", next=f"Give another {flag}, or --overwrite.")
    if path.is_dir():
        _check_may_be_emptied(path, kind=kind, inputs=inputs)
        shutil.rmtree(path)


def _check_may_be_emptied(path: Path, *, kind: str | None, inputs: Sequence[str]) -> None:
    for text in inputs:
        source = Path(re.split(r"[{*?]", text)[0]).resolve()
        if source.is_relative_to(path.resolve()):
            raise WouldOverwriteError(
                f"--overwrite would delete {text}, which this command reads", next="Give another --out."
            )
    advice = "Remove it yourself, or give another --out."
    if not (path / PROVENANCE_FILE).is_file():
        raise WouldOverwriteError(
            f"{path} was not made by brics (it has no {PROVENANCE_FILE}), so --overwrite will not empty it", next=advice
        )
    found = read_json(path / PROVENANCE_FILE, what="artefact").get("kind")
    if found != kind:
        raise WouldOverwriteError(
            f"{path} holds an artefact of kind {found!r}, and --overwrite replaces kind {kind!r} alone", next=advice
        )
    others = next((other for other in path.rglob(PROVENANCE_FILE) if other.parent != path), None)
    if others is not None or (path / "runs").exists():
        raise WouldOverwriteError(f"{path} holds other artefacts, so --overwrite will not empty it", next=advice)


def check_writable(path: Path) -> None:
    """Make the directory that the file `path` goes to, and raise OSError now when nothing can be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".brics-"):
        pass


PROVENANCE_FILE = "brics.json"
