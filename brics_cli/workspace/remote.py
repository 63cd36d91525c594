"""Places that fsspec knows (`s3://`, `gs://`, `hf://datasets/...`, `https://`, `memory://`): named, opened, asked for
files, and told of without secrets. No torch, and no fsspec before one is used.

fsspec's file systems do the talking and look for credentials where each of them does (environment, configuration
files). What of those stands in a URL is used, and never shown or written down: see `shown`.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

from brics_cli.errors import ArtefactError, BricsError, MachineError, UsageError, first_line

Value = TypeVar("Value")

_URL = re.compile(r"(?!file:)(?P<protocol>[a-z][a-z0-9+.]+):/{1,2}(?P<rest>[^/].*)", re.DOTALL | re.IGNORECASE)
"""A Path of a URL has one slash after the colon."""
_USER = re.compile(r"(\b[a-z][a-z0-9+.]+:/{1,2})[^/@\s'\"]+@", re.IGNORECASE)
_QUERY = re.compile(r"(\bhttps?:/{1,2}[^?\s'\"]*)\?[^\s'\"]*", re.IGNORECASE)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http", "az": "az", "abfs": "az"}
"""Protocol -> the extra of brics-cli that installs what fsspec needs for it."""
TRIES, BACK_OFF_S = 5, 0.5
"""How often a transfer is tried where its file system does not try again itself, and seconds before the second time,
twice as many before each that follows."""
S3_ATTEMPTS = 2
"""Of botocore, for each of the five of s3fs: with its default a server that says nothing holds us up for long."""
ANSWER_S = 60
"""Seconds that an HTTP server may say nothing."""
_VERSIONS = (
    *("ETag", "etag", "generation", "VersionId", "version", "blob_id", "md5Hash", "Content-MD5", "md5"),
    *("Last-Modified", "LastModified", "last_modified", "mtime", "created", "updated"),
)
"""What file systems call that by which one version of a file is told from another, the surest first."""
WORTH_A_LOOK = 2**20
"""Bytes of a file from which on its version is asked for again when it was fetched."""
_GONE = (404, 410)
_OF_THIS_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EFBIG}


class Listed(NamedTuple):
    """A file: what its file system calls it, its bytes, and its version, empty where nothing tells one from another."""

    name: str
    size: int
    version: str


def is_remote(named: str | Path) -> bool:
    """Whether `named` is a URL of a place that is not this machine's files."""
    return _URL.match(str(named)) is not None


def as_url(named: str | Path) -> str:
    """The URL that `named` is, as it was before a Path took one of its slashes."""
    found = _URL.fullmatch(str(named))
    assert found is not None
    return f"{found['protocol'].lower()}://{found['rest']}"


def shown(text: str | Path) -> str:
    """`text` with every URL in it as it may be printed and stored: without `user:password@`, and without the query
    that a signed one ends in."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", str(text)))


def named(out: str | Path) -> str:
    """An output as messages name it: its path, or its URL."""
    return shown(as_url(out)) if is_remote(out) else str(out)


def protocol_of(url: str) -> str:
    return url.partition("://")[0]


def name_in_folder(name: str, protocol: str) -> str:
    """The relative path by which a local folder of files of that `protocol` has the one called `name`."""
    name = re.sub(r"^[a-z0-9+.]+://", "", name, flags=re.IGNORECASE)
    if protocol in ("http", "https"):
        name = unquote(re.sub(r"^[^/@]*@", "", name.partition("?")[0]))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{shown(name)} leaves its folder")
    return "/".join(parts)


def open_place(url: str) -> tuple[Any, str]:
    """fsspec's file system of `url`, and what that calls the place. Raises UsageError, naming the package, where the
    one for it is not installed, and for what fsspec does not know."""
    import fsspec

    protocol = protocol_of(url)
    settings: dict[str, Any] = {}
    if protocol in ("http", "https"):
        settings["client_kwargs"] = _http_settings(url)
    if protocol in ("s3", "s3a"):
        settings = _s3_settings()
    try:
        fs, name = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        install = f"pip install 'brics-cli[{EXTRAS[protocol]}]'" if protocol in EXTRAS else first_line(error)
        raise UsageError(f"{shown(url)}: what fsspec reads {protocol}:// with is not installed", next=install) from None
    except ValueError as error:
        raise UsageError(
            f"{shown(url)} is no path, and no place that fsspec knows ({shown(first_line(error))})"
        ) from None
    return fs, str(name)


def _s3_settings() -> dict[str, Any]:
    attempts = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"total_max_attempts": S3_ATTEMPTS}}
    with suppress(ImportError):  # url_to_fs says what is missing
        return {"session": s3_session(os.getpid()), "config_kwargs": attempts}
    return {}


@cache
def s3_session(process: int) -> Any:
    """botocore's, for one process, without `Expect: 100-continue` before what is written: aiohttp waits for ever for a
    server that refuses it at once, as of a bucket that may not be written."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    return session


def _http_settings(url: str) -> dict[str, Any]:
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        next = f"pip install 'brics-cli[{EXTRAS['http']}]'"
        raise UsageError(f"{shown(url)}: aiohttp, which fsspec reads http with, is not installed", next=next) from None
    return {"trust_env": True, "timeout": ClientTimeout(total=None, sock_connect=ANSWER_S, sock_read=ANSWER_S)}


