"""Options that more than one command takes, each with one name, one help text and one panel.

The vocabulary: `--n` is how many are made, `--limit` how many of what is there are looked at; `--out` what a command is
run for, `--plot` a figure of curves and `--sheet` a picture of images beside it; `--format` what images go to (files,
shards, an archive), `--codec` how each is encoded. `tests/cli/test_vocabulary.py` holds every command to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli.cli import completion
from brics_cli.cli.pages import COMMON, CommandApp
from brics_cli.config import names
from brics_cli.diffusion.samplers import DEFAULT_STEPS, SAMPLER_NAMES
from brics_cli.errors import UsageError
from brics_cli.workspace.mirrors import CACHE_GIB, DEFAULT_CACHE_GIB, bound_cache
from brics_cli.workspace.naming import Codec

command_app = CommandApp


def part_of(path: str | None, subset: str | None, image_field: str | None, *, side: str = "") -> str | None:
    """The path of `subset` of the collections at --SIDE (else --data), and of its images `image_field`."""
    if subset is None and image_field is None:
        return path
    from brics_cli.images.opening import subset_path

    if path is None:
        name, value = ("subset", subset) if subset is not None else ("image-field", image_field)
        raise UsageError(f"--{side and side + '-'}{name} {value} goes with --{side or 'data'} PATH")
    return subset_path(path, subset, image_field)


def out_option(metavar: str, help: str) -> Any:
    """`--out`, `-o`: what a command is run for."""
    return typer.Option("--out", "-o", metavar=metavar, help=help)


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
        "--device",
        metavar="DEVICE",
        help="cuda, cuda:N, mps, cpu, or auto: CUDA where there is one, else the CPU.",
        rich_help_panel=COMMON,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="As everywhere; or several, one process each: cuda:0,cuda:1, cuda:* for all, cpu,cpu.",
        rich_help_panel=COMMON,
    ),
]
CLUSTER = "On a cluster"
Executor = Annotated[
    names.ExecutorName,
    typer.Option(
        "--executor",
        help="Where the work is done: on this machine, or by workers on a Ray cluster, which share its file systems.",
        rich_help_panel=CLUSTER,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The cluster of --executor ray. Default: $RAY_ADDRESS, else one of this machine alone.",
        rich_help_panel=CLUSTER,
    ),
]
CpusPerWorker = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker",
        min=1,
        metavar="N",
        help="Cores of a worker of --executor ray where no node has a GPU; else each has a GPU and its share of the "
        "cores. Default: 4, fewer where no node has so many.",
        rich_help_panel=CLUSTER,
    ),
]
MaxRetries = Annotated[
    int | None,
    typer.Option(
        "--max-retries",
        min=0,
        metavar="N",
        help="How often --executor ray gives a shard to another worker after one died over it; then it has failed. "
        "Default: 3.",
        rich_help_panel=CLUSTER,
    ),
]
CacheGib = Annotated[
    float | None,
    typer.Option(
        "--cache-gib",
        envvar=CACHE_GIB,
        metavar="GIB",
        callback=bound_cache,
        help="How much of remote data (s3://, https://, ...) is kept on this disk. Default: "
        f"{DEFAULT_CACHE_GIB:g}, at most half of what is free.",
        rich_help_panel=COMMON,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw. Default: the recipe's.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")]
Dtype = Annotated[
    names.Precision | None,
    typer.Option("--dtype", help="What the networks compute in; tf32 on CUDA. Default: bf16 on CUDA, fp32 elsewhere."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.recipe_keys,
        help="Override one recipe value by its dotted key, e.g. optimiser.lr=1e-4. Repeatable, applied in order.",
    ),
]

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|PATH",
        autocompletion=completion.recipes,
        help="A shipped recipe (`brics recipes`) or a YAML file. Default: by the data and the device.",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps. Default: the recipe's.")]
TrainBatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Samples per step, over all devices. Default: the recipe's."),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate of the networks: optimiser.lr. Default: the recipe's."),
]
TrainDtype = Annotated[
    names.Precision | None,
    typer.Option("--dtype", help="What networks compute in on CUDA; fp32 elsewhere. Default: the recipe's."),
]
RunOut = Annotated[
    Path | None, out_option("RUN", "The run directory. Default: runs/KIND/DATE-RECIPE in the workspace.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        autocompletion=completion.runs,
        help="Go on with an interrupted run, with its own settings and data.",
    ),
]
InitFrom = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="RUN|NAME",
        autocompletion=completion.runs,
        help="Start a new run from the weights of a run, an embedded model or hf://user/name (fine-tuning).",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads, or for many small images processes, that decode. Default: one per CPU core, at most 16.",
    ),
]
NumWriters = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Threads that encode images. Default: one per CPU core, at most 8."),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the complete recipe as YAML, do nothing.")]

AutoencoderRun = Annotated[
    Path | None,
    typer.Option(
        "--ae",
        metavar="RUN|NAME",
        autocompletion=completion.autoencoders,
        help="The run of an autoencoder, an embedded one's name, or hf://user/name. Default: found in the workspace.",
    ),
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

ShardCodec = Annotated[
    Codec | None,
    typer.Option("--codec", help="Of the images in shards (--format wds); webp and png are lossless. Default: png."),
]

DRAWING = "Drawing images"
"""What `sample` draws with, and `eval` where it draws on the fly."""
DiffusionRun = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="RUN",
        autocompletion=completion.denoisers,
        help="A diffusion run. Default: the newest in the workspace.",
        rich_help_panel=DRAWING,
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="A-B",
        help="The seeds, both ends included: one image each. Default: --n of them from --seed on.",
        rich_help_panel=DRAWING,
    ),
]
FirstSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="The first seed. Default: 0.", rich_help_panel=DRAWING)
]
Ema = Annotated[
    float | None,
    typer.Option(
        "--ema",
        metavar="WIDTH",
        help="Which average of the weights, 0.05 say. Default: the plain one.",
        rich_help_panel=DRAWING,
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="NAME",
        autocompletion=completion.samplers,
        help=f"{SAMPLER_NAMES}.",
        rich_help_panel=DRAWING,
    ),
]
SamplerSteps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help=f"Sampler steps. Default: {DEFAULT_STEPS}.", rich_help_panel=DRAWING),
]
Guidance = Annotated[
    float,
    typer.Option(
        "--guidance",
        help="Scale of guidance, by classes or by --guide; 1 means no guidance.",
        rich_help_panel=DRAWING,
    ),
]
Guide = Annotated[
    Path | None,
    typer.Option(
        "--guide",
        metavar="RUN",
        autocompletion=completion.denoisers,
        help="Autoguidance: a weaker model of the same codes, to be led away from. With --guidance.",
        rich_help_panel=DRAWING,
    ),
]
Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME|N",
        help="The class of every image. Default: each draws its own from its seed.",
        rich_help_panel=DRAWING,
    ),
]
Balance = Annotated[
    names.ClassBalance | None,
    typer.Option(
        "--class-balance",
        help="Classes as often as in training, or each alike; never one without images. Default: proportional.",
        rich_help_panel=DRAWING,
    ),
]
Clip = Annotated[
    bool,
    typer.Option(
        "--clip/--no-clip", help="Limit each estimate to the range that codes can have.", rich_help_panel=DRAWING
    ),
]
