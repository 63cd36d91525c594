"""Reading text and JSON that anybody may have written: no more than so many bytes, and no deeper than so many levels.

Whatever is wrong is a ValueError. Nesting is limited because Python's own limit is met later, where a value is copied,
compared or shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of a file that describes something; those that list images may have more."""
MOST_LINE_BYTES = 1 << 20
MOST_DEPTH = 64
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: str | bytes, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; `pairs` makes each object of its (name, value). Raises ValueError for other texts."""
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        if "set_int_max_str_digits" not in str(error):
            raise
        raise ValueError(f"it holds a number of more than {sys.get_int_max_str_digits():,} digits") from None
    if _may_be_deep(text) and _is_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


def as_json(value: Any) -> Any:
    """`value` as it is once it was written as JSON and read again: what a record on disk is compared with."""
    return json.loads(json.dumps(value, default=str))


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file. Raises ValueError when it has more than `most`, OSError as `open` does."""
    with path.open("rb") as file:
        data = file.read(most + 1)  # whatever its size is said to be: a device has none
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20:,} MiB")
    return data


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file, without a byte order mark. Raises ValueError when it is none, and as `read_bytes`."""
    return read_bytes(path, most=most).decode("utf-8-sig")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of one on each line; lines that are none (the last, cut off by a kill) are left out."""
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE_BYTES):
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


_TOO_DEEP = f"it is nested more than {MOST_DEPTH} levels deep"


def _may_be_deep(text: str | bytes) -> bool:
    """Whether brackets are left once so many levels of pairs have been taken out: too deep, or some in strings."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    left = data.translate(None, _NOT_BRACKETS)
    for _ in range(MOST_DEPTH):
        fewer = left.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(left):
            break
        left = fewer
    return bool(left)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)
