"""`brics info`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brics_cli.cli import completion, options
from brics_cli.cli.output import Session, plain_table
from brics_cli.config.changes import read_changed
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.wording import human_bytes
from brics_cli.workspace.naming import INDEX_NAME

if TYPE_CHECKING:
    from rich.console import RenderableType

    from brics_cli.jobs.info import Description

CODE_SHAPE_EXAMPLE = "Example: brics info --flops brics-dit-s --code-shape 16,32,32"
LARGEST_SIDE = 4096
"""Of a code shape: the scores of attention over more positions would not fit torch's sizes."""

NUM_CLASSES = 10
"""That are listed; --json has all."""

app = options.command_app()


@app.command()
def info(
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="A key-code store, a run, a model (hf://user/name too), or images."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every invariant of a store: counts, order, hashes, statistics.")
    ] = False,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    flops: Annotated[
        str | None,
        typer.Option(
            "--flops",
            metavar="RECIPE",
            autocompletion=completion.recipes,
            help="Count a recipe's GFLOP and parameters instead; `diffusion` or `autoencoder`: of all of that kind.",
        ),
    ] = None,
    code_shape: Annotated[
        str | None,
        typer.Option("--code-shape", metavar="C,h,w", help="Codes that --flops counts a diffusion recipe on."),
    ] = None,
    cache_gib: options.CacheGib = None,
    as_json: options.Json = False,
) -> None:
    """Describe a store, a run, a model with its card, or a collection; count a recipe's GFLOP.

    Example: brics info codes.h5 --verify
    """
    session = Session(as_json=as_json)
    if (path is None) == (flops is None):
        raise UsageError("give either a PATH or --flops RECIPE", next="Example: brics info codes.h5")
    if flops is not None:
        for option, given in (("--subset", subset), ("--image-field", image_field)):
            if given is not None:
                raise UsageError(f"{option} goes with a PATH, and --flops has none")
        _print_flops(session, flops, code_shape)
        return
    if code_shape is not None:
        raise UsageError("--code-shape goes with --flops RECIPE", next=CODE_SHAPE_EXAMPLE)
    from brics_cli.jobs.info import describe

    described = describe(str(path), verify=verify, subset=subset, image_field=image_field, reporter=session.reporter)
    session.result(asdict(described), _text(described))
    if described.broken:
        again = f"Make it again: brics encode-dataset IMAGES --out {described.path}"
        if Path(described.path).is_dir():
            index = f"{described.path}/{INDEX_NAME}"
            again = f"Remove what is broken and {index}: the command that encoded it makes that again."
        raise ArtefactError(
            f"{described.path} breaks {len(described.broken)} invariants of its format, first: {described.broken[0]}",
            next=again,
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
    if described.card is not None:
        parts += ["", *described.card.splitlines()]
    if described.broken is not None:
        parts += [f"broken: {line}" for line in described.broken] or ["verified: every invariant of the format holds"]
    return parts


def _first(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = f" and {len(listed) - NUM_CLASSES:,} more" if len(listed) > NUM_CLASSES else ""
    return ", ".join(listed[:NUM_CLASSES]) + more


def _show(name: str, value: Any) -> str:
    if name == "bytes" or name.endswith("_bytes"):
        return human_bytes(value)
    if name == "code_shape":
        return " x ".join(str(side) for side in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if name == "not_read":
        return ", ".join(f"{num:,} {what}" for what, num in value.items()) or "nothing"
    if name == "classes":
        return f"{len(value):,}: " + _first(f"{class_} ({num:,})" for class_, num in value.items())
    if name == "class_names":
        return f"{len(value):,}: " + _first(map(str, value))
    if name == "changed":
        changed = read_changed({name: value})
        return ", ".join(f"{key}={now} (recipe: {was})" for key, (was, now) in changed.items()) or "nothing"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if name == "fingerprint" and value is None:
        return "not known yet: nothing has read all of it"
    return "" if value is None else str(value)


def _print_flops(session: Session, name: str, code_shape: str | None) -> None:
    from brics_cli.jobs.info import count_flops

    counted = count_flops(name, code_shape=None if code_shape is None else _parse_code_shape(code_shape))
    if code_shape is None and counted.code_shape is not None:
        shape = ",".join(str(side) for side in counted.code_shape)
        session.reporter.message(f"--code-shape not given: counting on codes of {shape}")
    several = len({(row["recipe"], row["kind"]) for row in counted.rows}) > 1
    has_ratio = any(row["vqgan_f16_ratio"] is not None for row in counted.rows)
    last = ["of VQGAN-f16's decoder"] if has_ratio else []
    title = f"{name} recipes" if several else name
    table = plain_table("part", "GFLOP", "M parameters", *last, title=f"{title}, forward pass of one image")
    for row in counted.rows:
        part = f"{row['recipe']}: {row['part']}" if several else row["part"]
        ratio = row["vqgan_f16_ratio"]
        shown = f"{ratio:.3f}x" if ratio is not None else ""
        table.add_row(part, f"{row['gflop']:,.4g}", f"{row['params_m']:,.4g}", *[shown] * has_ratio)
    how = "2 per multiply-add; retrieval by its own formula, the same whatever computes it"
    session.result(counted.rows, [table, how])


def _parse_code_shape(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"(\d{1,5}),(\d{1,5}),(\d{1,5})", text)
    sides = [int(side) for side in found.groups()] if found else []
    if not found or not all(0 < side <= LARGEST_SIDE for side in sides):
        raise UsageError(
            f"--code-shape {text!r} is not C,h,w: three whole numbers from 1 to {LARGEST_SIDE:,}",
            next=CODE_SHAPE_EXAMPLE,
        )
    return sides[0], sides[1], sides[2]
