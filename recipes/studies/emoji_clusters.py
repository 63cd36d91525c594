"""Sort a collection's images into folders of look-alikes: classes for a collection that has none.

    python recipes/studies/emoji_clusters.py IMAGES OUT --num 128

k-means (k-means++ start, seed 0) on 16 x 16 px RGB; `brics encode-dataset OUT --labels folder` makes classes of them.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from brics_cli import open_collection

ROUNDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=128)
    arguments = parser.parse_args()
    collection = open_collection(arguments.images)
    raws = [raw for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]
    small = [Image.open(BytesIO(raw.data)).convert("RGB").resize((16, 16), Image.Resampling.BOX) for raw in raws]
    points = np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])  # (N, 768)
    labels = clusters(points, num=arguments.num)
    for raw, label in zip(raws, labels, strict=True):
        path = arguments.out / f"{label:03d}" / f"{Path(raw.key).name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw.data)
    sizes = np.bincount(labels)
    print(f"{len(raws):,} images in {len(sizes)} folders of {sizes.min()} to {sizes.max()}: {arguments.out}")


def clusters(points: np.ndarray, *, num: int) -> np.ndarray:
    """Labels (N,) of points (N, D), 0 the largest cluster."""
    generator = np.random.default_rng(0)
    centres = points[generator.integers(len(points))][None]
    while len(centres) < num:
        nearest = distances(points, centres).min(axis=1)
        centres = np.concatenate([centres, points[generator.choice(len(points), p=nearest / nearest.sum())][None]])
    for _ in range(ROUNDS):
        labels = distances(points, centres).argmin(axis=1)
        centres = np.stack(
            [points[labels == k].mean(axis=0) if (labels == k).any() else centres[k] for k in range(num)]
        )
    labels = np.unique(labels, return_inverse=True)[1]  # without the empty ones
    order = np.argsort(-np.bincount(labels), kind="stable")
    return np.argsort(order)[labels]


def distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances (N, K)."""
    square = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    return np.maximum(square, 0)


if __name__ == "__main__":
    main()
