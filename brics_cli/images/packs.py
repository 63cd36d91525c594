"""What stands beside the shards that `brics pack` writes: `manifest.json` (what was written, shard by shard, with
hashes; last of all), `.sources.jsonl` (while it is being written, what each finished shard was made from), and what
opens the shards with others' tools, an index for wids and a card for Hugging Face.

The bytes of all but `.sources.jsonl` depend on the images and the settings alone, like those of the shards.
`wids.ShardListDataset("shards/wids.json")` reads images in any order. `datasets.load_dataset("shards")` goes by the
card's YAML: without it the library takes the most frequent extension in a folder for its form, which in a small one is
JSON, and refuses shards whose images do not all have the same sidecars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from brics_cli.errors import ArtefactError
from brics_cli.images.collection import Collection
from brics_cli.images.sources.memory import Descriptor
from brics_cli.images.sources.tars import TarCollection, index_tar
from brics_cli.parsing import read_json_lines
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import write_json_atomically, write_text_atomically
from brics_cli.workspace.files import read_json
from brics_cli.workspace.naming import webdataset_stem

MANIFEST, INDEX, CARD = "manifest.json", "wids.json", "README.md"
VERSION = 1
MAX_NAME_BYTES = 100
"""Of a name in a tar's header; longer ones, and those that are not ASCII, stand in a record before it."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class ManifestShard:
    """One shard; `sha256` is of its bytes, `source_digest` of the content of the images it was made from."""

    name: str
    num_images: int
    num_bytes: int
    sha256: str
    source_digest: str


def write_manifest(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    source_sha256: str,
    not_read: Mapping[str, int],
    shards: Sequence[ManifestShard],
    failures: Sequence[tuple[str, str]],
) -> None:
    """Write the manifest of `folder`; `failures` are (key, reason), `not_read` numbers by extension or reason."""
    manifest = {
        "brics_manifest": VERSION,
        **settings,
        "source_sha256": source_sha256,
        "num_images": sum(shard.num_images for shard in shards),
        "num_failed": len(failures),
        "source_not_read": dict(not_read),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
        "failures": [{"key": key, "reason": reason} for key, reason in failures],
    }
    write_json_atomically(folder / MANIFEST, manifest)


def _of_manifest(folder: Path, take: Callable[[Any], Value]) -> Value:
    """What `take` makes of the manifest of `folder`. Raises ArtefactError for a damaged one."""
    manifest = read_json(folder / MANIFEST, what="the manifest of packed shards")
    try:
        return take(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder / MANIFEST} is damaged ({error!r})") from None


def source_digests(folder: Path) -> dict[int, str]:
    """The digests of what each shard of `folder` was made from, by shard; empty where an older brics packed it."""
    with suppress(KeyError, TypeError):
        manifest = read_json(folder / MANIFEST, what="the manifest of packed shards")
        return {number: str(row["source_digest"]) for number, row in enumerate(manifest["shards"])}
    return {}


def check_manifest(folder: Path) -> None:
    """Hold the shards of `folder` against its manifest, where it has one: none missing, none of another size.

    Hashes are not looked at. Raises ArtefactError for the first that differs, and for a damaged manifest.
    """
    if not (folder / MANIFEST).is_file():
        return
    shards = _of_manifest(folder, lambda found: {str(row["name"]): int(row["num_bytes"]) for row in found["shards"]})
    for name, num_bytes in shards.items():
        path, again = folder / name, "Copy it again, or pack again."
        if not path.is_file():
            raise ArtefactError(f"{path} is missing, and {MANIFEST} lists it", next=again)
        if path.stat().st_size != num_bytes:
            raise ArtefactError(
                f"{path} has {path.stat().st_size:,} bytes, and {MANIFEST} says {num_bytes:,}", next=again
            )


def failures_of_finished(out: Path, collection: Collection) -> FailureLog:
    """The failures of the finished pack `out` of `collection`, by its manifest; failures.jsonl is put right.

    Raises ArtefactError when a shard has gone, too.
    """
    check_manifest(out)
    listed = _of_manifest(out, lambda found: [(str(row["key"]), str(row["reason"])) for row in found["failures"]])
    log = FailureLog(out, keep=lambda place: place < len(collection))
    if sorted((key, reason) for _, key, reason in log.failures) != sorted(listed):
        places = {key: place for place, key in enumerate(collection.keys())}
        log.replace([(places.get(key, -1), key, reason) for key, reason in listed])
    return log


def missing_places(
    out: Path, collection: Collection, *, shards: Set[int], shard_size: int
) -> list[tuple[int, str, str]]:
    """(place, key, reason) of the images that the whole `shards` in `out` do not hold, should its failures.jsonl have
    got lost."""
    there = set(TarCollection(str(out.resolve()), sorted(out.glob("*.tar"))).keys())
    reason = "failed in an earlier run, and its failures.jsonl got lost"
    return [
        (place, key, reason)
        for place, key in enumerate(collection.keys())
        if place // shard_size in shards and f"{place // shard_size:05d}/{webdataset_stem(key)}" not in there
    ]


