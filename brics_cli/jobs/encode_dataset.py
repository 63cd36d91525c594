"""`brics encode-dataset`: images + autoencoder -> codes, shard by shard -> key-code store (DESIGN section 4)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from brics_cli.autoencoder.autoencoder import load_autoencoder
from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.codes import KeyCodeStore, StoreWriter, dequantise, verify_store_in_child
from brics_cli.codes.encode_plan import EncodePlan, plan_encoding
from brics_cli.codes.encoding import CodeEncoder, Progress, ShardWork, encoding_network
from brics_cli.codes.source_check import check_source
from brics_cli.errors import InterruptedRunError, TooManyFailuresError
from brics_cli.evaluation.reconstruction import psnr
from brics_cli.images import load_shards
from brics_cli.images.fingerprints import fingerprint_of, known_fingerprint
from brics_cli.images.loader import default_num_workers, say_enlarged
from brics_cli.runtime.executors import LocalExecutor
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.workspace import Parent

__all__ = ["EncodePlan", "EncodeResult", "encode_dataset", "estimate_seconds", "plan_encoding"]

COST_IMAGES = 64
"""Images that the cost of quantisation is measured on, at most: the first ones."""


@dataclass(frozen=True)
class EncodeResult:
    """A finished store. `num_now` images were encoded by this run, the others by those before it; `num_enlarged` of
    them were smaller than the autoencoder's.

    `psnr_exact_db` and `psnr_db` are of reconstructions from exact and from quantised codes, means over the first
    batch of this run; None when it encoded nothing. `seconds` by phase: waiting for images, computing, writing, on
    several devices of all together. `broken` are promises that the store breaks; None: not verified.
    """

    path: Path
    num_images: int
    num_now: int
    img_per_s: float | None
    bytes_per_image: int
    ratio_to_pixels: float
    ratio_to_source: float
    psnr_exact_db: float | None
    psnr_db: float | None
    failures: list[tuple[str, str]]
    already_complete: bool
    seconds: dict[str, float]
    broken: list[str] | None
    num_enlarged: int = 0

    @property
    def num_failed(self) -> int:
        return len(self.failures)


def estimate_seconds(plan: EncodePlan, *, batch_size: int, num_workers: int | None = None) -> float:
    """Time the first batch through the real path, and scale. Slightly pessimistic: nothing is decoded ahead yet."""
    start = time.perf_counter()
    batch = next(load_shards(plan.collection.first(batch_size), transform=plan.transform, size=plan.header.image_size,
                             num_workers=num_workers, batch_size=batch_size))  # fmt: skip
    _encoder(plan).encode(batch)
    seconds_per_image = (time.perf_counter() - start) / max(len(batch.loaded), 1)
    return seconds_per_image * plan.header.num_images / len(plan.devices)


def encode_dataset(
    plan: EncodePlan,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    overwrite: bool = False,
    max_failures: int | None = None,
    verify: bool = False,
    reporter: Reporter,
) -> EncodeResult:
    """Encode every shard that has no part yet, then merge; with `verify` check every promise of the store.

    Raises what `StoreWriter` and `check_source` raise; TooManyFailuresError past `max_failures` or when no image is
    left; InterruptedRunError on Ctrl-C, with finished shards kept; ArtefactError when codes are not finite or images
    change while they are read; MachineError when the process of one of several devices died.
    """
    reporter.message(f"encoding {plan.collection.path}: {plan.collection.describe()}")
    num_now, num_enlarged, img_per_s, costs, split = 0, 0, None, None, TimeSplit()
    with StoreWriter(plan.out, plan.header, plan.shards, overwrite=overwrite) as writer:
        check_source(plan.collection, writer, overwrite=overwrite, reporter=reporter)
        if not writer.complete:
            for redone in writer.redone:
                reporter.warning(f"encoding again: {redone}")
            pending = writer.pending
            left = sum(plan.shards[index].num_images for index in pending)
            if len(pending) < len(plan.shards):
                done = len(plan.shards) - len(pending)
                reporter.message(f"going on: {done:,} of {len(plan.shards):,} shards are encoded")
            num_failed = writer.num_failed()
            work = ShardWork(
                plan.collection,
                plan.header,
                plan.shards,
                writer.parts_directory,
                plan.transform,
                batch_size,
                num_workers,
            )
            costs = _quantisation_cost(plan, work, pending)
            start = time.perf_counter()
            running = _run(plan, work, pending)
            try:
                with reporter.task("encode", total=plan.header.num_images, unit="img",
                                   initial=plan.header.num_images - left) as task:  # fmt: skip
                    for progress in running:
                        split.add(progress.seconds)
                        num_now += progress.num_encoded
                        num_enlarged += progress.num_enlarged
                        num_failed += len(progress.failures)
                        task.advance(progress.num_read, note=_note(split, num_failed))
                        if max_failures is not None and num_failed > max_failures:
                            key, reason = progress.failures[-1] if progress.failures else ("one", "of an earlier run")
                            raise TooManyFailuresError(
                                f"{num_failed:,} images failed, more than --max-failures {max_failures}; "
                                f"the last, {key}: {reason}",
                                next="Finished shards are kept: the same command with a larger --max-failures goes on.",
                            )
            except KeyboardInterrupt:
                kept = len(plan.shards) - len(writer.pending)
                raise InterruptedRunError(
                    f"interrupted; {kept:,} of {len(plan.shards):,} shards of {plan.out} are kept"
                ) from None
            finally:
                running.close()
            img_per_s = num_now / max(time.perf_counter() - start, 1e-9)
            say_enlarged(reporter, num_enlarged, num_now, size=plan.header.image_size)
            parents = _parents(plan, writer.digests())
            writer.merge(parents=parents, details=_details(plan), reporter=reporter)
        already_complete = writer.complete
    store = KeyCodeStore(plan.out)
    return EncodeResult(
        path=plan.out,
        num_images=len(store),
        num_now=num_now,
        img_per_s=img_per_s,
        bytes_per_image=plan.header.bytes_per_image,
        ratio_to_pixels=plan.ratio_to_pixels,
        ratio_to_source=plan.ratio_to_source,
        psnr_exact_db=costs[0] if costs else None,
        psnr_db=costs[1] if costs else None,
        failures=[(failure["key"], failure["reason"]) for failure in store.failures],
        already_complete=already_complete,
        seconds=split.seconds,
        broken=verify_store_in_child(plan.out) if verify else None,
        num_enlarged=num_enlarged,
    )


def _run(plan: EncodePlan, work: ShardWork, pending: list[int]) -> Generator[Progress, None, None]:
    """Encode in this process on one device, in one process per device on several."""
    if len(plan.devices) == 1:
        yield from work.encode(pending, _encoder(plan))
        return
    num = len(plan.devices)
    share = max(1, (work.num_workers or default_num_workers()) // num)
    remote = DeviceWork(replace(work, num_workers=share), plan.autoencoder.path, plan.header.precision, num)
    yield from LocalExecutor([str(device) for device in plan.devices]).run(remote, pending)


@dataclass(frozen=True)
class DeviceWork:
    """`ShardWork` in a process of its own (`scale.Work`): it loads the autoencoder for its device."""

    work: ShardWork
    autoencoder: Path
    precision: str
    num_processes: int

    def __call__(self, device: str, tasks: Iterator[int]) -> Iterator[Progress]:
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // self.num_processes))
        autoencoder = load_autoencoder(self.autoencoder, device=device)
        network = encoding_network(autoencoder, precision=self.precision)
        encoder = CodeEncoder(network, self.work.header, device=torch.device(device), made_by=autoencoder.path)
        return self.work.encode(tasks, encoder)


def _encoder(plan: EncodePlan) -> CodeEncoder:
    network = encoding_network(plan.autoencoder, precision=plan.header.precision)
    return CodeEncoder(network, plan.header, device=plan.devices[0], made_by=plan.autoencoder.path)


@torch.inference_mode()
def _quantisation_cost(plan: EncodePlan, work: ShardWork, pending: list[int]) -> tuple[float, float] | None:
    """Mean PSNR in dB of the first images' reconstructions from exact and from quantised codes; None without images."""
    if not pending:
        return None
    batches = load_shards(
        plan.collection, pending[:1], transform=plan.transform, size=plan.header.image_size,
        num_workers=work.num_workers, batch_size=min(work.batch_size, COST_IMAGES),
    )  # fmt: skip
    batch = next(batches)
    batches.close()
    if not batch.keys:
        return None
    encoder = _encoder(plan)
    codes = encoder.network(torch.from_numpy(batch.images).to(plan.devices[0]))  # (B, C, h, w)
    stored = dequantise(encoder.encode(batch).codes, plan.header.quantisation)
    again = torch.from_numpy(stored).to(plan.devices[0])
    exact, quantised = (psnr(batch.images, to_uint8(plan.autoencoder.decode(each))) for each in (codes, again))
    return float(exact.mean()), float(quantised.mean())


def _note(split: TimeSplit, num_failed: int) -> str:
    return f"{split}, {num_failed:,} failed" if num_failed else str(split)


def _parents(plan: EncodePlan, digests: dict[int, str]) -> tuple[Parent, Parent]:
    """The autoencoder and the collection: all of it, or what was taken of it where the rest has never been read."""
    whole = None if plan.collection is plan.whole else known_fingerprint(plan.whole)
    fingerprint = whole or fingerprint_of(plan.collection, digests)
    return (
        Parent("autoencoder", str(plan.autoencoder.path.resolve()), plan.autoencoder.weights_sha256),
        Parent("collection", plan.collection.path, fingerprint),
    )


def _details(plan: EncodePlan) -> dict[str, Any]:
    return {
        "code_shape": list(plan.header.code_shape),
        "image_size": plan.header.image_size,
        "transform": plan.transform,
        "quantisation": plan.header.quantisation,
        "flips": plan.header.flipped,
        "precision": plan.header.precision,
    }
