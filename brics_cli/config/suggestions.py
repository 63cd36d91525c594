"""'Did you mean' for names a user typed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from brics_cli.errors import UsageError

MOST_BEGUN = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the few of `known` that begin with `name`, or the nearest, in any case; else the
    whole list when it is short, else `""`."""
    known = list(known)
    folded = {each.casefold(): each for each in known}
    near = [each for fold, each in folded.items() if len(name) > 1 and fold.startswith(name.casefold())]
    if not 1 <= len(near) <= MOST_BEGUN:
        near = [folded[fold] for fold in get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    if known and len(known) <= 12:
        return f"; there are: {', '.join(known)}"
    return ""


def check_known(name: str | None, known: Iterable[str], *, option: str, what: str) -> None:
    """Raise UsageError for a name that is not one of `known`: `--format 'jpg' is not a format`; None is not checked."""
    known = list(known)
    if name is not None and name not in known:
        raise UsageError(f"{option} {name!r} is not a {what}{did_you_mean(str(name), known)}")