class FailureLog:
    """`failures.jsonl` in an output folder: one line per image that failed, written the moment it does.

    `keep` says of a place of the output whether it is safe; lines of others are of work that is done again.
    """

    NAME = "failures.jsonl"

    def __init__(self, folder: Path, *, keep: Callable[[int], bool]) -> None:
        self.path = folder / self.NAME
        self.failures: list[tuple[int, str, str]] = []
        """(place, key, reason)."""
        self.was_lost = not self.path.exists()
        if not self.was_lost:
            for row in read_json_lines(self.path):
                with suppress(ValueError, KeyError, TypeError):
                    if keep(int(row["place"])):
                        self.failures.append((int(row["place"]), str(row["key"]), str(row["reason"])))
        self.replace(self.failures)

    def add(self, place: int, key: str, reason: str) -> None:
        """Record one failure."""
        self.failures.append((place, key, reason))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(place, key, reason))

    def replace(self, failures: list[tuple[int, str, str]]) -> None:
        """Take these instead, in the file too."""
        self.failures = failures
        write_text_atomically(self.path, "".join(_line(*failure) for failure in failures))

    def close(self) -> None:
        """Put the lines in order; remove the file when nothing failed."""
        self.replace(sorted(self.failures))
        if not self.failures:
            self.path.unlink(missing_ok=True)


def _line(place: int, key: str, reason: str) -> str:
    return json.dumps({"place": place, "key": key, "reason": reason}, ensure_ascii=False) + "\n"


class SourceLog:
    """`.sources.jsonl`: the digests of what the finished shards of `folder` were made from, by shard.

    A line is written before its shard is given its name, so that every shard that is there has one; on a cluster after
    it, so that a shard without one is made again. When the output is complete the digests are in its manifest, and the
    file is removed.
    """

    NAME = ".sources.jsonl"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self.digests: dict[int, str] = {}
        if self.path.exists():
            for row in read_json_lines(self.path):
                with suppress(ValueError, KeyError, TypeError):
                    self.digests[int(row["shard"])] = str(row["digest"])

    def keep(self, shards: Set[int]) -> None:
        """Forget all but these: the others are made again."""
        self.digests = {shard: digest for shard, digest in self.digests.items() if shard in shards}
        write_text_atomically(self.path, "".join(self._line(*row) for row in self.digests.items()))

    def add(self, shard: int, digest: str) -> None:
        """Record one more."""
        self.digests[shard] = digest
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(shard, digest))

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _line(shard: int, digest: str) -> str:
        return json.dumps({"shard": shard, "digest": digest}) + "\n"


def write_companions(folder: Path, *, extension: str, class_names: Sequence[str] = (), reporter: Reporter) -> None:
    """Write index and card for the shards in `folder`, whose images are files `*.extension`; labels are of
    `class_names`.

    wids takes names from the headers alone, where only ASCII of 100 bytes is as it is: others would be mixed up in
    silence, so that there is no index then, which the `reporter` hears.
    """
    shards, others, num_beyond = [], set(), 0
    for tar in sorted(folder.glob("*.tar")):
        members, _ = index_tar(f"the tar {tar}", Descriptor.of(tar))
        num_beyond += sum(not name.isascii() or len(name) > MAX_NAME_BYTES for name in members.names)
        extensions = [name.rpartition(".")[2] for name in members.names]
        others |= {*extensions} - {extension}
        if num_images := extensions.count(extension):
            shards.append({"url": tar.name, "nsamples": num_images, "filesize": tar.stat().st_size})
    if num_beyond:
        (folder / INDEX).unlink(missing_ok=True)
        reporter.warning(
            f"no {INDEX} in {folder}: {num_beyond:,} names of files are not ASCII of at most {MAX_NAME_BYTES} bytes, "
            "which is all that wids reads"
        )
    else:
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
        write_json_atomically(folder / INDEX, index)
    write_text_atomically(folder / CARD, _card(extension, others, class_names))


def _card(extension: str, others: set[str], class_names: Sequence[str]) -> str:
    label: str | dict[str, Any] = "int64"
    if class_names and len(set(class_names)) == len(class_names):
        label = {"class_label": {"names": {str(number): name for number, name in enumerate(class_names)}}}
    features: list[dict[str, Any]] = [{"name": extension, "dtype": "image"}]
    features += [{"name": "cls", "dtype": label}] if "cls" in others else []
    features += [{"name": "json", "dtype": "json"}] if "json" in others else []
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    shards = {"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}
    header = yaml.safe_dump({"configs": [shards], "dataset_info": {"features": features}}, sort_keys=False)
    return f"---\n{header}---\n{_TEXT}"


_TEXT = """
WebDataset shards, written by brics.

    brics info .
    datasets.load_dataset("shards")["train"]
    wids.ShardListDataset("shards/wids.json")
    webdataset.WebDataset("shards/{00000..00009}.tar")

`shards` stands for this folder. A dot in the name of an image is written %2E in its `__key__`.
"""
