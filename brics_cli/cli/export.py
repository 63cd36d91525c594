"""`brics export`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.batch import same_command_goes_on, say_if_complete
from brics_cli.cli.output import Session
from brics_cli.wording import count, human_bytes

app = options.command_app()


class Trainer(StrEnum):
    """Whose training code reads the export."""

    lightningdit = "lightningdit"


@app.command()
def export(
    codes: Annotated[
        Path | None, typer.Argument(metavar="CODES", help="A key-code store. Default: the newest in the workspace.")
    ] = None,
    to: Annotated[Trainer, typer.Option("--to", help="Whose training code is to read it.")] = Trainer.lightningdit,
    out: Annotated[
        Path | None, options.out_option("DIR", "Where the latents go. Default: latents in the workspace.")
    ] = None,
    flips: Annotated[
        bool,
        typer.Option("--flips/--no-flips", help="Codes of the mirrored images; without, latents_flip repeats latents."),
    ] = True,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Leave out the store's labels: all are of class 0.")
    ] = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Export a key-code store for another trainer.

    LightningDiT: safetensors shards of 10,000 images, float32 `latents`, `latents_flip` and `labels`, and the
    statistics that its loader looks for, `latents_stats.pt`. What its config must say is printed. Run the same command
    again after an interruption and it goes on.

    Example: brics export codes.h5 --to lightningdit --out latents
    """
    from brics_cli.jobs.export import export as run
    from brics_cli.jobs.export import plan_export

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    plan = plan_export(
        codes, out=out, flips=flips, labels=not no_labels, workspace=session.workspace, reporter=session.reporter
    )
    num_images, shape = len(plan.store), " x ".join(map(str, plan.store.code_shape))
    num_shards, num_classes = count(plan.num_shards, "shard"), count(plan.num_classes, "class")
    if dry_run:
        session.result(
            {"images": num_images, "shards": plan.num_shards, "bytes": plan.num_bytes, "num_classes": plan.num_classes,
             "settings": plan.settings, "out": plan.out},
            f"would export {num_images:,} latents {shape} for {to.value} into {num_shards} in "
            f"{plan.out}: {human_bytes(plan.num_bytes)}",
        )  # fmt: skip
        return
    with same_command_goes_on():
        exported = run(plan, overwrite=overwrite, reporter=session.reporter)
    say_if_complete(session, exported.path, exported.already_complete)
    config = " ".join(f"{name}={str(value).lower() if isinstance(value, bool) else value}"
                      for name, value in exported.settings.items())  # fmt: skip
    session.result(
        asdict(exported),
        [
            f"{exported.num_images:,} latents {shape} of {num_classes} in {num_shards}, "
            f"{human_bytes(exported.num_bytes)}: {exported.path}",
            f"its config: {config}",
        ],
    )
    session.next_step("brics", "status")
