"""`brics pack`: collection -> decode, crop, resize -> WebDataset shards (DESIGN section 5).

Image i of the collection has its place in shard i // shard_size of the output, whether it can be decoded or not; so
whole shards say where an interrupted run goes on, and a second run writes the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brics_cli.config.names import DEFAULT_TRANSFORM, Labels
from brics_cli.errors import ArtefactError, InterruptedRunError, MachineError, TooManyFailuresError, UsageError
from brics_cli.images import Collection, open_collection, versioned
from brics_cli.images.collection import Wanted
from brics_cli.images.crops import CropCollection, Crops
from brics_cli.images.fingerprints import fingerprint, fingerprint_of, shards_to_redo
from brics_cli.images.loader import say_enlarged, say_multi_frame
from brics_cli.images.packing import Packed, PackWork
from brics_cli.images.packs import (
    CARD,
    FailureLog,
    ManifestShard,
    SourceLog,
    failures_of_finished,
    missing_places,
    source_digests,
    write_manifest,
)
from brics_cli.images.pixels import ImageError, load_pixels
from brics_cli.images.recut import recut
from brics_cli.images.sinks import WebDatasetSink, encoding_of
from brics_cli.images.sources.tars import TarCollection
from brics_cli.parsing import as_json
from brics_cli.runtime.executors import TaskFailed, settled
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.reporting import Reporter, SilentReporter, Task
from brics_cli.workspace import Artefact, Parent, provenance_at, sha256_of_file, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.files import remove_leftovers
from brics_cli.workspace.naming import FOLDER, Codec, form_of_output
from brics_cli.workspace.outputs import Claim, claim, output_lock

SIZE, SHARD_SIZE = 256, 1000
DEFAULT_CODEC: Codec = "webp"
"""The cheapest that loses nothing."""
LONG_HASH_BYTES = 2**31
"""Shards of so many bytes in all take seconds to hash, which is then shown."""
NUM_ESTIMATED = 32
"""Images that a dry run packs, to nowhere."""


@dataclass(frozen=True)
class PackPlan:
    """What would be packed, and where to."""

    collection: Collection
    sink: WebDatasetSink
    size: int
    transform: str
    labels: Labels | None
    crops: Crops | None = None
    executor: RayExecutor | None = None

    @property
    def out(self) -> Path:
        return self.sink.path

    @property
    def num_images(self) -> int:
        return len(self.collection)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.sink.shard_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs that write to one output must have in common, beside the images."""
        return {
            "names_and_sizes": self.collection.layout,
            "size": self.size,
            "transform": versioned(self.transform),
            "shard_size": self.sink.shard_size,
            "format": self.sink.encoding.name,
            **({"labels": self.labels} if self.labels is not None else {}),
            **({"crops": as_json(self.crops)} if self.crops is not None else {}),
        }

    def artefact(self, fingerprint: str = "") -> Artefact:
        """The output; the fingerprint of the collection is known when all of it has been read."""
        parent = Parent("collection", self.collection.path, fingerprint)
        return Artefact("shards", self.out, now(), False, (parent,), {"settings": self.settings})


