"""The fingerprint of a collection, from the digests of its shards' content (`images.fingerprints` takes those)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

IMAGES = 64
"""Hexadecimal digits of a digest that are of keys and images; those after them are of labels and metadata."""


def fingerprint_of_shards(shards: Iterable[tuple[str, str, int]]) -> str:
    """sha256 over (name, digest, number of images) of each shard in order: of digests what is said of images."""
    digest = hashlib.sha256()
    for name, content, num_images in shards:
        digest.update(f"{name}\0{content[:IMAGES]}\0{num_images}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
