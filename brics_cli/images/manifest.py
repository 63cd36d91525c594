"""`manifest.json` of packed shards: what was written, shard by shard, with hashes. It is written last.

Its bytes depend on the images and the settings alone, like those of the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brics_cli.errors import ArtefactError
from brics_cli.workspace import write_json_atomically
from brics_cli.workspace.files import read_json

NAME = "manifest.json"
VERSION = 1


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
    write_json_atomically(folder / NAME, manifest)


def source_digests(folder: Path) -> dict[int, str]:
    """The digests of what each shard of `folder` was made from, by shard; empty where an older brics packed it."""
    manifest = read_json(folder / NAME, what="the manifest of packed shards")
    try:
        return {number: str(row["source_digest"]) for number, row in enumerate(manifest["shards"])}
    except (KeyError, TypeError):
        return {}


def listed_failures(folder: Path) -> list[tuple[str, str]]:
    """What could not be packed into `folder`, (key, reason). Raises ArtefactError for a damaged manifest."""
    manifest = read_json(folder / NAME, what="the manifest of packed shards")
    try:
        return [(str(row["key"]), str(row["reason"])) for row in manifest["failures"]]
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{folder / NAME} is damaged ({error!r})") from None


def check_manifest(folder: Path) -> None:
    """Hold the shards of `folder` against its manifest, where it has one: none missing, none of another size.

    Hashes are not looked at. Raises ArtefactError for the first that differs, and for a damaged manifest.
    """
    if not (folder / NAME).is_file():
        return
    manifest = read_json(folder / NAME, what="the manifest of packed shards")
    try:
        shards = {str(row["name"]): int(row["num_bytes"]) for row in manifest["shards"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder / NAME} is damaged ({error!r})") from None
    for name, num_bytes in shards.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing, and {NAME} lists it", next="Copy it again, or pack again.")
        if path.stat().st_size != num_bytes:
            raise ArtefactError(
                f"{path} has {path.stat().st_size:,} bytes, and {NAME} says {num_bytes:,}",
                next="Copy it again, or pack again.",
            )
