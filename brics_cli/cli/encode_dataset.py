"""`brics encode-dataset`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brics_cli import api
from brics_cli.cli import options
from brics_cli.cli.batch import (
    executor_of,
    report_verification,
    same_command_goes_on,
    say_if_complete,
    warn_about_failures,
)
from brics_cli.cli.output import Session
from brics_cli.config.bottlenecks import CONTINUOUS_KINDS
from brics_cli.config.names import Quantisation, Transform
from brics_cli.errors import ExitCode, UsageError
from brics_cli.parsing import read_text
from brics_cli.wording import human_bytes
from brics_cli.workspace.remote import named

if TYPE_CHECKING:
    from brics_cli.codes import StoreHeader
    from brics_cli.jobs.encode_dataset import EncodePlan, EncodeResult

app = options.command_app()


@app.command()
def encode_dataset(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Images: a folder, WebDataset tars, a pattern, or a URL (s3://bucket/shards). Default: what the "
            "autoencoder was trained on.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.out_option(
            "FILE.h5|DIR",
            "The store, or its URL; a folder keeps the parts as they are. Default: codes.h5 in the workspace.",
        ),
    ] = None,
    ae: options.AutoencoderRun = None,
    quantisation: Annotated[
        Quantisation | None,
        typer.Option(
            "--quantisation",
            help=f"Default: uint8 for bounded codes, float16 for others ({', '.join(CONTINUOUS_KINDS)}).",
        ),
    ] = None,
    dtype: options.Dtype = None,
    subset: options.Subset = None,
    image_field: options.ImageField = None,
    labels: options.Labels = None,
    transform: Annotated[
        Transform | None,
        typer.Option("--transform", help="How an image becomes a square. Default: as in the autoencoder's training."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=1,
            help="Side of that square, in pixels. Default: as in the autoencoder's training; a fully "
            "convolutional one's, the largest that the median image allows, at most 512.",
        ),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Also store the codes of the mirrored images.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Encode only the first so many images.")] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Encode only the images whose keys FILE lists, one per line."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="I/N",
            help="Encode every N-th shard, from shard I on (job arrays); `brics merge` joins the parts.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images per batch of the network; fewer above 256 px. Default: 64."),
    ] = None,
    num_workers: options.NumWorkers = None,
    max_failures: options.MaxFailures = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every invariant of the finished store, as `brics info --verify`.")
    ] = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    device: options.Devices = "auto",
    executor: options.Executor = "local",
    ray_address: options.RayAddress = None,
    cpus_per_worker: options.CpusPerWorker = None,
    max_retries: options.MaxRetries = None,
    workspace: options.Workspace = None,
    cache_gib: options.CacheGib = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Encode a collection into a key-code store.

    Each finished shard is kept: run the same command again after an interruption and it goes on. Images that cannot
    be read are listed in the store (`brics info codes.h5`), and the exit code is 5.

    Example: brics encode-dataset ./lsun --out codes.h5 --flips
    """
    session = Session(workspace=workspace, quiet=quiet, as_json=as_json)
    one_of = parse_part(part) if part is not None else None
    how: dict[str, Any] = {
        "autoencoder": ae, "out": out, "quantisation": quantisation, "precision": dtype, "transform": transform,
        "size": size, "flips": flips, "subset": subset, "image_field": image_field, "labels": labels,
        "keys": read_keys(keys) if keys is not None else None, "limit": limit, "part": one_of,
        "batch_size": batch_size, "num_workers": num_workers, "device": device, "overwrite": overwrite,
        "reporter": session.reporter,
        "executor": executor_of(
            executor, ray_address=ray_address, cpus_per_worker=cpus_per_worker, max_retries=max_retries
        ),
    }  # fmt: skip
    if dry_run:
        from brics_cli.jobs.encode_dataset import plan_encoding

        _say_plan(session, plan_encoding(data, **how, workspace=session.workspace))
        return
    with same_command_goes_on():
        encoded = api.encode(data, **how, max_failures=max_failures, verify=verify, workspace=session.workspace.root)
    say_if_complete(session, encoded.path, encoded.already_complete)
    value = {**asdict(encoded), "num_failed": encoded.num_failed}
    speed = f", {encoded.img_per_s:,.1f} img/s" if encoded.img_per_s is not None and encoded.num_now else ""
    cost = ""
    if encoded.psnr_exact_db is not None and encoded.psnr_db is not None:
        loss_db = encoded.psnr_exact_db - encoded.psnr_db
        value["quantisation_cost_db"] = loss_db
        shown = round(loss_db, 3) + 0.0  # a gain below the last digit is no "-0.000"
        cost = f"; {encoded.quantisation} costs {shown:.3f} dB of {encoded.psnr_exact_db:.2f} dB PSNR (first images)"
    session.result(
        value,
        f"{encoded.num_images:,} {_codes(encoded)}{speed}, {encoded.bytes_per_image:,} bytes per "
        f"image (1/{encoded.ratio_to_pixels:.3g} of its pixels, 1/{encoded.ratio_to_source:.3g} of its file){cost}: "
        f"{encoded.path}",
    )
    report_verification(session, encoded.path, encoded.broken)
    if encoded.failures:
        warn_about_failures(
            session,
            encoded.num_failed,
            of=encoded.num_images + encoded.num_failed,
            listed_in=f"{encoded.path} (brics info {encoded.path})",
        )
    if one_of is None:
        session.next_step("brics", "train-diffusion", encoded.path)
    else:
        session.reporter.message(
            f"when all {one_of[1]} parts are encoded: brics merge {encoded.path} ... --out codes.h5"
        )
    if encoded.failures:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _codes(of: StoreHeader | EncodeResult) -> str:
    return f"codes {'x'.join(map(str, of.code_shape))} {of.quantisation}"


def _say_plan(session: Session, plan: EncodePlan) -> None:
    from brics_cli.jobs.encode_dataset import estimate_seconds

    seconds, header, source = estimate_seconds(plan), plan.header, plan.collection.describe()
    value = {
        "images": header.num_images,
        "shards": len(plan.shards),
        "code_shape": list(header.code_shape),
        "bytes": plan.store_bytes,
        "bytes_needed": plan.bytes_needed,
        "seconds": seconds,
        "out": named(plan.out),
        "source": source,
        "not_read": plan.collection.passed_over.to_json(),
    }
    twice = " (twice that while parts are merged)" if plan.bytes_needed > plan.store_bytes else ""
    session.result(
        value,
        f"would encode {source} into {named(plan.out)}: {_codes(header)}, "
        f"{human_bytes(plan.store_bytes)}{twice}, "
        f"about {seconds:,.0f} s on {','.join(map(str, plan.devices))} by its first batch",
    )


def parse_part(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8). Raises UsageError."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    part, num_parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= num_parts:
        raise UsageError(f"--part {text} is not I/N with I from 1 to N", next="Example: --part 2/8")
    return part, num_parts


MOST_KEYS_BYTES = 1 << 30


def read_keys(path: Path) -> list[str]:
    """The keys that a file lists, one per line; empty lines are passed over. Raises UsageError."""
    try:
        lines = read_text(path, most=MOST_KEYS_BYTES).splitlines()
    except FileNotFoundError:
        raise UsageError(f"--keys {path} is missing", next="Give a text file with one key per line.") from None
    except ValueError as error:
        raise UsageError(
            f"--keys {path} is not UTF-8 text ({error})", next="Give a text file with one key per line."
        ) from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UsageError(f"--keys {path} lists no key", next="Give a text file with one key per line.")
    return keys
