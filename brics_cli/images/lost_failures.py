"""What a pack could not take, should its `failures.jsonl` have got lost: its manifest and its shards know better."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from brics_cli.images.collection import Collection
from brics_cli.images.manifest import check_manifest, listed_failures
from brics_cli.images.outputs import FailureLog
from brics_cli.images.sinks import webdataset_stem
from brics_cli.images.sources.webdataset import WebDatasetCollection


def failures_of_finished(out: Path, collection: Collection) -> FailureLog:
    """The failures of the finished pack `out` of `collection`, by its manifest; failures.jsonl is put right.

    Raises ArtefactError when a shard has gone, too.
    """
    check_manifest(out)
    log, listed = FailureLog(out, keep=len(collection)), listed_failures(out)
    if sorted((key, reason) for _, key, reason in log.failures) != sorted(listed):
        places = {key: place for place, key in enumerate(collection.keys())}
        log.replace([(places.get(key, -1), key, reason) for key, reason in listed])
    return log


def missing_places(
    out: Path, collection: Collection, *, num_places: int, shard_size: int
) -> list[tuple[int, str, str]]:
    """(place, key, reason) of the first `num_places` images that the whole shards in `out` do not hold."""
    there = set(WebDatasetCollection(str(out.resolve()), sorted(out.glob("*.tar"))).keys())
    reason = "failed in an earlier run, and its failures.jsonl got lost"
    return [
        (place, key, reason)
        for place, key in enumerate(islice(collection.keys(), num_places))
        if f"{place // shard_size:05d}/{webdataset_stem(key)}" not in there
    ]
