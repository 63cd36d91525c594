"""Options that more than one command takes, each with one name, one help text and one panel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli.config import names

COMMON = "Common"


def command_app(**settings: Any) -> typer.Typer:
    """The typer app of one command or command group: help in Markdown, so that docstrings may be wrapped."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False, **settings)


Workspace = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        envvar="BRICS_WORKSPACE",
        metavar="DIR",
        help="Where runs are written and left-out arguments are looked up. Default: the current directory.",
        rich_help_panel=COMMON,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no messages; warnings stay.", rich_help_panel=COMMON)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=COMMON)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what brics made at --out before.", rich_help_panel=COMMON)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done (counts, shapes, bytes, time), do nothing.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="cuda, cuda:N, mps, cpu, or auto: the first of these there is.", rich_help_panel=COMMON
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        help="As everywhere; or several, one process each: cuda:0,cuda:1, cuda:\\* for all, cpu,cpu.",
        rich_help_panel=COMMON,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")]
Dtype = Annotated[
    names.Precision | None,
    typer.Option("--dtype", help="Arithmetic of the encoder. Default: bf16 on CUDA, fp32 elsewhere."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one recipe value by its dotted key, e.g. optimiser.lr=1e-4. Repeatable, applied in order.",
    ),
]

Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME|PATH", help="A shipped recipe (`brics recipes`) or a YAML file.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]
RunOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="RUN", help="The run directory. Default: runs/KIND/DATE-RECIPE in the workspace."),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run, with its own settings and data."),
]
InitFrom = Annotated[
    Path | None,
    typer.Option("--init-from", metavar="RUN", help="Start a new run from this run's weights (fine-tuning)."),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads, or for many small images processes, that decode. Default: one per CPU core, at most 16.",
    ),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the complete recipe as YAML, do nothing.")]

AutoencoderRun = Annotated[
    Path | None,
    typer.Option("--ae", metavar="RUN", help="The autoencoder's run directory. Default: found in the workspace."),
]
MaxFailures = Annotated[
    int | None,
    typer.Option("--max-failures", min=0, help="Stop once more images than this have failed. Default: never."),
]

Subset = Annotated[
    str | None,
    typer.Option(
        "--subset",
        metavar="NAME",
        help="Which collection or split, where the path holds several: church_outdoor_train, val, a subfolder; or all.",
    ),
]


ImageField = Annotated[
    str | None,
    typer.Option(
        "--image-field",
        metavar="FIELD,...",
        help="Which image, where samples hold several (000.left.png, 000.right.png): left.png; or all.",
    ),
]


Labels = Annotated[
    names.Labels | None,
    typer.Option(
        "--labels", help="`folder`: top-level folders (in a zip or tars too) are classes; `none`: read no labels."
    ),
]
