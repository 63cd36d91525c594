"""`brics encode-dataset`: images + autoencoder -> codes, shard by shard -> key-code store (DESIGN section 4)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from brics_cli.core.autoencoder import Autoencoder
from brics_cli.core.image_tensors import to_tensor, to_uint8
from brics_cli.data import TRANSFORM_VERSIONS, Batch, Collection, load_shards, open_collection
from brics_cli.errors import ArtefactError, InterruptedRunError, TooManyFailuresError, UsageError
from brics_cli.metrics.reconstruction import psnr
from brics_cli.reporting import Reporter, TimeSplit
from brics_cli.store import (
    KeyCodeStore,
    Quantisation,
    StoreHeader,
    StoreShard,
    StoreWriter,
    dequantise,
    quantise,
)
from brics_cli.workspace import Parent


@dataclass(frozen=True)
class EncodePlan:
    """What would be encoded, with what, and where to."""

    collection: Collection
    autoencoder: Autoencoder
    header: StoreHeader
    shards: list[StoreShard]
    out: Path
    transform: str
    device: torch.device
    precision: str

    @property
    def store_bytes(self) -> int:
        """Of the codes; the merge needs it twice."""
        return self.header.bytes_per_image * self.header.num_images

    @property
    def ratio_to_pixels(self) -> float:
        """Bytes of an image's pixels over bytes of its codes."""
        return 3 * self.header.image_size**2 / self.header.bytes_per_image


@dataclass(frozen=True)
class EncodeResult:
    """A finished store. `num_now` images were encoded by this run, the others by those before it.

    `psnr_exact_db` and `psnr_db` are of reconstructions from exact and from quantised codes, means over the first
    batch of this run; None when it encoded nothing.
    """

    path: Path
    num_images: int
    num_now: int
    img_per_s: float | None
    bytes_per_image: int
    ratio_to_pixels: float
    psnr_exact_db: float | None
    psnr_db: float | None
    failures: list[tuple[str, str]]
    already_complete: bool

    @property
    def num_failed(self) -> int:
        return len(self.failures)


def plan_encoding(
    data: str,
    autoencoder: Autoencoder,
    *,
    out: Path,
    device: torch.device,
    quantisation: Quantisation = "uint8",
    precision: str | None = None,
    transform: str | None = None,
    flips: bool = False,
    limit: int | None = None,
) -> EncodePlan:
    """Look at the collection and fix every setting. `precision` None is bf16 on CUDA, fp32 elsewhere; `transform`
    None is the one the autoencoder was trained with. Raises UsageError and ArtefactError as `open_collection`.
    """
    if out.suffix != ".h5":
        raise UsageError(f"--out {out} does not end in .h5", next="Give a file such as codes.h5.")
    whole = open_collection(data)
    collection = whole if limit is None else whole.first(limit)
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    transform = transform or autoencoder.transform
    header = StoreHeader(
        code_shape=autoencoder.config.code_shape,
        image_size=autoencoder.config.image_size,
        transform=f"{transform}/{TRANSFORM_VERSIONS[transform]}",
        quantisation=quantisation,
        autoencoder={"sha256": autoencoder.weights_sha256, "config": autoencoder.config.model_dump(mode="json")},
        source=collection.path,
        source_sha256=whole.fingerprint,
        num_images=len(collection),
        flipped=flips,
        precision=precision,
    )
    shards = [
        StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.fingerprint) for shard in collection.shards
    ]
    return EncodePlan(collection, autoencoder, header, shards, out, transform, device, precision)


def estimate_seconds(plan: EncodePlan, *, batch_size: int, num_workers: int | None = None) -> float:
    """Time the first batch through the real path, and scale. Slightly pessimistic: nothing is decoded ahead yet."""
    start = time.perf_counter()
    batch = next(load_shards(plan.collection.first(batch_size), transform=plan.transform, size=plan.header.image_size,
                             num_workers=num_workers, batch_size=batch_size))  # fmt: skip
    if batch.keys:
        _encode(plan, batch)
    return (time.perf_counter() - start) * plan.header.num_images / max(batch.num_read, 1)


