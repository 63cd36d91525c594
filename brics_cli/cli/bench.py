"""`brics bench`: one subcommand per benchmark. What a benchmark measures and shows is in `brics_cli.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brics_cli.bench.choices import DEFAULT_VARIANTS, SCALES, VARIANTS
from brics_cli.cli import completion, options
from brics_cli.cli.output import Session, plain_table
from brics_cli.cli.pages import Old
from brics_cli.config.names import Precision
from brics_cli.diffusion.samplers import SAMPLER_NAMES
from brics_cli.workspace.naming import Codec

if TYPE_CHECKING:
    from brics_cli.bench.timing import Report

app = options.command_app(no_args_is_help=True)

Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; the median is reported.")]
AutoencoderRecipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME|PATH",
        autocompletion=completion.recipes,
        help="A recipe of autoencoders (`brics recipes`) or a YAML file.",
    ),
]


@app.callback()
def bench() -> None:
    """Measure speed on the device at hand.

    Every figure is a median of repeats after a warm-up, with the device waited for, and comes with the device's name.

    Example: brics bench train --recipe brics-256
    """


def _show(session: Session, report: Report) -> None:
    shown = []
    for part in report.shown:
        if not isinstance(part, str):
            table = plain_table(*part.columns, title=part.title)
            for row in part.rows:
                table.add_row(*row)
        shown.append(part if isinstance(part, str) else table)
    session.result(report.value, shown)


@app.command()
def bottlenecks(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A collection of images: folder, shards, ... Default: squares of the photographs inside scikit-image.",
        ),
    ] = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val", metavar="DATA", help="Held-out images. Default: a tenth of DATA, whole clusters of look-alikes."
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help=f"One of {', '.join(VARIANTS)}. Repeatable. Default: {', '.join(DEFAULT_VARIANTS)}.",
        ),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            "--noise", min=0, max=0.5, help="Training noise on bounded codes. Repeatable. Default: the recipe's."
        ),
    ] = None,
    recipe: AutoencoderRecipe = "tiny",
    steps: options.Steps = None,
    batch_size: options.TrainBatchSize = None,
    lr: options.LearningRate = None,
    dtype: options.TrainDtype = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", min=0, help="Repeatable. Default: 0.")] = None,
    overrides: options.Set = None,
    own_cost: Annotated[
        bool,
        typer.Option("--own-cost", help="Leave the feature MLP as it is; else it is widened to the recipe's GFLOP."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            Old("--results"),
            metavar="FILE.json",
            help="Keep every finished row here; a second call does the rest.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Plot PSNR against the noise on the codes: .png, .pdf or .svg."),
    ] = None,
    num_workers: options.NumWorkers = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every bottleneck under the same encoder, decoder, losses, steps and cost, and score it on held-out images.

    Cost is counted from codes to pixels: what a variant saves against the recipe's own bottleneck goes into the hidden
    width of its feature MLP. PSNR in dB with clean codes, with noise on the codes (`at .1`: of a tenth of the codes'
    standard deviation) and with codes of 8 and 5 bits; `path` is the length of the decoded path between two images'
    codes over the distance of its ends (1: a cross-fade), `jump` its largest step over its mean step (1: even).

    Example: brics bench bottlenecks --data ./shards --variant grid --variant vq --steps 1000
    """
    from brics_cli.bench.bottlenecks import bench_bottlenecks
    from brics_cli.runtime.device import resolve_device
    from brics_cli.training.plan import TrainOptions

    asked = TrainOptions(overrides=overrides or (), batch_size=batch_size, lr=lr, precision=dtype)
    session = Session(as_json=as_json, quiet=quiet)
    report = bench_bottlenecks(
        variants or (), data=options.part_of(data, subset, image_field), val=val, noise=noise or (),
        seeds=seeds or (), recipe=recipe, overrides=asked.settings, steps=steps, equal_cost=not own_cost,
        results=out, plot_to=plot, overwrite=overwrite, device=resolve_device(device), num_workers=num_workers,
        reporter=session.reporter,
    )  # fmt: skip
    _show(session, report)