def listed(info: Mapping[str, Any]) -> Listed:
    """What fsspec says of a file, in short."""
    said = next((name for name in _VERSIONS if info.get(name)), None)
    value = None if said is None else info[said]
    value = value.timestamp() if isinstance(value, datetime) else value
    text = f"{value:.3f}" if isinstance(value, float) else str(value).strip('"')  # lists and single answers differ
    size = info.get("size")
    return Listed(str(info["name"]), -1 if size is None else int(size), "" if said is None else f"{said} {text}")


@contextmanager
def explained(url: str, *, doing: Literal["read", "write"] = "read") -> Iterator[None]:
    """What a file system raises in the block, which tries to be `doing` something at `url`, as an error for a user:
    ArtefactError for what is not there, MachineError for what is forbidden or out of reach; the local disk's as it is.
    """
    place = shown(url)
    try:
        yield
    except (BricsError, AssertionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
            raise
        cause = _said(error)
        text = shown(first_line(cause))
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in _GONE:
            raise ArtefactError(f"{place} is not there", next="Check the address.") from None
        if _is_forbidden(cause):
            raise MachineError(
                f"{protocol_of(url)}:// does not let you {doing} {place} ({text})",
                next="Check the credentials, which are taken from where its own tools take them.",
            ) from None
        raise MachineError(
            f"{place} cannot be {'read' if doing == 'read' else 'written'} ({type(cause).__name__}: {text})",
            next="Check the address and the network. Then run the same command again.",
        ) from None


def _said(error: BaseException) -> BaseException:
    """What a server said: fsspec's http calls every answer that is no file, and none, a FileNotFoundError."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or not type(cause).__module__.startswith("aiohttp"):
        return error
    return error if getattr(cause, "status", None) in _GONE else cause


def is_absent(error: FileNotFoundError) -> bool:
    """Whether it says that nothing is there, and not that the server could not answer."""
    return _said(error) is error


def _is_forbidden(error: BaseException) -> bool:
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    return isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__


def patiently(do: Callable[[], Value], *, fs: Any, told: Callable[[str], None]) -> Value:
    """`do()`, again with back-off where a transfer broke and `fs` is none of those that try again themselves.

    `told` hears of every other try. What is not there, not allowed, or the local disk's, is raised at once.
    """
    tries = 2 if getattr(fs, "retries", 0) else TRIES
    for attempt in range(1, tries + 1):
        try:
            return do()
        except (BricsError, PermissionError, NotImplementedError):
            raise
        except Exception as error:
            cause = _said(error)
            status = getattr(cause, "status", None)
            is_final = isinstance(cause, FileNotFoundError) or status in range(400, 500) or _is_forbidden(cause)
            is_final |= isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE
            if is_final or attempt == tries:
                raise
            told(f"{type(cause).__name__}: {shown(first_line(cause))}; trying again, {attempt} of {tries - 1}")
            time.sleep(BACK_OFF_S * 2 ** (attempt - 1))
    raise AssertionError("not reached")


def fetch(fs: Any, file: Listed, target: Path, *, url: str, told: Callable[[str], None]) -> None:
    """Fetch `file`, whole, to the path `target`, where nothing is; `told` hears of transfers that broke.

    Raises ArtefactError when it is not there any more, or not of the size and version that it was listed with;
    MachineError when it cannot be read; OSError of the local disk.
    """

    def transfer() -> None:
        target.unlink(missing_ok=True)
        fs.get_file(file.name, str(target))
        num_bytes = target.stat().st_size
        if file.size >= 0 and num_bytes != file.size and version(fs, file.name) == file:
            raise ConnectionError(f"{num_bytes:,} of {file.size:,} bytes arrived")

    with explained(url):
        patiently(transfer, fs=fs, told=told)
        if file.size >= WORTH_A_LOOK or file.size != target.stat().st_size:
            check_version(file, patiently(lambda: version(fs, file.name), fs=fs, told=told), url=url)


def check_version(file: Listed, now: Listed | None, *, url: str) -> None:
    """Raise ArtefactError when `file`, of `url`, is not what it was listed as, but what it is `now`."""
    if now is None or (now.size, now.version) != (file.size, file.version):
        is_now = "is gone" if now is None else f"is {now.size:,} bytes ({now.version or 'no version'})"
        raise ArtefactError(
            f"{shown(url)} changed while it was being read: it was {file.size:,} bytes "
            f"({file.version or 'no version'}), and {is_now}",
            next="Wait until nobody writes there, and run the same command again.",
        )


def files_at(fs: Any, name: str, info: Mapping[str, Any]) -> list[Listed]:
    """The file `name`, or all files in the folder that it is, by what `fs` said of it."""
    if info["type"] == "directory":
        return [listed(row) for row in fs.find(name, detail=True).values()]
    return [listed({**info, "name": name})]


def version(fs: Any, name: str) -> Listed:
    """What is at `name` now, asked for and not remembered."""
    fs.invalidate_cache()
    return listed({"name": name, **fs.info(name)})._replace(name=name)


def version_if_there(fs: Any, name: str) -> Listed | None:
    """The same; None where nothing is there any more."""
    try:
        return version(fs, name)
    except FileNotFoundError as error:
        if not is_absent(error):
            raise
        return None


def is_there(url: str) -> bool:
    """Whether a file is at `url`. Raises what `explained` raises, but for what is not there."""
    fs, name = open_place(url)
    with explained(url):
        return version_if_there(fs, name) is not None
