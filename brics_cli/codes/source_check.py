"""Whether what an unfinished or finished key-code store was made from is still what stands in its source."""

from __future__ import annotations

from brics_cli.codes import StoreWriter
from brics_cli.errors import ArtefactError
from brics_cli.images import Collection
from brics_cli.images.fingerprints import changed_shards, check_unchanged
from brics_cli.runtime.reporting import Reporter


def check_source(collection: Collection, writer: StoreWriter, *, overwrite: bool, reporter: Reporter) -> None:
    """Hold every shard of `collection` that is encoded against the digest of what was encoded of it.

    Shards are recognised by signature, or read and not decoded. With `overwrite` those of other content are encoded
    again; else ArtefactError says which they are. So does one for parts that an older brics wrote, which did not look
    at the images' content; of a finished store of its the reporter hears that nobody can tell.
    """
    recorded = writer.digests()
    untold = [index for index, digest in recorded.items() if not digest]
    told = {index: digest for index, digest in recorded.items() if digest}
    if overwrite:
        for index in [*untold, *changed_shards(collection, told, reporter=reporter)]:
            reporter.message(
                f"encoding again: shard {collection.shards[index].name}, since its images may have changed"
            )
            writer.discard(index)
        return
    if untold and not writer.complete:
        raise ArtefactError(
            f"{writer.parts_directory} was begun by an older brics, which knew images by names and sizes alone: "
            f"whether those of its {len(untold):,} encoded shards are still the same cannot be told",
            next="Finish it with that brics, give another --out, or --overwrite to encode those shards again.",
        )
    next = "Give another --out, or --overwrite to encode what is there now."
    check_unchanged(collection, told, output=writer.path, reporter=reporter, next=next)
    if untold:
        reporter.warning(
            f"{writer.path} has the names and sizes of {collection.path}, but {len(untold):,} of its "
            f"{len(recorded):,} shards were written by an older brics, which recorded nothing of their images: whether "
            "these have changed since cannot be told; --overwrite encodes them again"
        )
