"""`brics encode-dataset`: images + autoencoder -> codes, shard by shard -> key-code store (DESIGN section 4)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from brics_cli.autoencoder.autoencoder import (
    Autoencoder,
    AutoencoderFiles,
    load_autoencoder,
    read_autoencoder,
    to_uint8,
)
from brics_cli.autoencoder.sizes import check_image_memory, images_per_batch
from brics_cli.codes import KeyCodeStore, StoreHeader, StoreShard, StoreWriter, dequantise, verify_store_in_child
from brics_cli.codes.encoding import CodeEncoder, Progress, ShardWork, code_encoder
from brics_cli.codes.writer import check_store_output, keeps_parts
from brics_cli.config.names import DEFAULT_QUANTISATIONS, Labels, Precision, Quantisation
from brics_cli.config.suggestions import check_known
from brics_cli.errors import ArtefactError, InterruptedRunError, TooManyFailuresError, UsageError
from brics_cli.evaluation.reconstruction import psnr
from brics_cli.images import Collection, load_shards, median_side, open_collection, versioned
from brics_cli.images.fingerprints import fingerprint_of, known_fingerprint, shards_to_redo
from brics_cli.images.loader import default_num_workers, say_enlarged, say_multi_frame
from brics_cli.images.selection import every_nth_shard, select_keys
from brics_cli.runtime.device import resolve_devices
from brics_cli.runtime.executors import LocalExecutor, TaskFailed, settled
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.precision import computing, precision_on
from brics_cli.runtime.reporting import Reporter, TimeSplit
from brics_cli.workspace import Parent, Workspace, read_provenance
from brics_cli.workspace.naming import STORE, form_of_output
from brics_cli.workspace.outputs import check_claim
from brics_cli.workspace.places import reference

DEFAULT_LARGEST = 512
"""Pixels a side that images are encoded at, at most, where --size is not given."""
COST_IMAGES, COST_PIXELS = 64, 64 * 128**2
"""Images that the cost of quantisation is measured on, the first ones, and their pixels, at most."""


@dataclass(frozen=True)
class EncodePlan:
    """What would be encoded, with what, and where to: of the `whole` collection what is in `collection`."""

    whole: Collection
    collection: Collection
    autoencoder: Autoencoder
    header: StoreHeader
    shards: list[StoreShard]
    out: Path
    devices: list[torch.device]
    batch_size: int
    num_workers: int | None
    executor: RayExecutor | None = None

    @property
    def store_bytes(self) -> int:
        """Of the codes."""
        return self.header.bytes_per_image * self.header.num_images

    @property
    def bytes_needed(self) -> int:
        """Of the codes, on the way: a merge has them twice, a folder keeps the parts."""
        return self.store_bytes if keeps_parts(self.out) else 2 * self.store_bytes

    def encoder(self) -> CodeEncoder:
        """The encoder on the first device."""
        return code_encoder(self.autoencoder, self.header, device=self.devices[0])

    def work(self, parts_directory: Path) -> ShardWork:
        return ShardWork(
            self.collection, self.header, self.shards, parts_directory, self.batch_size, self.num_workers,
            self.autoencoder.reference,
        )  # fmt: skip


@dataclass(frozen=True)
class EncodeResult:
    """A finished store. `num_now` images were encoded by this run, the others by those before it; `num_enlarged` of
    them were smaller than the autoencoder's.

    `ratio_to_pixels` and `ratio_to_source`: bytes of an image's pixels, and of its file, over those of its codes.
    `psnr_exact_db` and `psnr_db` are of reconstructions from exact and from quantised codes, means over the first
    batch of this run; None when it encoded nothing. `seconds` by phase: waiting for images, computing, writing, on
    several devices of all together. `broken` are invariants that the store breaks; None: not verified. `not_read`
    counts files of the collection that are no images of it, by extension and by reason.
    """

    path: Path
    num_images: int
    code_shape: tuple[int, int, int]
    quantisation: Quantisation
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
    num_enlarged: int
    not_read: dict[str, int]

    @property
    def num_failed(self) -> int:
        return len(self.failures)


def plan_encoding(
    data: str | None = None,
    *,
    autoencoder: Path | None = None,
    out: Path | None = None,
    quantisation: Quantisation | None = None,
    precision: Precision | None = None,
    transform: str | None = None,
    size: int | None = None,
    flips: bool = False,
    subset: str | None = None,
    image_field: str | None = None,
    labels: Labels | None = None,
    keys: Sequence[str] | None = None,
    limit: int | None = None,
    part: tuple[int, int] | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> EncodePlan:
    """Look at the collection and settle what `api.encode` was not given; see there for the arguments.

    `reporter` hears what is looked up, and what of the collection is not read. Raises UsageError and ArtefactError as
    `open_collection`; UsageError for keys that are not there, and for continuous codes in a type that holds [0, 1];
    what `check_store_output` raises. The autoencoder is built when all of that is settled.
    """
    devices = resolve_devices(device) if executor is None else executor.connect(device, reporter=reporter)
    check_known(quantisation, get_args(Quantisation), option="--quantisation", what="quantisation")
    precision = precision_on(devices[0] if executor is None else torch.device(executor.device), precision)
    if out is None:
        out = workspace.root / ("codes.h5" if part is None else f"codes-{part[0]}-of-{part[1]}.h5")
    form_of_output(out, STORE)
    check_claim(out, kind="store", overwrite=overwrite, what="the store")
    autoencoder = workspace.resolve("autoencoder", autoencoder, argument="--ae", reporter=reporter)
    if data is None:
        data = _trained_on(autoencoder, workspace)
        reporter.message(f"DATA not given: using {data}, which {autoencoder} was trained on")
    files = read_autoencoder(autoencoder)
    config = files.config
    if size is not None:
        config.check_size(size, of=reference(files.path))
        check_image_memory(size, what="--size")
    quantisation = quantisation or DEFAULT_QUANTISATIONS[config.code_kind]
    if config.code_kind == "continuous" and quantisation != DEFAULT_QUANTISATIONS["continuous"]:
        raise UsageError(
            f"--quantisation {quantisation} holds codes in [0, 1], and those of {reference(files.path)} are not "
            "bounded",
            next=f"Use --quantisation {DEFAULT_QUANTISATIONS['continuous']}.",
        )
    whole = open_collection(data, subset=subset, labels=labels, image_field=image_field, reporter=reporter)
    size = size or _default_size(files, whole, reporter)
    collection: Collection = whole if keys is None else select_keys(whole, list(keys))
    collection = collection if limit is None else collection.first(limit)
    collection = collection if part is None else every_nth_shard(collection, part=part[0], num_parts=part[1])
    transform = transform or files.transform
    header = StoreHeader(
        code_shape=config.code_shape_of(size),
        image_size=size,
        transform=versioned(transform),
        quantisation=quantisation,
        autoencoder={"sha256": files.weights_sha256, "config": config.model_dump(mode="json")},
        source=collection.path,
        source_sha256=whole.layout,
        num_images=len(collection),
        flipped=flips,
        precision=precision,
        code_kind=config.code_kind,
        selection="" if keys is None else hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest(),
        part="" if part is None else f"{part[0]}/{part[1]}",
        labels=labels or "",
        class_names=whole.class_names,
    )
    shards = [StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.layout) for shard in collection.shards]
    check_store_output(out, header, shards, overwrite=overwrite, inputs=[header.source], remove=False)
    model = load_autoencoder(autoencoder, device=devices[0])
    if model.weights_sha256 != files.weights_sha256:
        raise ArtefactError(
            f"{model.reference} was written again while it was being loaded (is it still being trained?)",
            next="Run the same command again.",
        )
    batch_size = batch_size or images_per_batch(size)
    return EncodePlan(whole, collection, model, header, shards, out, devices, batch_size, num_workers, executor)


def _default_size(files: AutoencoderFiles, collection: Collection, reporter: Reporter) -> int:
    """The size that the autoencoder was trained at; of a fully convolutional one, what suits the images."""
    config = files.config
    if not config.is_local:
        return config.image_size
    side = median_side(collection)
    size = config.largest_size(min(side, DEFAULT_LARGEST))
    reporter.message(
        f"--size not given: {size} px (the median image side is {side} px; {reference(files.path)} takes any "
        f"multiple of {config.downsampling})"
    )
    return size


def _trained_on(run: Path, workspace: Workspace) -> str:
    """The collection that the autoencoder of `run` was trained on."""
    artefact = read_provenance(run)
    collection = artefact.parent("collection") if artefact is not None else None
    if collection is None:
        raise ArtefactError(
            f"{reference(run)} does not say what it was trained on",
            next="Give DATA: brics encode-dataset IMAGES",
        )
    return workspace.collection_path(collection)


def estimate_seconds(plan: EncodePlan) -> float:
    """Time the first batch through the real path, and scale. Slightly pessimistic: nothing is decoded ahead yet."""
    start = time.perf_counter()
    batch = next(load_shards(plan.collection.first(plan.batch_size), transform=plan.header.transform_name,
                             size=plan.header.image_size, num_workers=plan.num_workers,
                             batch_size=plan.batch_size))  # fmt: skip
    plan.encoder().encode(batch)
    seconds_per_image = (time.perf_counter() - start) / max(len(batch.loaded), 1)
    num_workers = len(plan.devices) if plan.executor is None else max(1, plan.executor.num_places())
    return seconds_per_image * plan.header.num_images / num_workers


def encode_dataset(
    plan: EncodePlan,
    *,
    overwrite: bool = False,
    max_failures: int | None = None,
    verify: bool = False,
    reporter: Reporter,
) -> EncodeResult:
    """Encode every shard that has no part yet, then merge them, or in a folder index them; with `verify` check every
    invariant of the store.

    Raises what `StoreWriter` and `shards_to_redo` raise; TooManyFailuresError past `max_failures` or when no image is
    left; InterruptedRunError on Ctrl-C, with finished shards kept; ArtefactError when codes are not finite or images
    change while they are read; MachineError when the process of one of several devices died.
    """
    header, collection, num_shards = plan.header, plan.collection, len(plan.shards)
    reporter.message(f"encoding {collection.path}: {collection.describe()}")
    num_now, num_enlarged, num_multi_frame, img_per_s, costs, split = 0, 0, 0, None, None, TimeSplit()
    with StoreWriter(plan.out, header, plan.shards, overwrite=overwrite) as writer:
        redone = shards_to_redo(
            collection, writer.digests(), output=plan.out, complete=writer.complete, overwrite=overwrite,
            reporter=reporter,
        )  # fmt: skip
        for index in redone:
            writer.discard(index)
        if not writer.complete:
            for reason in writer.redone:
                reporter.warning(f"encoding again: {reason}")
            pending, num_failed = writer.pending, writer.num_failed()
            if len(pending) < num_shards:
                reporter.message(f"going on: {num_shards - len(pending):,} of {num_shards:,} shards are encoded")
            initial = header.num_images - sum(plan.shards[index].num_images for index in pending)
            work = plan.work(writer.parts_directory)
            costs = quantisation_cost(plan, pending)
            start = time.perf_counter()
            running = _run(plan, work, pending, reporter)
            try:
                with reporter.task("encode", total=header.num_images, unit="img", initial=initial) as task:
                    for progress in running:
                        split.add(progress.seconds)
                        num_now += progress.num_encoded
                        num_enlarged += progress.num_enlarged
                        num_multi_frame += progress.num_multi_frame
                        num_failed += len(progress.failures)
                        note = f"{split}, {num_failed:,} failed" if num_failed else str(split)
                        if plan.executor is not None:
                            note = f"{plan.executor.status}, {note}"
                        task.advance(progress.num_read, note=note)
                        if max_failures is not None and num_failed > max_failures:
                            key, reason = progress.failures[-1] if progress.failures else ("one", "of an earlier run")
                            raise TooManyFailuresError(
                                f"{num_failed:,} images failed, more than --max-failures {max_failures}; "
                                f"the last, {key}: {reason}",
                                next="Finished shards are kept: the same command with a larger --max-failures goes on.",
                            )
            except KeyboardInterrupt:
                kept = num_shards - len(writer.pending)
                raise InterruptedRunError(
                    f"interrupted; {kept:,} of {num_shards:,} shards of {plan.out} are kept"
                ) from None
            finally:
                running.close()
            img_per_s = num_now / max(time.perf_counter() - start, 1e-9)
            say_enlarged(reporter, num_enlarged, num_now, size=header.image_size)
            say_multi_frame(reporter, num_multi_frame, num_now)
            # all of the collection, or what was taken of it where the rest has never been read
            whole = None if collection is plan.whole else known_fingerprint(plan.whole)
            parents = (
                Parent("autoencoder", plan.autoencoder.reference, plan.autoencoder.weights_sha256),
                Parent("collection", collection.path, whole or fingerprint_of(collection, writer.digests())),
            )
            details = {
                "code_shape": list(header.code_shape),
                "image_size": header.image_size,
                "transform": header.transform_name,
                "quantisation": header.quantisation,
                "flips": header.flipped,
                "precision": header.precision,
            }
            if collection is not plan.whole:
                number = f", part {header.part}" if header.part else ""
                details["part"] = f"{len(collection):,} of {len(plan.whole):,} images{number}"
            writer.merge(parents=parents, details=details, reporter=reporter)
        already_complete = writer.complete
    store = KeyCodeStore(plan.out)
    source_bytes = sum(shard.size_bytes for shard in plan.whole.shards) / max(len(plan.whole), 1)
    return EncodeResult(
        path=plan.out,
        num_images=len(store),
        code_shape=header.code_shape,
        quantisation=header.quantisation,
        num_now=num_now,
        img_per_s=img_per_s,
        bytes_per_image=header.bytes_per_image,
        ratio_to_pixels=3 * header.image_size**2 / header.bytes_per_image,
        ratio_to_source=source_bytes / header.bytes_per_image,
        psnr_exact_db=costs[0] if costs else None,
        psnr_db=costs[1] if costs else None,
        failures=[(failure["key"], failure["reason"]) for failure in store.failures],
        already_complete=already_complete,
        seconds=split.seconds,
        broken=verify_store_in_child(plan.out, reporter=reporter) if verify else None,
        num_enlarged=num_enlarged,
        not_read=collection.passed_over.to_json(),
    )


def _run(plan: EncodePlan, work: ShardWork, pending: list[int], reporter: Reporter) -> Generator[Progress, None, None]:
    """Encode on the cluster; else in this process on one device, in one process per device on several."""
    num = len(plan.devices)
    if plan.executor is not None:
        shared = replace(work, num_workers=work.num_workers or plan.executor.cpus_per_worker)

        def give_up(failed: TaskFailed[int]) -> Progress:
            reporter.warning(f"shard {plan.shards[failed.task].name} has failed: {failed.reason}")
            return work.give_up(failed.task, failed.reason)

        yield from settled(plan.executor.run(shared, pending, folder=work.parts_directory), give_up)
        return
    if num == 1:
        yield from work.encode(pending, plan.encoder())
        return
    share = max(1, (work.num_workers or default_num_workers()) // num)
    shared = replace(work, num_workers=share, num_processes=num)
    yield from LocalExecutor([str(device) for device in plan.devices]).run(shared, pending)


@torch.inference_mode()
def quantisation_cost(plan: EncodePlan, pending: list[int]) -> tuple[float, float] | None:
    """Mean PSNR in dB of the first images' reconstructions from exact and from quantised codes; None without images."""
    if not pending:
        return None
    num = min(plan.batch_size, COST_IMAGES, max(1, COST_PIXELS // plan.header.image_size**2))
    batches = load_shards(
        plan.collection, pending[:1], transform=plan.header.transform_name, size=plan.header.image_size,
        num_workers=plan.num_workers, batch_size=num,
    )  # fmt: skip
    batch = next(batches)
    batches.close()
    if not batch.keys:
        return None
    encoder = plan.encoder()
    codes = encoder.network(torch.from_numpy(batch.images).to(plan.devices[0]))  # (B, C, h, w)
    stored = dequantise(encoder.encode(batch).codes, plan.header.quantisation)
    again = torch.from_numpy(stored).to(plan.devices[0])
    with computing("fp32", plan.devices[0]):  # rounding alone is to be seen
        exact, quantised = (psnr(batch.images, to_uint8(plan.autoencoder.decode(each))) for each in (codes, again))
    return float(exact.mean()), float(quantised.mean())
