"""`brics pack`: collection -> decode, crop, resize -> WebDataset shards (DESIGN section 5).

Image i of the collection has its place in shard i // shard_size of the output, whether it can be decoded or not; so
whole shards say where an interrupted run goes on, and a second run writes the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from brics_cli.errors import InterruptedRunError, MachineError, TooManyFailuresError, UsageError
from brics_cli.images import TRANSFORM_VERSIONS, Collection, load_shards, open_collection, open_sink
from brics_cli.images.collection import Labels, Wanted
from brics_cli.images.fingerprints import fingerprint, fingerprint_of, settled_digest
from brics_cli.images.loader import say_enlarged
from brics_cli.images.outputs import FailureLog
from brics_cli.images.packs import (
    CARD,
    ManifestShard,
    SourceLog,
    failures_of_finished,
    missing_places,
    write_companions,
    write_manifest,
)
from brics_cli.images.pixels import ImageError, load_pixels
from brics_cli.images.recut import recut
from brics_cli.images.sinks import PNG, Encoding
from brics_cli.images.sources.tars import TarCollection
from brics_cli.jobs.pack_sources import checked_sources, claim_pack
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.workspace import Artefact, Parent, sha256_of_file, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import FOLDER, form_of_output
from brics_cli.workspace.outputs import output_lock

BATCH_SIZE = 64
LONG_HASH_BYTES = 2**31
"""Shards of so many bytes in all take seconds to hash, which is then shown."""
NUM_ESTIMATED = 32
"""Images that a dry run packs, to nowhere."""


@dataclass(frozen=True)
class PackPlan:
    """What would be packed, and where to."""

    collection: Collection
    out: Path
    size: int
    transform: str
    shard_size: int
    encoding: Encoding
    labels: Labels | None

    @property
    def num_images(self) -> int:
        return len(self.collection)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    @property
    def pixel_bytes(self) -> int:
        """Of the packed pixels before compression."""
        return 3 * self.size**2 * self.num_images

    @property
    def artefact(self) -> Artefact:
        settings = {
            "names_and_sizes": self.collection.layout,
            "size": self.size,
            "transform": f"{self.transform}/{TRANSFORM_VERSIONS[self.transform]}",
            "shard_size": self.shard_size,
            "format": self.encoding.name,
        }
        if self.labels is not None:
            settings["labels"] = self.labels
        return Artefact("shards", self.out, now(), False, (self.parent(""),), {"settings": settings})

    @property
    def sources(self) -> Collection:
        """What each shard is made from: the collection in shards of their size."""
        return recut(self.collection, self.shard_size)

    def parent(self, fingerprint: str) -> Parent:
        """The collection; its fingerprint is known when all of it has been read."""
        return Parent("collection", self.collection.path, fingerprint)


@dataclass(frozen=True)
class PackEstimate:
    """What a dry run measured on a few images spread over the collection: `seconds` is for one decoding thread."""

    num_looked_at: int
    num_failed: int
    shard_bytes: int
    seconds: float


@dataclass(frozen=True)
class PackResult:
    """What was packed: `num_images` in `num_shards` shards; `failures` lists what could not be, (key, reason).

    `num_enlarged` of the images that this run packed were smaller than the shards' are.
    """

    path: Path
    num_images: int
    num_shards: int
    num_bytes: int
    failures: list[tuple[str, str]]
    already_complete: bool
    num_enlarged: int = 0

    @property
    def num_failed(self) -> int:
        return len(self.failures)


def plan_packing(
    source: str,
    *,
    out: Path,
    size: int,
    transform: str,
    shard_size: int,
    encoding: Encoding = PNG,
    subset: str | None = None,
    labels: Labels | None = None,
    image_field: str | None = None,
    reporter: Reporter | None = None,
) -> PackPlan:
    """Look at the source, and tell `reporter` what of it is not read.

    Raises UsageError and ArtefactError as `open_collection`; UsageError for a file as `out`.
    """
    form_of_output(out, {"shards": (FOLDER,)})
    if out.is_file():
        raise UsageError(f"--out {out} is a file", next="Shards go to a folder: --out shards")
    collection = open_collection(source, subset=subset, labels=labels, image_field=image_field, reporter=reporter)
    if out.resolve() == Path(collection.path).resolve():
        raise UsageError(f"--out {out} is the collection itself", next="Give another --out.")
    return PackPlan(collection, out, size, transform, shard_size, encoding, labels)


def estimate_packing(plan: PackPlan) -> PackEstimate:
    """Pack a few images, spread evenly over the collection, to nowhere, and scale. Raises MachineError."""
    num = min(NUM_ESTIMATED, plan.num_images)
    positions = [round(step * (plan.num_images - 1) / max(num - 1, 1)) for step in range(num)]
    num_bytes, num_failed, start = 0, 0, time.perf_counter()
    for shard_index, index in plan.collection.places(positions):
        try:
            data = plan.collection.read(shard_index, index).data
            num_bytes += len(plan.encoding.encode(load_pixels(data, transform=plan.transform, size=plan.size)))
        except ImageError:
            num_failed += 1
        except MemoryError as error:
            raise _out_of_memory(error, next="Free some memory: one image is decoded at a time.") from None
    seconds = (time.perf_counter() - start) * plan.num_images / num
    return PackEstimate(num, num_failed, num_bytes * plan.num_images // num, seconds)


def pack(
    plan: PackPlan,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    max_failures: int | None = None,
    reporter: Reporter,
) -> PackResult:
    """Write the shards, going on where an interrupted run stopped.

    Raises ArtefactError or WouldOverwriteError when something else is at `out`, MachineError when another process
    writes there, TooManyFailuresError past `max_failures` or when no image is left, InterruptedRunError on Ctrl-C.
    """
    reporter.message(f"packing {plan.collection.path}: {plan.collection.describe()}")
    with output_lock(plan.out):
        sources = plan.sources
        claim = claim_pack(plan, sources, overwrite=overwrite, reporter=reporter)
        if claim == "complete":
            if not (plan.out / CARD).exists():  # of a brics that wrote none
                _write_companions(plan, reporter)
            return _result(plan, failures_of_finished(plan.out, plan.collection), already_complete=True)
        made_from = checked_sources(plan, sources, overwrite=overwrite, reporter=reporter)
        with open_sink(plan.out, "wds", shard_size=plan.shard_size, encoding=plan.encoding) as sink:
            place, num_now = sink.resume_point(plan.collection.keys()), 0
            num_enlarged = num_multi_frame = 0
            log = FailureLog(plan.out, keep=place)
            if place and log.was_lost:
                log.replace(missing_places(plan.out, plan.collection, num_places=place, shard_size=plan.shard_size))
            if place:
                reporter.message(f"going on after {place:,} images that are packed")
            batches = load_shards(
                sources,
                range(len(made_from.digests), len(sources.shards)),
                transform=plan.transform,
                size=plan.size,
                num_workers=num_workers,
                batch_size=BATCH_SIZE,
            )
            try:
                with reporter.task("pack", total=plan.num_images, unit="img", initial=place) as task:
                    for batch in batches:
                        num_now += len(batch.images)
                        num_enlarged += len(batch.enlarged)
                        num_multi_frame += len(batch.multi_frame)
                        if batch.content is not None:
                            made_from.add(batch.shard_index, settled_digest(sources, batch.shard_index, batch.content))
                        for image in batch.loaded:
                            if image.pixels is None:
                                log.add(place, image.key, image.reason)
                                sink.skip(image.key)
                            else:
                                sink.write(image.key, image.pixels, label=image.label, meta=image.meta)
                            place += 1
                        if max_failures is not None and len(log.failures) > max_failures:
                            _, key, reason = log.failures[-1]
                            raise TooManyFailuresError(
                                f"{len(log.failures):,} images failed, more than --max-failures {max_failures}; "
                                f"the last, {key}: {reason}",
                                next=f"All are listed in {log.path}.",
                            )
                        task.advance(len(batch.loaded), note=f"{len(log.failures):,} failed" if log.failures else None)
            except MemoryError as error:
                raise _out_of_memory(error, next="Use fewer --workers; whole shards are kept.") from None
            except KeyboardInterrupt:
                raise InterruptedRunError(f"interrupted; whole shards in {plan.out} are kept") from None
            finally:
                batches.close()
        if len(log.failures) == plan.num_images:
            _, key, reason = log.failures[0]
            raise TooManyFailuresError(
                f"none of {plan.num_images:,} images could be packed; the first, {key}: {reason}"
            )
        log.close()
        say_enlarged(reporter, num_enlarged, num_now, size=plan.size, num_multi_frame=num_multi_frame)
        return replace(_finish(plan, sources, made_from, log, reporter), num_enlarged=num_enlarged)


def _out_of_memory(error: MemoryError, *, next: str) -> MachineError:
    return MachineError(f"out of memory ({str(error) or 'decoding'})", next=next)


def _finish(
    plan: PackPlan, sources: Collection, made_from: SourceLog, log: FailureLog, reporter: Reporter
) -> PackResult:
    """Hash the shards, write the manifest, and then mark the whole as complete."""
    tars = _tars(plan.out)
    packed = TarCollection(str(plan.out.resolve()), tars, Wanted(labels="none"))
    shards = []
    is_long = sum(shard.size_bytes for shard in packed.shards) > LONG_HASH_BYTES
    with (reporter if is_long else SilentReporter()).task("hash", total=len(tars), unit="shards") as task:
        for tar, shard in zip(tars, packed.shards, strict=True):
            sha256, digest = sha256_of_file(tar), made_from.digests[int(tar.stem)]
            shards.append(ManifestShard(tar.name, shard.num_images, shard.size_bytes, sha256, digest))
            task.advance()
    _write_companions(plan, reporter)
    result = _result(plan, log, already_complete=False)
    if sources is plan.collection:
        source_sha256 = fingerprint_of(sources, made_from.digests)
    else:
        source_sha256 = fingerprint(plan.collection, reporter=reporter)
    artefact = replace(plan.artefact, parents=(plan.parent(source_sha256),))
    write_manifest(
        plan.out,
        settings=artefact.details["settings"],
        source_sha256=source_sha256,
        not_read=plan.collection.passed_over.to_json(),
        shards=shards,
        failures=result.failures,
    )
    summary = f"{result.num_images:,} images, {plan.size} px, {plan.transform}"
    counts = {"num_images": result.num_images, "num_failed": result.num_failed, "num_shards": result.num_shards}
    names = list(plan.collection.class_names)
    # The fingerprint is what others name as their parent.
    write_provenance(finished(artefact, sha256=packed.fingerprint, summary=summary, **counts, class_names=names))
    made_from.discard()
    return result


def _write_companions(plan: PackPlan, reporter: Reporter) -> None:
    names = plan.collection.class_names
    write_companions(plan.out, extension=plan.encoding.extension, class_names=names, reporter=reporter)


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _result(plan: PackPlan, log: FailureLog, *, already_complete: bool) -> PackResult:
    tars = _tars(plan.out)
    if already_complete:
        log.close()
    return PackResult(
        path=plan.out,
        num_images=plan.num_images - len(log.failures),
        num_shards=len(tars),
        num_bytes=sum(tar.stat().st_size for tar in tars),
        failures=[(key, reason) for _, key, reason in log.failures],
        already_complete=already_complete,
    )
