"""`brics pack`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from brics_cli.cli import options
from brics_cli.cli.batch import executor_of, same_command_goes_on, say_if_complete, warn_about_failures
from brics_cli.cli.output import Session
from brics_cli.cli.pages import Old
from brics_cli.config import DEFAULT_TRANSFORM, Transform
from brics_cli.errors import ExitCode
from brics_cli.wording import count, human_bytes
from brics_cli.workspace.naming import Codec
from brics_cli.workspace.remote import named

app = options.command_app()


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images: a folder, WebDataset tars or a pattern of them, a zip, an LMDB, parquet, or a URL of such.",
        ),
    ],
    out: Annotated[Path, options.out_option("DIR", "The folder, or its URL, that the shards go to.")],
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Side of the square images, in pixels. Default: 256.")
    ] = None,
    transform: Annotated[
        Transform | None,
        typer.Option("--transform", help=f"How an image becomes a square. Default: {DEFAULT_TRANSFORM}."),
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option("--shard-size", min=1, help="Images per shard. Default: 1,000.")
    ] = None,
    codec: Annotated[
        Codec | None,
        typer.Option(
            "--codec", Old("--format"), help="Of the images in the shards; webp and png are lossless. Default: webp."
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option("--quality", min=1, max=100, help="Of --codec jpeg. Default: 95.")
    ] = None,
    crops: Annotated[
        int | None,
        typer.Option("--crops", min=1, metavar="N", help="Pack N random crops of every image, not the image."),
    ] = None,
    crop_scale: Annotated[
        str | None,
        typer.Option(
            "--crop-scale", metavar="LOW:HIGH", help="Scales of --crops; 1 keeps the image's pixels. Default: 0.25:1."
        ),
    ] = None,
    jitter: Annotated[
        float | None,
        typer.Option("--jitter", min=0.0, max=1.0, help="Of --crops: brightness, contrast, saturation. Default: 0."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of --crops. Default: 0.")] = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    labels: options.Labels = None,
    num_workers: options.NumWorkers = None,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    executor: options.Executor = "local",
    ray_address: options.RayAddress = None,
    cpus_per_worker: options.CpusPerWorker = None,
    max_retries: options.MaxRetries = None,
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Crop and resize a collection into WebDataset shards.

    Run it again after an interruption: it goes on after the last whole shard. Images that cannot be read are listed
    in DIR/failures.jsonl, and the exit code is 5. DIR/manifest.json, written last, lists every shard with its sha256;
    DIR/wids.json is an index for `wids`, and `datasets.load_dataset("DIR")` goes by DIR/README.md.

    Example: brics pack ./photographs --out shards --size 256
    """
    from brics_cli.jobs.pack import estimate_packing, plan_packing
    from brics_cli.jobs.pack import pack as run
    from brics_cli.workspace.uploads import staged

    session = Session(quiet=quiet, as_json=as_json)
    how: dict[str, Any] = {
        "size": size, "transform": transform, "shard_size": shard_size, "codec": codec, "quality": quality,
        "subset": subset, "labels": labels, "image_field": image_field, "crops": crops, "crop_scale": crop_scale,
        "jitter": jitter, "seed": seed,
        "executor": executor_of(
            executor, ray_address=ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries
        ),
    }  # fmt: skip
    if dry_run:
        plan = plan_packing(source, out=out, **how, reporter=session.reporter)
        estimate = estimate_packing(plan)
        value = {
            "images": plan.num_images,
            "shards": plan.num_shards,
            "out": named(out),
            "source": plan.collection.describe(),
            "not_read": plan.collection.passed_over.to_json(),
            **asdict(estimate),
        }
        failed = f"; {estimate.num_failed} of the {estimate.num_looked_at} failed" if estimate.num_failed else ""
        session.result(
            value,
            f"would pack {plan.collection.describe()} into {plan.num_shards:,} shards of {plan.size} px in "
            f"{named(out)}: about {human_bytes(estimate.shard_bytes)}, and {estimate.seconds:,.0f} s on one core "
            f"(measured on {estimate.num_looked_at} images{failed})",
        )
        return
    with same_command_goes_on(), staged(out, reporter=session.reporter) as place:
        assert place.path is not None
        plan = plan_packing(source, out=place.path, **how, reporter=place.reporter)
        packed = place.named(
            run(plan, num_workers=num_workers, overwrite=overwrite, max_failures=max_failures, reporter=place.reporter)
        )
    say_if_complete(session, packed.path, packed.already_complete)
    session.result(
        {**asdict(packed), "num_failed": packed.num_failed, "not_read": plan.collection.passed_over.to_json()},
        f"{packed.num_images:,} images in {count(packed.num_shards, 'shard')}, {human_bytes(packed.num_bytes)}: "
        f"{packed.path}",
    )
    if packed.failures:
        warn_about_failures(session, packed.num_failed, of=plan.num_images, listed_in=f"{packed.path}/failures.jsonl")
    session.next_step("brics", "train-ae", packed.path)
    if packed.failures:
        raise typer.Exit(ExitCode.SOME_FAILED)