@dataclass(frozen=True)
class PackEstimate:
    """What a dry run measured on a few images spread over the collection: `seconds` is for one decoding thread."""

    num_looked_at: int
    num_failed: int
    pixel_bytes: int
    """Of the packed pixels before compression."""
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
    size: int | None = None,
    transform: str | None = None,
    shard_size: int | None = None,
    codec: Codec | None = None,
    quality: int | None = None,
    subset: str | None = None,
    labels: Labels | None = None,
    image_field: str | None = None,
    crops: int | None = None,
    crop_scale: str | None = None,
    jitter: float | None = None,
    seed: int | None = None,
    executor: RayExecutor | None = None,
    reporter: Reporter | None = None,
) -> PackPlan:
    """Look at the source, and tell `reporter` what of it is not read.

    `codec` None is lossless WebP; PNG where an output of PNG files, the default before, is gone on with. `crops` random
    crops of every image are packed in place of the image; `crop_scale`, `jitter` and `seed` are theirs.

    Raises UsageError and ArtefactError as `open_collection`; UsageError for a file as `out`, and for the `quality` of
    a lossless `codec`.
    """
    if codec is None and _holds_png(out):
        codec = "png"
        if reporter is not None:
            reporter.message(f"--codec not given: png, as {out} is")
    encoding = encoding_of(codec or DEFAULT_CODEC, quality=quality)
    form_of_output(out, {"shards": (FOLDER,)})
    if out.is_file():
        raise UsageError(f"--out {out} is a file", next="Shards go to a folder: --out shards")
    cut = _crops(crops, size=size or SIZE, scale=crop_scale, jitter=jitter, seed=seed)
    collection = open_collection(source, subset=subset, labels=labels, image_field=image_field, reporter=reporter)
    if out.resolve() == Path(collection.path).resolve():
        raise UsageError(f"--out {out} is the collection itself", next="Give another --out.")
    if cut is not None:
        collection = CropCollection(collection, cut)
    if executor is not None:
        executor.connect("cpu", reporter=reporter or SilentReporter())
    names = collection.class_names
    sink = WebDatasetSink(out, shard_size=shard_size or SHARD_SIZE, encoding=encoding, class_names=names)
    return PackPlan(collection, sink, size or SIZE, transform or DEFAULT_TRANSFORM, labels, cut, executor)


def _crops(
    per_image: int | None, *, size: int, scale: str | None, jitter: float | None, seed: int | None
) -> Crops | None:
    if per_image is None:
        given = {"--crop-scale": scale, "--jitter": jitter, "--seed": seed}
        if alone := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{alone[0]} is about crops, and whole images are packed", next="Add --crops 100.")
        return None
    defaults = Crops(per_image, size)
    return defaults._replace(
        scale=defaults.scale if scale is None else _scale(scale),
        jitter=defaults.jitter if jitter is None else jitter,
        seed=defaults.seed if seed is None else seed,
    )


def _scale(text: str) -> tuple[float, float]:
    try:
        lowest, highest = (float(each) for each in text.split(":"))
    except ValueError:
        lowest, highest = 0.0, 0.0
    if not 0.001 <= lowest <= highest <= 1:
        raise UsageError(
            f"--crop-scale {text} is not a range of scales", next="Give two numbers up to 1: --crop-scale 0.25:1"
        )
    return lowest, highest


def _holds_png(out: Path) -> bool:
    """Whether shards of PNG files have been begun, or finished, at `out`."""
    made = provenance_at(out) if out.is_dir() else None
    return made is not None and made.kind == "shards" and made.details.get("settings", {}).get("format") == "png"


