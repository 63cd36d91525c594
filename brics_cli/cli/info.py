"""`brics info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, human_bytes, plain_table
from brics_cli.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from brics_cli.jobs.info import Description

app = options.command_app()


@app.command()
def info(
    path: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(metavar="[PATH]", help="A key-code store, a run, or a collection of images."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every promise of a store: counts, order, hashes, statistics.")
    ] = False,
    subset: options.Subset = None,
    flops: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--flops", metavar="RECIPE", help="Count a recipe's GFLOP and parameters instead."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Describe a store, a run or a collection; count a recipe's GFLOP.

    Example: brics info codes.h5 --verify
    """
    session = Session(as_json=as_json)
    if (path is None) == (flops is None):
        raise UsageError("give either a PATH or --flops RECIPE", next="Example: brics info codes.h5")
    if flops is not None:
        if subset is not None:
            raise UsageError("--subset goes with a PATH, and --flops has none")
        _print_flops(session, flops)
        return
    from brics_cli.jobs.info import describe

    described = describe(str(path), verify=verify, subset=subset)
    session.result(asdict(described), _text(described))
    if described.broken:
        raise ArtefactError(
            f"{described.path} breaks {len(described.broken)} promises of its format, first: {described.broken[0]}",
            next="Make it again: brics encode-dataset IMAGES --out codes.h5",
        )


def _text(described: Description) -> list[RenderableType]:
    from brics_cli.jobs.info import MAX_LISTED_FAILURES

    parts: list[RenderableType] = [f"{described.what} {described.path}"]
    width = max((len(name) for name in described.facts), default=0)
    parts += [f"  {name.replace('_', ' '):{width}}  {_show(name, value)}" for name, value in described.facts.items()]
    failures = described.failures[:MAX_LISTED_FAILURES]
    parts += [f"failed: {failure['key']}: {failure['reason']}" for failure in failures]
    if len(described.failures) > len(failures):
        parts.append(f"... and {len(described.failures) - len(failures):,} more (--json lists them all)")
    if described.broken is not None:
        parts += [f"broken: {line}" for line in described.broken] or ["verified: every promise of the format holds"]
    return parts


def _show(name: str, value: Any) -> str:
    if name == "bytes" or name.endswith("_bytes"):
        return human_bytes(value)
    if name == "code_shape":
        return " x ".join(str(side) for side in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _print_flops(session: Session, recipe: str) -> None:
    from brics_cli.jobs.info import count_flops

    rows = count_flops(recipe)
    has_ratio = any(row["vqgan_f16_ratio"] is not None for row in rows)
    last = ["of VQGAN-f16's decoder"] if has_ratio else []
    table = plain_table("part", "GFLOP", "M parameters", *last, title=f"{recipe}, forward pass of one image")
    for row in rows:
        ratio = row["vqgan_f16_ratio"]
        shown = f"{ratio:.3f}x" if ratio is not None else ""
        table.add_row(row["part"], f"{row['gflop']:,.4g}", f"{row['params_m']:,.4g}", *[shown] * has_ratio)
    how = "2 per multiply-add; retrieval by its own formula, the same whatever computes it"
    session.result(rows, [table, how])
