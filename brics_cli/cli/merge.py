"""`brics merge`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.batch import report_verification, say_if_complete
from brics_cli.cli.output import Session
from brics_cli.wording import count, human_bytes

app = options.command_app()


@app.command()
def merge(
    stores: Annotated[
        list[Path],
        typer.Argument(metavar="STORE ...", help="Key-code stores, in the order wanted; or one that is a folder."),
    ],
    out: Annotated[
        Path, options.out_option("FILE.h5|DIR", "The joined store; a folder links to the parts of folders.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every invariant of the joined store, as `brics info --verify`.")
    ] = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Join key-code stores into one.

    The stores must be of one autoencoder and transform, and no image may be in two of them. All parts of a collection
    (`brics encode-dataset --part I/N`) give the store that one run would have given; other stores follow one another,
    which is how a collection grows. One store that is a folder becomes one file.

    Example: brics merge codes-1-of-2.h5 codes-2-of-2.h5 --out codes.h5
    """
    from brics_cli.jobs.merge import merge as run
    from brics_cli.jobs.merge import plan_merge

    session = Session(quiet=quiet, as_json=as_json)
    join = plan_merge(stores, out=out)
    if dry_run:
        num_bytes = join.num_rows * join.header.bytes_per_image
        session.result(
            {"images": join.num_rows, "shards": len(join.shards), "bytes": num_bytes, "out": out},
            f"would join {count(len(stores), 'store')} into {out}: {join.num_rows:,} codes, "
            f"{count(len(join.shards), 'shard')}, {human_bytes(num_bytes)}",
        )
        return
    merged = run(join, out=out, overwrite=overwrite, verify=verify, reporter=session.reporter)
    say_if_complete(session, merged.path, merged.already_complete)
    session.result(
        asdict(merged),
        f"{merged.num_images:,} codes of {count(merged.num_shards, 'shard')} from {count(merged.num_stores, 'store')}: "
        f"{merged.path}",
    )
    report_verification(session, merged.path, merged.broken)
    session.next_step("brics", "train-diffusion", merged.path)