@app.command()
def codecs(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files.")],
    ae: Annotated[
        Path,
        typer.Option(
            "--ae",
            metavar="RUN|NAME",
            autocompletion=completion.autoencoders,
            help="The run of an autoencoder, or an embedded one's name.",
        ),
    ] = Path("brics-mini"),
    size: Annotated[int, typer.Option("--size", min=16, help="Of the centre square, px.")] = 256,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """PSNR and SSIM of codes, beside JPEG and WebP of as many bytes, bicubic and DCT of as many numbers.

    Codes are measured as a store keeps them, before they are rounded, and with noise of 0.02.

    Example: brics bench codecs photographs/*.jpg --ae brics-mini
    """
    from brics_cli.bench.codecs import bench_codecs
    from brics_cli.runtime.device import resolve_device

    report = bench_codecs(images, autoencoder=ae, size=size, precision=dtype, device=resolve_device(device))
    _show(Session(as_json=as_json), report)


@app.command()
def encode(
    num_images: Annotated[
        int, typer.Option("--n", Old("--num-images"), min=100, help="How many images are encoded.")
    ] = 4000,
    codec: Annotated[Codec, typer.Option("--codec", Old("--format"), help="Of the image files.")] = "jpeg",
    width: Annotated[int, typer.Option("--width", min=16, help="Of the image files, px; they are 3/4 as high.")] = 341,
    size: Annotated[int, typer.Option("--size", min=16, help="Of the square that is encoded, px.")] = 256,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|PATH",
            autocompletion=completion.recipes,
            help="Encode with this recipe's network too. Default: brics-256 on CUDA, else none.",
        ),
    ] = None,
    dtype: options.Dtype = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 3,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """encode-dataset without its network against decoding and cropping alone, and peak memory.

    Example: brics bench encode --n 2000 --size 256
    """
    from brics_cli.bench.encode import bench_encode
    from brics_cli.runtime.device import resolve_device

    report = bench_encode(
        num_images=num_images, width=width, codec=codec, size=size, repeats=repeats, recipe=recipe,
        precision=dtype, device=resolve_device(device), num_workers=num_workers, batch_size=batch_size,
    )  # fmt: skip
    _show(Session(as_json=as_json), report)


@app.command()
def remote(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the shards are put: s3://bucket/bench, say.")],
    num_images: Annotated[int, typer.Option("--n", min=100, help="How many images are encoded.")] = 2000,
    size: Annotated[int, typer.Option("--size", min=16, help="Of the square that is encoded, px.")] = 128,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", metavar="NAME|PATH", autocompletion=completion.recipes, help="Encode with its network."
        ),
    ] = "brics-mini",
    dtype: options.Dtype = None,
    num_workers: options.NumWorkers = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 3,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """encode-dataset from a URL, with an empty cache, against encode-dataset from the disk.

    Example: brics bench remote s3://bucket/bench
    """
    from brics_cli.bench.remote import bench_remote
    from brics_cli.runtime.device import resolve_device

    report = bench_remote(
        url, num_images=num_images, size=size, recipe=recipe, repeats=repeats, device=resolve_device(device),
        precision=dtype, num_workers=num_workers,
    )  # fmt: skip
    _show(Session(as_json=as_json), report)


