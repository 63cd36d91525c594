"""`brics cache`: the features of reference collections that eval keeps."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.errors import ExitCode, UsageError
from brics_cli.wording import human_bytes

app = options.command_app(
    no_args_is_help=True,
    help="List and prune the features of reference collections that eval keeps.\n\nExample: brics cache list",
)

_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@app.command("list")
def list_entries(as_json: options.Json = False) -> int:
    """List what is kept: of which images, in which network, how large, when last used.

    Example: brics cache list
    """
    from brics_cli.evaluation import cache
    from brics_cli.workspace.mirrors import cached_bytes, root

    session = Session(as_json=as_json)
    entries = cache.entries()
    table = plain_table("images", "network", "N", "rows", "size", "last used")
    for entry in entries:
        age = (time.time() - entry.used) / 86400
        used = "today" if age < 1 else f"{age:.0f} days ago"
        rows = "yes" if entry.has_rows else "-"
        table.add_row(
            entry.description, entry.network, f"{entry.num_images:,}", rows, human_bytes(entry.num_bytes), used
        )
    total = f"{len(entries):,} entries, {human_bytes(sum(entry.num_bytes for entry in entries))}"
    session.result([asdict(entry) for entry in entries], [table, total] if entries else "nothing is cached")
    session.reporter.message(f"brics keeps features in {cache.cache_root()}")
    if num_bytes := cached_bytes():
        session.reporter.message(f"and {human_bytes(num_bytes)} of remote data in {root()} (--cache-gib)")
    if entries:
        session.next_step("brics", "cache", "prune", "--unused", "30d")
    return ExitCode.DONE


@app.command()
def prune(
    unused: Annotated[
        str | None, typer.Option("--unused", metavar="AGE", help="Remove what was not used for so long: 12h, 30d, 8w.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Then remove the longest unused until so much is left: 5G."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    as_json: options.Json = False,
) -> int:
    """Remove cached features. They are computed again when they are needed.

    With --all also what was fetched from URLs, and what is remembered of collections and stores, to recognise them
    without reading them again.

    Example: brics cache prune --unused 30d
    """
    from brics_cli.evaluation import cache
    from brics_cli.workspace.files import forget

    if everything == (unused is not None or max_size is not None):
        raise UsageError("brics cache prune removes by --unused AGE, --max-size SIZE, or --all")
    session = Session(as_json=as_json)
    removed = cache.prune(
        unused_s=None if unused is None else _measure(unused, _SECONDS, "--unused", "12h, 30d or 8w"),
        max_bytes=None if max_size is None else int(_measure(max_size, _BYTES, "--max-size", "500M or 5G")),
    )
    if everything:
        for kind in ("digests", "outlines", "remote"):
            forget(kind)
    freed = human_bytes(sum(entry.num_bytes for entry in removed))
    session.result([asdict(entry) for entry in removed], f"removed {len(removed):,} entries, {freed}")
    session.next_step("brics", "cache", "list")
    return ExitCode.DONE


def _measure(text: str, units: dict[str, float] | dict[str, int], flag: str, example: str) -> float:
    """`30d` -> seconds, `5G` -> bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]?)(?:i?B)?", text.strip())
    unit = "" if found is None else found.group(2)
    scale = units.get(unit, units.get(unit.upper()))
    if found is None or scale is None:
        raise UsageError(f"{flag} {text!r} is not understood", next=f"Write it as {example}.")
    return float(found.group(1)) * scale
