"""Held-out images that no training image looks like.

A random split of a collection with near-copies (skin tones of an emoji, frames of a video, crops that overlap) tests
memory. Here images that look alike form clusters, and whole clusters are held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from brics_cli.errors import UsageError

SIDE = 16
LOOK_ALIKE_PSNR_DB = 21.0
"""Two images whose 16 x 16 grey thumbnails are closer than this are look-alikes."""
MAX_IMAGES = 20_000
"""Every pair is compared: beyond this, minutes and gigabytes."""
ROWS_AT_ONCE = 1024


def look_alikes(images: np.ndarray) -> np.ndarray:
    """images (N, S, S, 3) uint8 with S a multiple of 16 -> cluster number of each (N,).

    Clusters are the connected components of "looks like", mirrored images included: if a looks like b and b like c,
    all three are one cluster. Raises UsageError for more than 20,000 images.
    """
    if len(images) > MAX_IMAGES:
        raise UsageError(
            f"{len(images):,} images are too many to compare every pair of (limit {MAX_IMAGES:,})",
            next="Give held-out images of your own: --val.",
        )
    cell = images.shape[1] // SIDE
    grey = images.mean(axis=-1, dtype=np.float32)  # (N, S, S)
    thumbnails = grey.reshape(len(images), SIDE, cell, SIDE, cell).mean(axis=(2, 4))  # (N, 16, 16)
    limit = SIDE**2 * 255.0**2 / 10 ** (LOOK_ALIKE_PSNR_DB / 10)  # of the summed squared difference
    flat = thumbnails.reshape(len(images), -1)
    squares = np.square(flat).sum(axis=1)
    pairs = []
    for start in range(0, len(flat), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        for others in (thumbnails, thumbnails[:, :, ::-1]):
            distances = squares[rows, None] + squares - 2 * flat[rows] @ others.reshape(len(flat), -1).T
            a, b = np.nonzero(distances < limit)
            pairs.append(np.stack([a + start, b]))
    a, b = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(flat), len(flat)))
    return connected_components(graph, directed=False)[1]


def hold_out_look_alikes(images: np.ndarray, keys: Sequence[str], *, fraction: float) -> np.ndarray:
    """Indices of about `fraction` of the images, whole clusters of look-alikes, sorted.

    Clusters are taken in the order of the hash of their smallest key, so the split depends on the images alone; one
    that is larger than the fraction asked for stays with the training images. Raises UsageError when none is left.
    """
    clusters = look_alikes(images)
    members: dict[int, list[int]] = {}
    for index, cluster in enumerate(clusters.tolist()):
        members.setdefault(cluster, []).append(index)
    wanted = fraction * len(images)
    held_out: list[int] = []
    by_hash = sorted(
        members.values(), key=lambda cluster: hashlib.sha256(min(keys[index] for index in cluster).encode()).digest()
    )
    for cluster in by_hash:
        if len(held_out) + len(cluster) <= wanted:
            held_out += cluster
    if not held_out:
        raise UsageError(
            "all images look alike, so none can be held out without its look-alikes",
            next="Give held-out images of your own: --val.",
        )
    return np.array(sorted(held_out), np.int64)
