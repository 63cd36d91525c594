"""`brics bench`: one subcommand per benchmark."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from brics_cli.cli import options
from brics_cli.cli.bench_bottlenecks import bottlenecks
from brics_cli.cli.bench_codes import encode, store
from brics_cli.cli.bench_eval import evaluation
from brics_cli.cli.bench_retrieval import retrieval
from brics_cli.cli.bench_sample import sample
from brics_cli.cli.output import Session, plain_table

app = options.command_app(no_args_is_help=True)

Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats; the median is reported.")]


@app.callback()
def bench() -> None:
    """Measure speed on the device at hand.

    Every figure is a median of repeats after a warm-up, with the device waited for, and comes with the device's name.
    """


app.command()(bottlenecks)
app.command()(encode)
app.command("eval")(evaluation)
app.command()(retrieval)
app.command()(sample)
app.command()(store)


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", help="An autoencoder recipe: name or path.")] = "tiny",
    overrides: options.Set = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Images to read, so that waiting counts. Default: random ones."),
    ] = None,
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
    """
    from brics_cli.bench.train import bench_train
    from brics_cli.config import AutoencoderRecipe, load_recipe
    from brics_cli.runtime.device import resolve_device

    session = Session(as_json=as_json)
    loaded = load_recipe(recipe, kind="autoencoder", overrides=overrides or (), training__compile=compile_)
    assert isinstance(loaded, AutoencoderRecipe)
    timing = bench_train(loaded, device=resolve_device(device), repeats=repeats, reporter=session.reporter, data=data)
    schedule = loaded.training
    settings = [schedule.precision, "compiled" if schedule.compile else "not compiled"]
    settings += [f"GAN {loaded.gan.loss}"] if loaded.gan.weight else []
    title = f"{loaded.name}, batch {timing.batch_size}, {', '.join(settings)}, on {timing.device}"
    table = plain_table("phase of a step", "ms", "share", title=title)
    total = sum(timing.phases_ms.values())
    for phase, milliseconds in timing.phases_ms.items():
        table.add_row(phase, f"{milliseconds:.1f}", f"{milliseconds / total:.0%}")
    lines = [
        f"{timing.img_per_s:,.1f} img/s, {timing.ms_per_step:.1f} ms per step (median of {repeats})",
        f"peak memory of {timing.memory_of} {timing.memory_gib:.2f} GiB",
    ]
    value = {"recipe": loaded.name, "compile": schedule.compile, "gan_weight": loaded.gan.weight, **asdict(timing)}
    session.result(value, [table, *lines])