@app.command("eval")
def evaluation(
    num_images: Annotated[
        int, typer.Option("--n", Old("--num-images"), min=32, help="How many images of 256 px are scored.")
    ] = 1000,
    memory_images: Annotated[
        int, typer.Option("--memory-images", min=5000, help="Images whose features are gathered for the peak memory.")
    ] = 50_000,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """FID and all metrics beside the networks' forwards alone; the Fréchet step beside scipy's; memory.

    Each row is one timed run: measure on a machine that has nothing else to do.

    Example: brics bench eval --n 1000
    """
    from brics_cli.bench.evaluate import bench_evaluate
    from brics_cli.runtime.device import resolve_device

    session = Session(quiet=quiet, as_json=as_json)
    report = bench_evaluate(
        num_images=num_images, memory_images=memory_images, device=resolve_device(device), reporter=session.reporter
    )
    _show(session, report)


@app.command()
def executor(
    num_tasks: Annotated[int, typer.Option("--n", min=200, help="Tasks without work that are scheduled.")] = 5000,
    num_listed: Annotated[
        int, typer.Option("--of", min=200, help="Tasks of the whole run, which the driver holds.")
    ] = 1_000_000,
    num_workers: Annotated[int, typer.Option("--workers", min=1, help="Workers on this machine.")] = 2,
    task_s: Annotated[
        float, typer.Option("--task-seconds", min=0, help="How long each of those tasks sleeps, as encoding takes.")
    ] = 0.0,
    num_shards: Annotated[
        int, typer.Option("--shards", min=2, help="Shards of 1,000 images that one worker encodes.")
    ] = 5,
    repeats: Annotated[
        int, typer.Option("--repeats", min=0, help="Encodings by each executor; medians are reported.")
    ] = 1,
    as_json: options.Json = False,
) -> None:
    """What --executor ray costs: scheduling per task, the driver's memory, img/s beside the local executor's.

    Example: brics bench executor --n 20000 --repeats 3
    """
    from brics_cli.bench.executor import bench_executor

    report = bench_executor(
        num_tasks=num_tasks, num_listed=num_listed, num_workers=num_workers, task_s=task_s, num_shards=num_shards,
        repeats=repeats,
    )  # fmt: skip
    _show(Session(as_json=as_json), report)


@app.command()
def pack(
    num_images: Annotated[
        int, typer.Option("--n", min=8, max=1000, help="How many images are packed, JPEG photographs.")
    ] = 780,
    width: Annotated[int, typer.Option("--width", min=16, help="Of the image files, px; they are 3/4 as high.")] = 1024,
    size: Annotated[int, typer.Option("--size", min=16, help="Of the squares that are packed, px.")] = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 3,
    as_json: options.Json = False,
) -> None:
    """Processor time and bytes of pack, by transform and codec, beside what EDM's dataset_tool.py does.

    Example: brics bench pack --n 780 --width 1024 --size 256
    """
    from brics_cli.bench.pack import bench_pack

    report = bench_pack(num_images=num_images, width=width, size=size, repeats=repeats)
    _show(Session(as_json=as_json), report)


@app.command()
def retrieval(
    scales: Annotated[
        list[str] | None,
        typer.Option("--scale", metavar="NAME", help=f"{', '.join(SCALES)}. Repeatable. Default: all."),
    ] = None,
    dtype: Annotated[Precision, typer.Option("--dtype", Old("--tables-dtype"), help="Numbers in the grids.")] = "fp32",
    batch_size: options.BatchSize = 8,
    repeats: Repeats = 10,
    budget: Annotated[
        float, typer.Option("--budget", min=0, help="Seconds per figure after which it makes do with fewer repeats.")
    ] = 10.0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Feature-grid retrieval: milliseconds per image of each backend, and how near the memory's floors that is.

    The floors are bytes over the bandwidth of a copy on the same device: `unique` moves every byte once, `corners`
    reads every corner of every look-up. 50% means twice the floor's time; caches can go beyond 100% of `corners`. Peak
    memory (CUDA only) is that of a forward and backward pass, above keys, tables and gradient.

    Example: brics bench retrieval --batch-size 32 --dtype bf16
    """
    from brics_cli.bench.retrieval import bench_retrieval
    from brics_cli.runtime.device import resolve_device

    report = bench_retrieval(
        device=resolve_device(device), batch_size=batch_size, repeats=repeats, scales=scales,
        tables_dtype=dtype, budget_s=budget,
    )  # fmt: skip
    _show(Session(as_json=as_json), report)


@app.command()
def sample(
    model: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A diffusion run, as --model.", hidden=True)
    ] = None,
    model_: options.DiffusionRun = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|PATH",
            autocompletion=completion.recipes,
            help="A diffusion recipe with random weights instead of a run.",
        ),
    ] = None,
    ae_recipe: Annotated[
        str | None,
        typer.Option(
            "--ae-recipe",
            metavar="NAME|PATH",
            help="Its autoencoder, random too. Default: the recipe of the same name, or brics-256.",
        ),
    ] = None,
    overrides: options.Set = None,
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            autocompletion=completion.samplers,
            help=f"{SAMPLER_NAMES}. Repeatable. Default: all.",
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="Repeatable. Default: each sampler's own, and a figure beside it."),
    ] = None,
    dtype: options.Dtype = None,
    guidance: options.Guidance = 1.0,
    guide: Annotated[
        str | None,
        typer.Option("--guide", metavar="RUN|RECIPE", help="Autoguidance: a weaker run or, with --recipe, a recipe."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images per batch. Default: 64 on CUDA, else 4."),
    ] = None,
    repeats: Repeats = 3,
    budget: Annotated[
        float,
        typer.Option("--budget", min=0, help="Seconds per figure, after which it is scaled from a shorter walk (~)."),
    ] = 20.0,
    device: options.Device = "auto",
    workspace: options.Workspace = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """What an image costs: seconds and GFLOP of each sampler and step count, the decoder's share, img/s by batch size.

    GFLOP are counted, 2 per multiply-add, and stand beside the 301 TFLOP counted for the authors' release. Seconds are
    those of `brics sample` without its writing.

    Example: brics bench sample --recipe brics-dit-s --ae-recipe brics-256
    """
    from brics_cli.bench.sample import bench_sample
    from brics_cli.runtime.device import resolve_device

    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    report = bench_sample(
        model_ or model, recipe=recipe, ae_recipe=ae_recipe, overrides=overrides or (), samplers=samplers or (),
        steps=steps or (), guidance=guidance, guide=guide, batch_size=batch_size, repeats=repeats, budget_s=budget,
        precision=dtype, device=resolve_device(device), workspace=session.workspace, reporter=session.reporter,
    )  # fmt: skip
    _show(session, report)


@app.command()
def store(
    num_rows: Annotated[
        int,
        typer.Option(
            "--n", Old("--num-rows"), min=1000, help="How many rows of 16 x 16 x 16 uint8 are written, 4 KiB each."
        ),
    ] = 50000,
    batch_size: options.BatchSize = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; medians are reported.")] = 5,
    parts: Annotated[
        int | None,
        typer.Option("--parts", min=100, help="Instead, read a folder of so many parts of 10,000 rows, all zeros."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Writing a key-code store, and reading random batches of it against numpy.memmap.

    With --parts: opening a folder, and reading it at random and in shuffled windows, against one file.

    Example: brics bench store --n 100000
    """
    from brics_cli.bench.folder import bench_folder
    from brics_cli.bench.store import bench_store

    if parts is None:
        report = bench_store(num_rows=num_rows, batch_size=batch_size, repeats=repeats)
    else:
        report = bench_folder(num_parts=parts, batch_size=batch_size, repeats=repeats)
    _show(Session(as_json=as_json), report)


@app.command()
def train(
    recipe: AutoencoderRecipe = "tiny",
    batch_size: options.TrainBatchSize = None,
    dtype: options.TrainDtype = None,
    overrides: options.Set = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Images to read, so that waiting counts. Default: random ones."),
    ] = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="With torch.compile or without. Default: as the recipe says."),
    ] = None,
    repeats: Repeats = 10,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """A recipe's training step: images per second, where the time goes, and peak memory.

    With the discriminator when the recipe has one.

    Example: brics bench train --recipe brics-256 --compile
    """
    from brics_cli.bench.train import bench_train
    from brics_cli.config import AutoencoderRecipe, load_recipe
    from brics_cli.runtime.device import resolve_device
    from brics_cli.training.plan import TrainOptions

    session = Session(as_json=as_json)
    asked = TrainOptions(overrides=overrides or (), batch_size=batch_size, precision=dtype)
    loaded = load_recipe(recipe, kind="autoencoder", overrides=asked.settings, training__compile=compile_)
    assert isinstance(loaded, AutoencoderRecipe)
    part, on = options.part_of(data, subset, image_field), resolve_device(device)
    _show(session, bench_train(loaded, device=on, repeats=repeats, reporter=session.reporter, data=part))
