"""`brics pack`: collection -> decode, crop, resize -> WebDataset shards (DESIGN section 5).

Image i of the collection has its place in shard i // shard_size of the output, whether it can be decoded or not; so
whole shards say where an interrupted run goes on, and a second run writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brics_cli.data import TRANSFORM_VERSIONS, Collection, claim_output, load_shards, open_collection, open_sink
from brics_cli.data.outputs import FailureLog, output_lock
from brics_cli.errors import InterruptedRunError, TooManyFailuresError, UsageError
from brics_cli.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, write_provenance
from brics_cli.workspace.artefacts import finished, now

BATCH_SIZE = 64


@dataclass(frozen=True)
class PackPlan:
    """What would be packed, and where to."""

    collection: Collection
    out: Path
    size: int
    transform: str
    shard_size: int

    @property
    def num_images(self) -> int:
        return len(self.collection)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    @property
    def pixel_bytes(self) -> int:
        """Of the packed pixels before compression: an upper bound for the shards."""
        return 3 * self.size**2 * self.num_images

    @property
    def artefact(self) -> Artefact:
        settings = {
            "size": self.size,
            "transform": f"{self.transform}/{TRANSFORM_VERSIONS[self.transform]}",
            "shard_size": self.shard_size,
            "format": "png",
        }
        parent = Parent("collection", self.collection.path, self.collection.fingerprint)
        return Artefact("shards", self.out, now(), False, (parent,), {"settings": settings})


@dataclass(frozen=True)
class PackResult:
    """What was packed: `num_images` in `num_shards` shards; `failures` lists what could not be, (key, reason)."""

    path: Path
    num_images: int
    num_shards: int
    num_bytes: int
    failures: list[tuple[str, str]]
    already_complete: bool

    @property
    def num_failed(self) -> int:
        return len(self.failures)


def plan_packing(source: str, *, out: Path, size: int, transform: str, shard_size: int) -> PackPlan:
    """Look at the source. Raises UsageError and ArtefactError as `open_collection`; UsageError for a file as `out`."""
    if out.suffix in {".tar", ".zip"} or out.is_file():
        raise UsageError(f"--out {out} is a file", next="Shards go to a folder: --out shards")
    collection = open_collection(source)
    if out.resolve() == Path(collection.path):
        raise UsageError(f"--out {out} is the collection itself", next="Give another --out.")
    return PackPlan(collection, out, size, transform, shard_size)


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
        claim = claim_output(plan.artefact, overwrite=overwrite)
        if claim == "complete":
            return _result(plan, FailureLog(plan.out, keep=plan.num_images), already_complete=True)
        keys = list(_keys(plan.collection))
        with open_sink(plan.out, "wds", shard_size=plan.shard_size) as sink:
            place = sink.resume_point(keys)
            log = FailureLog(plan.out, keep=place)
            if place:
                reporter.message(f"going on after {place:,} images that are packed")
            batches = load_shards(
                plan.collection,
                transform=plan.transform,
                size=plan.size,
                num_workers=num_workers,
                batch_size=BATCH_SIZE,
                skip=place,
            )
            try:
                with reporter.task("pack", total=plan.num_images, unit="img", initial=place) as task:
                    for batch in batches:
                        good = dict(zip(batch.indices, range(len(batch.keys)), strict=True))
                        failed = dict(zip(batch.failed_indices, batch.failures, strict=True))
                        for index in sorted({*good, *failed}):
                            if index in failed:
                                log.add(place, *failed[index])
                                sink.skip(failed[index].key)
                            else:
                                row = good[index]
                                sink.write(
                                    batch.keys[row], batch.images[row], label=batch.labels[row], meta=batch.metas[row]
                                )
                            place += 1
                        if max_failures is not None and len(log.failures) > max_failures:
                            _, key, reason = log.failures[-1]
                            raise TooManyFailuresError(
                                f"{len(log.failures):,} images failed, more than --max-failures {max_failures}; "
                                f"the last, {key}: {reason}",
                                next=f"All are listed in {log.path}.",
                            )
                        task.advance(batch.num_read, note=f"{len(log.failures):,} failed" if log.failures else None)
            except KeyboardInterrupt:
                raise InterruptedRunError(f"interrupted; whole shards in {plan.out} are kept") from None
        if len(log.failures) == plan.num_images:
            _, key, reason = log.failures[0]
            raise TooManyFailuresError(
                f"none of {plan.num_images:,} images could be packed; the first, {key}: {reason}"
            )
        log.close()
        return _finish(plan, log)


def _keys(collection: Collection) -> Iterator[str]:
    for shard_index, shard in enumerate(collection.shards):
        for index in range(shard.num_images):
            yield collection.key(shard_index, index)


def _finish(plan: PackPlan, log: FailureLog) -> PackResult:
    result = _result(plan, log, already_complete=False)
    # Marked complete first: an unfinished pack does not open. The fingerprint is what others name as their parent.
    write_provenance(finished(plan.artefact))
    summary = f"{result.num_images:,} images, {plan.size} px, {plan.transform}"
    sha256 = open_collection(plan.out).fingerprint
    counts = {"num_images": result.num_images, "num_failed": result.num_failed, "num_shards": result.num_shards}
    write_provenance(finished(plan.artefact, sha256=sha256, summary=summary, **counts))
    return result


def _result(plan: PackPlan, log: FailureLog, *, already_complete: bool) -> PackResult:
    tars = sorted(plan.out.glob("*.tar"))
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
