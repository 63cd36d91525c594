"""`brics models`: list them, or publish one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.output import Session, plain_table
from brics_cli.wording import human_bytes

if TYPE_CHECKING:
    from brics_cli.jobs.models import ModelEntry

app = options.command_app(invoke_without_command=True)


@app.callback()
def models(context: typer.Context, workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """List the models that are embedded in brics and those of the workspace, or publish one.

    Give a name, a run or hf://user/name wherever a model is asked for: --ae, --model, --init-from. The quality is what
    the run measured on its own validation images.

    Example: brics models --json
    """
    if context.invoked_subcommand is not None:
        return
    from brics_cli.jobs.models import list_models

    session = Session(workspace=workspace, as_json=as_json)
    entries = list_models(session.workspace, reporter=session.reporter)
    table = plain_table("model", "kind", "size", "codes", "quality", "licence")
    for entry in entries:
        table.add_row(
            entry.name,
            entry.kind,
            human_bytes(entry.num_bytes),
            _codes(entry),
            ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in entry.quality.items()) or "-",
            entry.licence or "-",
        )
    nothing = f"no model in {session.workspace.root.resolve()} yet, and none is embedded"
    session.result([asdict(entry) for entry in entries], table if entries else nothing)
    if entries:
        session.next_step("brics", "info", entries[0].name)
    else:
        session.next_step("brics", "train-ae", "IMAGES")


def _codes(entry: ModelEntry) -> str:
    """`16 x 8 x 8`; where images may be of any size, `16 x H/8 x W/8`."""
    if entry.downsampling is None:
        return " x ".join(map(str, entry.code_shape))
    return f"{entry.code_shape[0]} x H/{entry.downsampling} x W/{entry.downsampling}"


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run, or a key-code store.")],
    to: Annotated[str, typer.Argument(metavar="hf://USER/NAME", help="Or hf://datasets/USER/NAME, for stores.")],
    ae: options.AutoencoderRun = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="ID", help="What others may do with it, such as cc-by-4.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print its card and its files, send nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the repository holds; its history keeps that.")
    ] = False,
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Publish a trained run or a key-code store on the Hugging Face Hub, with a card of what it is and was measured.

    The token is that of `hf auth login`, or HF_TOKEN. Paths of this machine are not published, but for what a store
    says of its own source.

    Example: brics models push runs/autoencoder/demo hf://user/my-autoencoder --licence cc-by-4.0
    """
    from brics_cli.jobs.push import push as run_push

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    pushed = run_push(
        run,
        to,
        autoencoder=ae,
        licence=licence,
        private=private,
        overwrite=overwrite,
        dry_run=dry_run,
        workspace=session.workspace,
        reporter=session.reporter,
    )
    files = [f"{name}  {human_bytes(num_bytes)}" for name, num_bytes in sorted(pushed.files.items())]
    session.result(asdict(pushed), [*files, *(pushed.card.splitlines() if dry_run else [pushed.address])])
    use = {
        "autoencoder": ("reconstruct", "IMAGE", "--ae"),
        "diffusion": ("sample", "--n", "16", "--model"),
        "store": ("train-diffusion",),
    }
    if not dry_run:
        session.next_step("brics", *use[pushed.kind], pushed.address)
