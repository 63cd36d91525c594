"""'Did you mean' for names a user typed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from brics_cli.errors import UsageError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the nearest of `known`, else the whole list when it is short, else `""`."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if known and len(known) <= 12:
        return f"; there are: {', '.join(known)}"
    return ""


def check_known(name: str | None, known: Iterable[str], *, option: str, what: str) -> None:
    """Raise UsageError for a name that is not one of `known`: `--format 'jpg' is not a format`; None is not checked."""
    known = list(known)
    if name is not None and name not in known:
        raise UsageError(f"{option} {name!r} is not a {what}{did_you_mean(str(name), known)}")