def encode_dataset(
    plan: EncodePlan,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    overwrite: bool = False,
    max_failures: int | None = None,
    reporter: Reporter,
) -> EncodeResult:
    """Encode every shard that has no part yet, then merge.

    Raises what `StoreWriter` raises; TooManyFailuresError past `max_failures` or when no image is left;
    InterruptedRunError on Ctrl-C, with finished shards kept; ArtefactError when codes are not finite.
    """
    reporter.message(f"encoding {plan.collection.path}: {plan.collection.describe()}")
    with StoreWriter(plan.out, plan.header, plan.shards, overwrite=overwrite) as writer:
        if writer.complete:
            return _result(plan, num_now=0, img_per_s=None, costs=None, already_complete=True)
        for redone in writer.redone:
            reporter.warning(f"encoding again: {redone}")
        pending = writer.pending
        total = sum(plan.shards[index].num_images for index in pending)
        if len(pending) < len(plan.shards):
            done = len(plan.shards) - len(pending)
            reporter.message(f"going on: {done:,} of {len(plan.shards):,} shards are encoded")
        num_failed = writer.num_failed()
        num_now, costs, split, start = 0, None, TimeSplit(), time.perf_counter()
        batches = load_shards(
            plan.collection,
            pending,
            transform=plan.transform,
            size=plan.header.image_size,
            num_workers=num_workers,
            batch_size=batch_size,
        )
        try:
            with reporter.task("encode", total=plan.header.num_images, unit="img",
                               initial=plan.header.num_images - total) as task:  # fmt: skip
                for shard_index in pending:
                    with writer.part(shard_index) as part:
                        end_of_shard = False
                        while not end_of_shard:
                            with split.phase("wait"):
                                batch = next(batches)
                            with split.phase("compute"):
                                rows, flipped = _encode(plan, batch)
                                if costs is None and batch.keys:
                                    costs = _quantisation_cost(plan, batch)
                            with split.phase("write"):
                                part.add(
                                    rows,
                                    flipped=flipped,
                                    keys=batch.keys,
                                    indices=batch.indices,
                                    labels=batch.labels,
                                    metas=batch.metas,
                                    failures=batch.failures,
                                )
                            num_now += len(batch.keys)
                            num_failed += len(batch.failures)
                            if max_failures is not None and num_failed > max_failures:
                                _raise_too_many(num_failed, max_failures, batch)
                            task.advance(batch.num_read, note=_note(split, num_failed))
                            end_of_shard = batch.end_of_shard
        except KeyboardInterrupt:
            kept = len(plan.shards) - len(writer.pending)
            raise InterruptedRunError(
                f"interrupted; {kept:,} of {len(plan.shards):,} shards of {plan.out} are kept"
            ) from None
        finally:
            batches.close()
        img_per_s = num_now / max(time.perf_counter() - start, 1e-9)
        parents = (
            Parent("autoencoder", str(plan.autoencoder.path.resolve()), plan.autoencoder.weights_sha256),
            Parent("collection", plan.collection.path, plan.header.source_sha256),
        )
        details = {
            "code_shape": list(plan.header.code_shape),
            "image_size": plan.header.image_size,
            "transform": plan.transform,
            "quantisation": plan.header.quantisation,
            "flips": plan.header.flipped,
            "precision": plan.precision,
        }
        writer.merge(parents=parents, details=details, reporter=reporter)
    return _result(plan, num_now=num_now, img_per_s=img_per_s, costs=costs, already_complete=False)


@torch.inference_mode()
def _encode(plan: EncodePlan, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored values of a batch's codes and, with flips, of its mirror images': (B, C, h, w) each."""
    if not batch.keys:
        empty = np.empty((0, *plan.header.code_shape), plan.header.dtype)
        return empty, empty if plan.header.flipped else None
    images = to_tensor(batch.images, plan.device)  # (B, 3, H, W)
    try:
        rows = quantise(_codes(plan, images), plan.header.quantisation)
        flipped = quantise(_codes(plan, images.flip(3)), plan.header.quantisation) if plan.header.flipped else None
    except ValueError:
        raise ArtefactError(
            f"{plan.autoencoder.path} makes codes that are not finite of {batch.keys[0]} or its neighbours",
            next="Use --dtype fp32, or train the autoencoder again.",
        ) from None
    return rows, flipped


def _codes(plan: EncodePlan, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        return plan.autoencoder.encode(images).float()  # (B, C, h, w)


@torch.inference_mode()
def _quantisation_cost(plan: EncodePlan, batch: Batch) -> tuple[float, float]:
    """Mean PSNR in dB of a batch's reconstructions from exact and from quantised codes."""
    codes = _codes(plan, to_tensor(batch.images, plan.device))
    stored = quantise(codes, plan.header.quantisation)
    again = torch.from_numpy(dequantise(stored, plan.header.quantisation)).to(plan.device)
    exact, quantised = (psnr(batch.images, to_uint8(plan.autoencoder.decode(each))) for each in (codes, again))
    return float(exact.mean()), float(quantised.mean())


def _raise_too_many(num_failed: int, max_failures: int, batch: Batch) -> None:
    key, reason = batch.failures[-1]
    raise TooManyFailuresError(
        f"{num_failed:,} images failed, more than --max-failures {max_failures}; the last, {key}: {reason}",
        next="Finished shards are kept: the same command with a larger --max-failures goes on.",
    )


def _note(split: TimeSplit, num_failed: int) -> str:
    return f"{split}, {num_failed:,} failed" if num_failed else str(split)


def _result(
    plan: EncodePlan,
    *,
    num_now: int,
    img_per_s: float | None,
    costs: tuple[float, float] | None,
    already_complete: bool,
) -> EncodeResult:
    store = KeyCodeStore(plan.out)
    return EncodeResult(
        path=plan.out,
        num_images=len(store),
        num_now=num_now,
        img_per_s=img_per_s,
        bytes_per_image=plan.header.bytes_per_image,
        ratio_to_pixels=plan.ratio_to_pixels,
        psnr_exact_db=costs[0] if costs else None,
        psnr_db=costs[1] if costs else None,
        failures=[(failure["key"], failure["reason"]) for failure in store.failures],
        already_complete=already_complete,
    )