def estimate_packing(plan: PackPlan) -> PackEstimate:
    """Pack a few images, spread evenly over the collection, to nowhere, and scale. Raises MachineError."""
    num = min(NUM_ESTIMATED, plan.num_images)
    positions = [round(step * (plan.num_images - 1) / max(num - 1, 1)) for step in range(num)]
    num_bytes, num_failed, start = 0, 0, time.perf_counter()
    for shard_index, index in plan.collection.places(positions):
        try:
            data = plan.collection.read(shard_index, index).data
            num_bytes += len(plan.sink.encoding.encode(load_pixels(data, transform=plan.transform, size=plan.size)))
        except ImageError:
            num_failed += 1
        except MemoryError as error:
            raise _out_of_memory(error, next="Free some memory: one image is decoded at a time.") from None
    seconds = (time.perf_counter() - start) * plan.num_images / num
    pixel_bytes = 3 * plan.size**2 * plan.num_images
    return PackEstimate(num, num_failed, pixel_bytes, num_bytes * plan.num_images // num, seconds)


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
    collection, sink = plan.collection, plan.sink
    reporter.message(f"packing {collection.path}: {collection.describe()}")
    sources = recut(collection, sink.shard_size)  # what each shard is made from
    work = PackWork(sources, sink, plan.transform, plan.size, num_workers)
    counts: Counter[str] = Counter()

    def take(packed: Packed, task: Task) -> None:
        """Record what cannot be packed and what shards are made from: before they have their names, but for those of a
        cluster's workers."""
        counts.update(images=packed.num_packed, enlarged=packed.num_enlarged, multi_frame=packed.num_multi_frame)
        for failure in packed.failures:
            log.add(*failure)
        if packed.digest is not None:
            made_from.add(packed.shard, packed.digest)
        num_failed = len(log.failures)
        if max_failures is not None and num_failed > max_failures:
            _, key, reason = log.failures[-1]
            raise TooManyFailuresError(
                f"{num_failed:,} images failed, more than --max-failures {max_failures}; the last, {key}: {reason}",
                next=f"All are listed in {log.path}.",
            )
        notes = [plan.executor.status] if plan.executor is not None else []
        notes += [f"{num_failed:,} failed"] if num_failed else []
        task.advance(packed.num_read, note=", ".join(notes) or None)

    with output_lock(plan.out):
        if _claim(plan, sources, overwrite=overwrite, reporter=reporter) == "complete":
            if not (plan.out / CARD).exists():  # of a brics that wrote none
                sink.finish(reporter)
            SourceLog(plan.out).discard()  # of one that was killed right after it was complete
            log = failures_of_finished(plan.out, collection)
            log.close()
            return _result(plan, log, already_complete=True)
        made_from = _checked_sources(plan, sources, overwrite=overwrite, reporter=reporter)
        kept = set(made_from.digests)
        pending = [shard for shard in range(len(sources.shards)) if shard not in kept]
        done = sum(sources.shards[shard].num_images for shard in kept)
        log = FailureLog(plan.out, keep=lambda place: place // sink.shard_size in kept)
        if done:
            if log.was_lost:
                log.replace(missing_places(plan.out, collection, shards=kept, shard_size=sink.shard_size))
            reporter.message(f"going on after {done:,} images that are packed")
        try:
            with (
                reporter.task("pack", total=plan.num_images, unit="img", initial=done) as task,
                closing(_run(plan, work, pending, reporter)) as running,
            ):
                for packed in running:
                    take(packed, task)
        except MemoryError as error:
            raise _out_of_memory(error, next="Use fewer --workers; whole shards are kept.") from None
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted; whole shards in {plan.out} are kept") from None
        if len(log.failures) == plan.num_images:
            _, key, reason = log.failures[0]
            raise TooManyFailuresError(
                f"none of {plan.num_images:,} images could be packed; the first, {key}: {reason}"
            )
        log.close()
        num_enlarged, num_multi_frame = counts["enlarged"], counts["multi_frame"]
        say_enlarged(reporter, num_enlarged, counts["images"], size=plan.size)
        say_multi_frame(reporter, num_multi_frame, counts["images"])
        sink.finish(reporter)
        _put_on_record(plan, sources, made_from, log, reporter)
        return replace(_result(plan, log), num_enlarged=num_enlarged)


def _run(plan: PackPlan, work: PackWork, pending: list[int], reporter: Reporter) -> Generator[Packed, None, None]:
    """Pack in this process, or on the cluster."""
    if plan.executor is None:
        yield from work.pack(pending)
        return
    cores = plan.executor.cpus_per_worker
    work.sink.num_workers = work.sink.num_workers or cores

    def give_up(failed: TaskFailed[int]) -> Packed:
        reporter.warning(f"shard {failed.task:05d} has failed: {failed.reason}")
        return work.give_up(failed.task, failed.reason)

    shared = replace(work, num_workers=work.num_workers or cores)
    yield from settled(plan.executor.run(shared, pending, folder=plan.out), give_up)
    remove_leftovers(plan.out, "*.tar.*")


def _out_of_memory(error: MemoryError, *, next: str) -> MachineError:
    return MachineError(f"out of memory ({str(error) or 'decoding'})", next=next)


def _put_on_record(
    plan: PackPlan, sources: Collection, made_from: SourceLog, log: FailureLog, reporter: Reporter
) -> None:
    """Hash the shards, write the manifest, and then mark the whole as complete."""
    tars, shards = _tars(plan.out), []
    packed = TarCollection(str(plan.out.resolve()), tars, Wanted(labels="none"))
    is_long = sum(shard.size_bytes for shard in packed.shards) > LONG_HASH_BYTES
    with (reporter if is_long else SilentReporter()).task("hash", total=len(tars), unit="shards") as task:
        for tar, shard in zip(tars, packed.shards, strict=True):
            sha256, digest = sha256_of_file(tar), made_from.digests[int(tar.stem)]
            shards.append(ManifestShard(tar.name, shard.num_images, shard.size_bytes, sha256, digest))
            task.advance()
    if sources is plan.collection:
        source_sha256 = fingerprint_of(sources, made_from.digests)
    else:
        source_sha256 = fingerprint(plan.collection, reporter=reporter)
    num_images = plan.num_images - len(log.failures)
    write_manifest(
        plan.out,
        settings=plan.settings,
        source_sha256=source_sha256,
        not_read=plan.collection.passed_over.to_json(),
        shards=shards,
        failures=[(key, reason) for _, key, reason in sorted(log.failures)],
    )
    write_provenance(
        finished(
            plan.artefact(source_sha256),
            sha256=packed.fingerprint,  # what others name as their parent
            summary=f"{num_images:,} images, {plan.size} px, {plan.transform}",
            num_images=num_images,
            num_failed=len(log.failures),
            num_shards=len(tars),
            class_names=list(plan.collection.class_names),
        )
    )
    made_from.discard()


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _result(plan: PackPlan, log: FailureLog, *, already_complete: bool = False) -> PackResult:
    tars = _tars(plan.out)
    return PackResult(
        path=plan.out,
        num_images=plan.num_images - len(log.failures),
        num_shards=len(tars),
        num_bytes=sum(tar.stat().st_size for tar in tars),
        failures=[(key, reason) for _, key, reason in log.failures],
        already_complete=already_complete,
    )


def _claim(plan: PackPlan, sources: Collection, *, overwrite: bool, reporter: Reporter) -> Claim:
    """Claim the output as `claim` does; where it is complete, every image is held against its manifest.

    Raises ArtefactError too when images have changed since, and when an older brics, which knew them by names and
    sizes alone, has begun it; of what it has finished the reporter hears that this cannot be told.
    """
    artefact, made = plan.artefact(), provenance_at(plan.out)
    is_old = False
    if made is not None and made.kind == artefact.kind and (parent := made.parent("collection")) is not None:
        artefact = plan.artefact(parent.sha256)  # its images are looked at below
        was, settings = made.details.get("settings", {}), artefact.details["settings"]
        is_old = "names_and_sizes" not in was
        if is_old and parent.sha256 == settings["names_and_sizes"]:
            del settings["names_and_sizes"]
        if not (overwrite or is_old) and {**was, "names_and_sizes": settings["names_and_sizes"]} == settings != was:
            raise ArtefactError(
                f"{plan.collection.path} has changed since {plan.out} was made from it: it holds other images, or "
                "other names or sizes of them",
                next="Give another --out, or --overwrite to pack what is there now.",
            )
    state = claim(artefact, overwrite=overwrite)
    if state == "new" or (state == "resume" and is_old and overwrite):
        write_provenance(plan.artefact())
    elif is_old or state == "complete":
        recorded = dict.fromkeys(range(len(sources.shards)), "") if is_old else source_digests(plan.out)
        shards_to_redo(
            sources, recorded, output=plan.out, complete=state == "complete", overwrite=False, reporter=reporter
        )
    return state


def _checked_sources(plan: PackPlan, sources: Collection, *, overwrite: bool, reporter: Reporter) -> SourceLog:
    """What the shards that are there were made from, which is what the collection still holds.

    Shards without a record of that are removed; with `overwrite` those of changed images, too. Raises ArtefactError,
    saying which, when images have changed.
    """
    made_from = SourceLog(plan.out)
    there = {int(tar.stem): tar for tar in _tars(plan.out) if tar.stem.isdecimal()}
    recorded = {shard: made_from.digests[shard] for shard in sorted(there) if shard in made_from.digests}
    redone = shards_to_redo(sources, recorded, output=plan.out, complete=False, overwrite=overwrite, reporter=reporter)
    kept = recorded.keys() - set(redone)
    for shard, tar in there.items():
        if shard not in kept:
            tar.unlink()
    made_from.keep(kept)
    return made_from
